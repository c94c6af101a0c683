"""The contract of a feed-forward layer: what a token does on its own.

Shapes: ... any, D model width.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attnlab.config import Choice
from attnlab.mechanism import Cost


@dataclass(frozen=True, kw_only=True)
class FeedForward(Choice, ABC):
    """Settings of a feed-forward layer; knows its cost before any tensor exists."""

    @abstractmethod
    def cost(self, d_model: int) -> Cost:
        """Cost for one token; a feed-forward layer has no decode state."""

    def active_params(self, d_model: int) -> int:
        """Parameters that one token meets: all, unless the layer chooses among its parts."""
        return self.cost(d_model).params

    @abstractmethod
    def build(self, d_model: int, dropout: float = 0.0) -> "FeedForwardLayer":
        """The module. `dropout` applies to the hidden layer."""


class FeedForwardLayer(nn.Module, ABC):
    """A map of tokens, one by one: the same for a whole sequence and for a decode step."""

    @abstractmethod
    def forward(self, x_D: Tensor) -> Tensor:
        """`y_D`, for any number of tokens in front."""

    def forward_with_loss(self, x_D: Tensor) -> tuple[Tensor, Tensor | None]:
        """`forward` as training uses it, and a scalar loss of the layer's own, or None.

        Called once a training step: the layer may count what it sees, in buffers and in place.
        """
        return self(x_D), None

    def drain_statistics(self) -> dict[str, object]:
        """What training counted since the last call, as JSON values. Waits for the device."""
        return {}

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Name of the kernel that `forward` runs there, None where there is nothing to choose."""
        del device, dtype
        return None
