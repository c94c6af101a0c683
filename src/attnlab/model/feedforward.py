"""Feed-forward layers: their contract, and those with one set of weights for all tokens.

    Dense     y = W_down silu(W_up x)
    SwiGLU    y = W_down (silu(W_gate x) * W_up x)

A layer is a function of each token alone. Shazeer 2020 (arXiv:2002.05202) for SwiGLU.
Shapes: ... any, D model width, F hidden width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, silu

from attnlab.config import Choice, Problem
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
        hidden_F = silu(self.gate_proj(x_D)) * self.up_proj(x_D)
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
