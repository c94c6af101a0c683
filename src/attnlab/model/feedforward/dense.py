"""Two matrices: W_down silu(W_up x).

Shapes: ... any, D model width, F hidden width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import dropout, silu

from attnlab.config import Problem
from attnlab.mechanism import Cost
from attnlab.model.feedforward.layer import FeedForward, FeedForwardLayer


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
