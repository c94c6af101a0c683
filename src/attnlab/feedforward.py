"""The feed-forward half of a block: what a token does on its own.

Shapes: ... any, D model width, F hidden width.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import dropout, silu

from attnlab.config import Choice, Problem
from attnlab.mechanism import Cost


@dataclass(frozen=True, kw_only=True)
class FeedForward(Choice, ABC):
    """Settings of a feed-forward layer; knows its cost before any tensor exists."""

    @abstractmethod
    def cost(self, d_model: int) -> Cost:
        """Cost for one token; a feed-forward layer has no decode state."""

    @abstractmethod
    def build(self, d_model: int, dropout: float = 0.0) -> nn.Module:
        """The module. `dropout` applies to the hidden layer."""


@dataclass(frozen=True, kw_only=True)
class Dense(FeedForward):
    """Two matrices: W_down silu(W_up x)."""

    d_ff: int = 512

    def problems(self) -> Iterator[Problem]:
        if self.d_ff < 1:
            yield Problem("d_ff", f"must be at least 1, got {self.d_ff}")

    def cost(self, d_model: int) -> Cost:
        params = 2 * d_model * self.d_ff
        return Cost(params=params, flops=2 * params, state_bytes=0)

    def build(self, d_model: int, dropout: float = 0.0) -> nn.Module:
        return _Dense(d_model, self.d_ff, dropout)


@dataclass(frozen=True, kw_only=True)
class SwiGLU(FeedForward):
    """Three matrices: W_down (silu(W_gate x) * W_up x). Shazeer 2020 (arXiv:2002.05202)."""

    d_ff: int = 512

    @classmethod
    def name(cls) -> str:
        return "swiglu"

    def problems(self) -> Iterator[Problem]:
        if self.d_ff < 1:
            yield Problem("d_ff", f"must be at least 1, got {self.d_ff}")

    def cost(self, d_model: int) -> Cost:
        params = 3 * d_model * self.d_ff
        return Cost(params=params, flops=2 * params, state_bytes=0)

    def build(self, d_model: int, dropout: float = 0.0) -> nn.Module:
        return _SwiGLU(d_model, self.d_ff, dropout)


class _Dense(nn.Module):
    def __init__(self, d_model: int, d_ff: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.up_proj = nn.Linear(d_model, d_ff, bias=False)
        self.down_proj = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x_D: Tensor) -> Tensor:
        return self.down_proj(dropout(silu(self.up_proj(x_D)), self.dropout, self.training))


class _SwiGLU(nn.Module):
    def __init__(self, d_model: int, d_ff: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.gate_proj = nn.Linear(d_model, d_ff, bias=False)
        self.up_proj = nn.Linear(d_model, d_ff, bias=False)
        self.down_proj = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x_D: Tensor) -> Tensor:
        hidden_F = silu(self.gate_proj(x_D)) * self.up_proj(x_D)
        return self.down_proj(dropout(hidden_F, self.dropout, self.training))
