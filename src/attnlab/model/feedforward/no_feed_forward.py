"""No feed-forward layer: a block is its mechanism alone, without a second norm.

Shapes: ... any, D model width.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attnlab.mechanism import Cost
from attnlab.model.feedforward.layer import FeedForward, FeedForwardLayer


@dataclass(frozen=True, kw_only=True)
class NoFeedForward(FeedForward):
    """No layer: it adds nothing to a token, and has no parameters."""

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
