"""The contract of a feed-forward layer: a function of each token alone.

Shapes: ... any, D model width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attnlab.config import Choice
from attnlab.mechanism import Cost


@dataclass(frozen=True, kw_only=True)
class FeedForward(Choice, ABC):
    """The settings of a feed-forward layer, with its cost before any tensor exists."""

    grows_with_width: ClassVar[tuple[str, ...]] = ("d_ff",)  # fields that follow the model's width
    present: ClassVar[bool] = True  # False: the block has no norm before it, either

    @abstractmethod
    def cost(self, d_model: int) -> Cost:
        """Return the cost per token; a feed-forward layer has no decode state."""

    def active_params(self, d_model: int) -> int:
        """Return the number of parameters used per token: all, unless the layer routes tokens."""
        return self.cost(d_model).params

    @abstractmethod
    def build(self, d_model: int, dropout: float = 0.0) -> "FeedForwardLayer":
        """Return the module. `dropout` is the probability for the hidden layer."""


@dataclass(kw_only=True)
class Division:
    """A training step whose batch is divided among processes, and in each into micro-batches."""

    total: Callable[[Tensor], Tensor]  # a new tensor: the sum over all processes
    parts: int  # micro-batches of this process
    part: int = 0  # the current one


class FeedForwardLayer(nn.Module, ABC):
    """A function of each token alone: the same for a whole sequence and for a decode step.

    A layer whose auxiliary loss or statistics are no means over tokens finds in `division` that the
    batch of a step is divided: `forward_with_loss` then sees a part of it, and may see it twice.
    """

    division: Division | None = None  # None: `forward_with_loss` is called once with the batch
    loss_needs_whole_batch: bool = False  # True: no part has its loss before all are seen

    @abstractmethod
    def forward(self, x_D: Tensor) -> Tensor:
        """Return `y_D`, for any leading dimensions."""

    def forward_with_loss(self, x_D: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return `forward` as used in training, and an auxiliary loss (scalar) or None.

        It is called once per training step, so that the layer may update statistics in its buffers.
        """
        return self(x_D), None

    def end_pass(self) -> None:
        """Take note that every part of the batch has been seen, while `loss_needs_whole_batch`."""

    def end_step(self) -> None:
        """Update statistics after a step that was divided, before `division` is removed."""

    def drain_statistics(self) -> dict[str, object]:
        """Return and reset the statistics of training as JSON values. Waits for the device."""
        return {}

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return the name of the kernel that `forward` runs there; None if there is only one."""
        del device, dtype
        return None
