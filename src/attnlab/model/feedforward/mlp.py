"""Feed-forward layers with one set of weights for all tokens: of two matrices, three, or none.

    Dense     y = W_down silu(W_up x)
    SwiGLU    y = W_down (silu(W_gate x) * W_up x)

Shazeer 2020 (arXiv:2002.05202) for SwiGLU.
Shapes: ... any, D model width, F hidden width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, silu

from attnlab.config import Problem
from attnlab.mechanism import Cost
from attnlab.model.feedforward.layer import FeedForward, FeedForwardLayer
from attnlab.modules.joint_linear import joint_linear


@dataclass(frozen=True, kw_only=True)
class Dense(FeedForward):
    """Two matrices: W_down silu(W_up x)."""

    d_ff: int = 512  # hidden width

    def problems(self) -> Iterator[Problem]:
        if self.d_ff < 1:
            yield Problem("d_ff", f"must be at least 1, got {self.d_ff}")

    def cost(self, d_model: int) -> Cost:
        params = 2 * d_model * self.d_ff
        return Cost(params=params, flops=2 * params, state_bytes=0)

    def build(self, d_model: int, dropout: float = 0.0) -> FeedForwardLayer:
        return _Dense(d_model, self.d_ff, dropout)


class _Dense(FeedForwardLayer):
    def __init__(self, d_model: int, d_ff: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.up_proj = nn.Linear(d_model, d_ff, bias=False)
        self.down_proj = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x_D: Tensor) -> Tensor:
        return self.down_proj(dropout(silu(self.up_proj(x_D)), self.dropout, self.training))


@dataclass(frozen=True, kw_only=True)
class SwiGLU(FeedForward):
    """Three matrices: W_down (silu(W_gate x) * W_up x). Shazeer 2020 (arXiv:2002.05202)."""

    d_ff: int = 512  # hidden width

    @classmethod
    def name(cls) -> str:
        return "swiglu"

    def problems(self) -> Iterator[Problem]:
        if self.d_ff < 1:
            yield Problem("d_ff", f"must be at least 1, got {self.d_ff}")

    def cost(self, d_model: int) -> Cost:
        params = 3 * d_model * self.d_ff
        return Cost(params=params, flops=2 * params, state_bytes=0)

    def build(self, d_model: int, dropout: float = 0.0) -> FeedForwardLayer:
        return _SwiGLU(d_model, self.d_ff, dropout)


class _SwiGLU(FeedForwardLayer):
    def __init__(self, d_model: int, d_ff: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.gate_proj = nn.Linear(d_model, d_ff, bias=False)
        self.up_proj = nn.Linear(d_model, d_ff, bias=False)
        self.down_proj = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x_D: Tensor) -> Tensor:
        gate_F, up_F = joint_linear(x_D, self.gate_proj, self.up_proj)
        hidden_F = silu(gate_F) * up_F
        return self.down_proj(dropout(hidden_F, self.dropout, self.training))


@dataclass(frozen=True, kw_only=True)
class NoFeedForward(FeedForward):
    """No feed-forward layer: a block is its mechanism alone, without a second norm."""

    present: ClassVar[bool] = False

    def cost(self, d_model: int) -> Cost:
        del d_model
        return Cost(params=0, flops=0, state_bytes=0)

    def build(self, d_model: int, dropout: float = 0.0) -> FeedForwardLayer:
        del d_model, dropout  # there is no hidden layer
        return _Nothing()


class _Nothing(FeedForwardLayer):
    def forward(self, x_D: Tensor) -> Tensor:
        return torch.zeros_like(x_D)
