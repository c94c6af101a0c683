"""The interface of every sequence-mixing mechanism, and the cost it states.

Shapes: B batch, T tokens, D model width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from attnlab.config import Choice, Problem

State = TypeVar("State", bound=tuple[Any, ...])
Built = TypeVar("Built")
Handed = dict[str, Any]  # tensors, or tuples of tensors, by the name that their giver states
Giver = Literal["first", "nearest"]  # of the earlier layers that give something


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of one layer for one token that attends to `context` tokens, itself included."""

    params: int  # number of parameters
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
    """Settings of one mechanism. Its cost is known before any tensor exists.

    Defining a subclass registers the mechanism under the class name in snake case. A setting
    called `kernel` chooses among implementations of the same function: variants that differ in
    nothing else count as one function.
    """

    computes_in: ClassVar[torch.dtype | None] = None  # dtype inside; None: that of the input
    counts_flops: ClassVar[bool] = True  # False: no table has its FLOPs; `cost` estimates them
    grows_with_width: ClassVar[tuple[str, ...]] = (
        *("n_heads", "n_kv_heads", "num_heads", "num_kv_heads"),
        *("q_lora_rank", "kv_lora_rank", "index_n_heads"),
    )  # ^ fields that a model of another size multiplies as its width, where it has them

    @property
    def exact_length(self) -> int | None:
        """Length up to which outputs do not depend on the number of later tokens.

        Up to this length `forward` of a prefix and decoding agree with `forward` of the whole
        sequence. None, the default: at every length.
        """
        return None

    def problems_at(self, d_model: int) -> Iterator[Problem]:
        """Yield a problem for each field that is impossible at this model width. Default: none."""
        del d_model
        yield from ()

    def gives(self, d_model: int) -> tuple[str, ...]:
        """Return the names of what later layers may take from this one. Default: nothing.

        A name says all that a taker must know, such as `values of 4 heads of 16`. See
        `HandingMechanism`.
        """
        del d_model
        return ()

    def takes(self, d_model: int) -> Mapping[str, Giver]:
        """Return the names of what this layer takes, and from which earlier layer. Default: none.

        It is the first, or the nearest, of the earlier layers that give something of that name.
        """
        del d_model
        return {}

    def giver(self) -> "MechanismConfig | None":
        """Return a layer that gives what this one takes, to stand before it in a check or a bench.

        None, the default, if there is none: such a layer is checked in a study alone.
        """
        return None

    @property
    def states_cost(self) -> bool:
        """True if the class states its cost; tables of a mechanism that does not have no costs."""
        return type(self).cost is not MechanismConfig.cost

    @property
    def states_flops(self) -> bool:
        """True if its FLOPs are known: a kernel of another package may not let them be counted."""
        return self.states_cost and self.counts_flops

    def cost(self, d_model: int, context: int, itemsize: int = 2) -> Cost:
        """Return the cost of one decode step of one layer. Optional: see `states_cost`.

        This default counts the parameters of the built module, and takes every one of them for one
        multiply-add and the state for none: an estimate to plan with, which is not shown.

        Args:
            d_model: model width.
            context: tokens that the token attends to, itself included.
            itemsize: bytes per number of the decode state: 2 in bfloat16, 4 in float32.
        """
        del context, itemsize
        params = _counted_params(self, d_model)
        return Cost(params=params, flops=2 * params, state_bytes=0)

    def forward_flops(self, d_model: int, context: int) -> int:
        """Return the FLOPs per token of `forward`, as in training, at `context` tokens.

        They are those of a decode step, unless decoding computes the same function another way.
        """
        return self.cost(d_model, context).flops

    @abstractmethod
    def build(self, d_model: int, dropout: float = 0.0) -> "Mechanism[Any]":
        """Return the module. `dropout` applies to attention weights, where there are any."""


class Mechanism(nn.Module, ABC, Generic[State]):
    """Causal map over a sequence, computed at once and, if it has `step`, token by token.

    `forward` alone is enough to train. Text is generated with `init_state` and `step`; without them
    `forward` reads the whole text again for every token.

    Casts of the module, such as `.to(torch.bfloat16)`, keep complex parameters and buffers complex,
    with parts of at least float32.
    """

    decodes_by: str = "state"  # how a step uses earlier tokens, for benchmarks and records

    @abstractmethod
    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return `y_BTD`, whose position t depends on positions 0 to t alone."""

    @property
    def decodes(self) -> bool:
        """True if the class has `init_state` and `step`."""
        cls = type(self)
        return cls.init_state is not Mechanism.init_state and cls.step is not Mechanism.step

    def init_state(self, batch_size: int, capacity: int) -> State:
        """Return an empty decode state for up to `capacity` tokens, a NamedTuple of tensors.

        A number of tokens is an int64 tensor without dimension, not a Python number, so that a
        step can be recorded as a CUDA graph. Optional, with `step`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no init_state")

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        """Return `y_BD` of one more token, and the next state.

        In eval mode `y_BD` equals the output of `forward` at this position. The state that is
        passed in must not be used again: its tensors may be written in place. Optional.
        """
        raise NotImplementedError(f"{type(self).__name__} has no step")

    def prefill(self, x_BTD: Tensor, capacity: int) -> tuple[Tensor, State]:
        """Return `y_BTD` of a prompt, equal to `forward`, and the state after it.

        The state holds up to `capacity` tokens, and `step` continues from it. This default calls
        `step` for each token.
        """
        state, outputs = self.init_state(x_BTD.shape[0], capacity), list[Tensor]()
        for x_BD in x_BTD.unbind(1):
            y_BD, state = self.step(x_BD, state)
            outputs.append(y_BD)
        return torch.stack(outputs, 1), state

    def forward_with_loss(self, x_BTD: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return `y_BTD` as in training, and a scalar auxiliary loss in nats, or None.

        The trainer adds the auxiliary losses of all layers to the language-model loss and records
        them separately.
        """
        return self(x_BTD), None

    def at_step(self, step: int) -> None:
        """Set the training step, counted from 0, for a mechanism with a schedule of its own.

        The trainer calls it before each step. A change must be written into a buffer in place: the
        step may be a recorded CUDA graph.
        """
        del step

    def initial_value(self, name: str, generator: torch.Generator) -> Tensor | None:
        """Return the initial value of parameter `name` (dotted, as in `named_parameters`), or None.

        None, the default: the parameter begins with what the constructor set. `nn.Linear` and
        `nn.Embedding` that the constructor left alone begin at N(0, 0.02), with biases of zero.
        """
        del name, generator
        return None

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> str:
        """Return the name of the kernel that `forward` runs on this device for this dtype.

        It is written to the run's record.
        """
        del device, dtype
        return "plain"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Mechanism[State]":
        return super()._apply(partial(_keeping_complex, fn), recurse)


class HandingMechanism(Mechanism[State]):
    """A mechanism that may hand tensors to later layers, and take those of earlier ones.

    Its config names what it `gives` and `takes`. `forward`, `prefill` and `step` get a dict,
    `handed`, that holds what the layer takes, by name, and put in what it gives, as in
    `handed["values"] = v_BGTV`. In `forward` and `prefill` that is for all tokens. In `step` it is
    for the one more token, or it is the giver's decode state after that token, which a taker reads
    and does not write, so that it is held, and counted, once. What is taken is not changed.
    `handed` is None in a model in which no layer takes what this one gives.

    A model whose layer takes what no earlier layer gives is refused. To decode, `prefill` is
    needed, too.
    """

    @abstractmethod
    def forward(self, x_BTD: Tensor, handed: Handed | None = None) -> Tensor:
        """Return `y_BTD`; see `Mechanism.forward`."""

    def prefill(
        self, x_BTD: Tensor, capacity: int, handed: Handed | None = None
    ) -> tuple[Tensor, State]:
        """Return `y_BTD` of a prompt and the state after it; see `Mechanism.prefill`."""
        del x_BTD, capacity, handed
        raise NotImplementedError(f"{type(self).__name__} has no prefill, which handing needs")

    def forward_with_loss(
        self, x_BTD: Tensor, handed: Handed | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return `y_BTD` and an auxiliary loss or None; see `Mechanism.forward_with_loss`."""
        return (self(x_BTD) if handed is None else self(x_BTD, handed)), None


def _keeping_complex(fn: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """Return `fn(tensor)`, applied to real and imaginary parts: torch would drop the latter."""
    if not tensor.is_complex():
        return fn(tensor)
    parts = torch.view_as_real(tensor)
    moved = fn(parts)
    if moved.dtype.itemsize < 4:  # there are no complex numbers of bfloat16
        moved = parts.to(moved.device, torch.float32)
    return torch.view_as_complex(moved)


@cache
def _counted_params(config: MechanismConfig, d_model: int) -> int:
    module = without_memory(lambda: config.build(d_model))
    return sum(parameter.numel() for parameter in module.parameters())


def without_memory(build: Callable[[], Built]) -> Built:
    """Return what `build` returns, with its tensors on the meta device.

    On the CPU if the constructor computes with values, which the meta device does not have.
    """
    try:
        with torch.device("meta"):
            return build()
    except (NotImplementedError, RuntimeError):
        return build()


def state_bytes(state: Sequence[Any]) -> int:
    """Return the bytes of a decode state's tensors, without token counts (no dimension)."""
    tensors = (part for part in state if isinstance(part, Tensor) and part.ndim)
    nested = (part for part in state if isinstance(part, tuple))
    return sum(part.nbytes for part in tensors) + sum(map(state_bytes, nested))
