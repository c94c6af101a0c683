"""The contract every sequence-mixing mechanism fulfils, and the units its costs are in.

Shapes: B batch, T tokens, D model width.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from attnlab.config import Choice, Problem

State = TypeVar("State", bound=tuple[Any, ...])


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one layer costs for one token that sees `context` tokens, itself included."""

    params: int
    flops: int  # forward, 2 per multiply-add, matrix products only
    state_bytes: int  # decode state of one sequence

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            params=self.params + other.params,
            flops=self.flops + other.flops,
            state_bytes=self.state_bytes + other.state_bytes,
        )


@dataclass(frozen=True, kw_only=True)
class MechanismConfig(Choice, ABC):
    """Settings of one mechanism; knows its cost before any tensor exists.

    A setting called `kernel` chooses among forms that compute the same: variants that differ in it
    alone are one function.
    """

    computes_in: ClassVar[torch.dtype | None] = None  # whatever it is given; None: in just that
    flops_are_exact: ClassVar[bool] = True  # False: at least those, where nothing can count all

    @property
    def exact_length(self) -> int | None:
        """How many tokens a sequence may have for a prefix alone, and for decoding, to be exact.

        Beyond, an output depends on how many tokens follow. None: never, which most promise.
        """
        return None

    def problems_at(self, d_model: int) -> Iterator[Problem]:
        """What is impossible at this model width, each with its field. By default nothing."""
        del d_model
        yield from ()

    @abstractmethod
    def cost(self, d_model: int, context: int, itemsize: int = 2) -> Cost:
        """Cost of one decode step of one layer, the token seeing `context` tokens, itself included.

        `itemsize` is the bytes of one number in the decode state: 2 in bfloat16, 4 in float32.
        """

    def forward_flops(self, d_model: int, context: int) -> int:
        """FLOPs of one token in a sequence that is read all at once, as in training.

        Those of a decode step, unless a step does other arithmetic to the same end.
        """
        return self.cost(d_model, context).flops

    @abstractmethod
    def build(self, d_model: int, dropout: float = 0.0) -> "Mechanism[Any]":
        """The module. `dropout` applies to attention weights, where there are any."""


class Mechanism(nn.Module, ABC, Generic[State]):
    """Causal map over a sequence, in two equivalent views: all at once, or token by token."""

    decodes_by: str = "state"  # what a step goes on from, for benches and records

    @abstractmethod
    def forward(self, x_BTD: Tensor) -> Tensor:
        """`y_BTD`: position t depends on positions 0 to t alone."""

    @abstractmethod
    def init_state(self, batch_size: int, capacity: int) -> State:
        """Empty decode state, a NamedTuple of tensors, with room for `capacity` tokens.

        A count of tokens is an int64 tensor without dimension, and not a Python number, so that a
        step can be recorded as a CUDA graph.
        """

    @abstractmethod
    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        """One more token. `y_BD` equals the matching column of `forward` in eval mode.

        The state passed in is used up: its tensors may be written in place.
        """

    def prefill(self, x_BTD: Tensor, capacity: int) -> tuple[Tensor, State]:
        """All tokens of a prompt into an empty state with room for `capacity` tokens.

        Returns `y_BTD`, equal to `forward`, and the state that `step` continues from.
        This default steps over the tokens.
        """
        state, outputs = self.init_state(x_BTD.shape[0], capacity), list[Tensor]()
        for x_BD in x_BTD.unbind(1):
            y_BD, state = self.step(x_BD, state)
            outputs.append(y_BD)
        return torch.stack(outputs, 1), state

    def forward_with_loss(self, x_BTD: Tensor) -> tuple[Tensor, Tensor | None]:
        """`forward` as training uses it, and a scalar loss of the mechanism's own, or None.

        The trainer adds the auxiliary losses of all layers to the language-model loss and records
        them apart.
        """
        return self(x_BTD), None

    def at_step(self, step: int) -> None:
        """Told the training step, from 0, before each: for a mechanism with a schedule of its own.

        What changes must be written into a buffer in place: the step may be a recorded CUDA graph.
        """
        del step

    def initial_value(self, name: str, generator: torch.Generator) -> Tensor | None:
        """Initial value of the mechanism's own parameter `name` (dotted, as in `named_parameters`).

        None, the default, stands for the model's rule: N(0, 0.02) for matrices, ones for norms and
        zeros for biases.
        """
        del name, generator
        return None

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> str:
        """Name of the kernel that `forward` runs on this device for inputs of this dtype.

        It goes into the run's record.
        """
        del device, dtype
        return "plain"


def state_bytes(state: Iterable[object]) -> int:
    """Bytes held by the tensors of a decode state; what has no dimension is a count of tokens."""
    return sum(part.nbytes for part in state if isinstance(part, Tensor) and part.ndim)
