"""Decoding: one token per sequence and step, with states that are updated in place.

On CUDA the step is recorded as a CUDA graph after a few eager steps: at small batch sizes a step is
hundreds of kernels of microseconds, and launching them one by one takes longer than running them.
The states keep their shapes and addresses, so that one graph serves every step.

Shapes: B batch, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attnlab.device.measuring import beside, side_stream
from attnlab.model.language_model import LanguageModel
from attnlab.training.step import EAGER_STEPS


class Decoder:
    """A model in decoding: `step` reads one token per sequence and returns the next logits.

    Args:
        model: the model; it is put in eval mode.
        states: the decode state of every layer, from `LanguageModel.prefill` or `full_state`. They
            are changed in place.
        graph: True to record a CUDA graph, where that is possible.
        compiled: True to compile the step, once for each kind of layer.
        hold: True to keep the token counts of the states constant, so that every step does the work
            of the same context, for measurements.
    """

    def __init__(
        self,
        model: LanguageModel,
        states: Sequence[Any],
        *,
        graph: bool = True,
        compiled: bool = False,
        hold: bool = False,
    ) -> None:
        self.model, self.states, self.hold = model.eval(), list(states), hold
        self._step = partial(model.step, compiled=compiled)
        self.graph_problem = _problem(model, self.states)  # why no graph is possible; None: it is
        self._records = graph and model.embed.weight.is_cuda and self.graph_problem is None
        self._eager_steps_left = EAGER_STEPS
        self._graph: torch.cuda.CUDAGraph | None = None
        self._tokens_B: Tensor | None = None  # one tensor for all steps, since the graph reads it
        self._logits_BV = torch.empty(0)  # the output of the graph, once there is one

    @torch.inference_mode()
    def step(self, tokens_B: Tensor) -> Tensor:
        """Read one more token per sequence; return `logits_BV`, valid until the next step."""
        if not self._records:
            return self._advance(tokens_B)
        if self._tokens_B is None:
            self._tokens_B = tokens_B.clone()
        self._tokens_B.copy_(tokens_B)
        if self._eager_steps_left:
            self._eager_steps_left -= 1
            with beside(tokens_B.device):
                return self._advance(self._tokens_B)
        if self._graph is None:
            self._graph = self._recorded(self._tokens_B)
        self._graph.replay()
        return self._logits_BV

    def _advance(self, tokens_B: Tensor) -> Tensor:
        logits_BV, after = self._step(tokens_B, self.states)
        if self.graph_problem is not None:
            self.states = after
            return logits_BV
        changed = [
            (mine, new)
            for mine, new in zip(tensors(self.states), tensors(after), strict=True)
            if not new.is_set_to(mine) and not (self.hold and is_count(mine))
        ]
        if changed:  # one kernel for the counts of all layers
            mine, new = zip(*changed, strict=True)
            held = {_storage(part) for part in mine}  # one that moves on is read before written
            new = [part.clone() if _storage(part) in held else part for part in new]
            torch._foreach_copy_(mine, new)  # pyright: ignore
        return logits_BV

    def _recorded(self, tokens_B: Tensor) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side_stream(tokens_B.device)):
            self._logits_BV = self._advance(tokens_B)
        return graph


@torch.inference_mode()
def full_state(model: LanguageModel, batch_size: int, context: int) -> list[Any]:
    """Return the states of a model that has read `context` - 1 tokens, for measurements.

    Their values are random. With `Decoder(..., hold=True)` each step sees `context` tokens.
    """
    states = [mechanism.init_state(batch_size, context) for mechanism in model.mechanisms()]
    for part in tensors(states):
        if is_count(part):
            part.fill_(context - 1)
        elif part.is_floating_point():
            part.normal_()
    return states


def tensors(state: Any) -> Iterator[Tensor]:
    """Yield the tensors of a decode state, or of several, in order."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, tuple | list):
        for part in state:  # pyright: ignore[reportUnknownVariableType]
            yield from tensors(part)


def _storage(part: Tensor) -> int:
    return part.untyped_storage().data_ptr()


def is_count(part: Tensor) -> bool:
    """True if this part of a state counts tokens."""
    return part.ndim == 0 and not part.is_floating_point()


def _problem(model: LanguageModel, states: Sequence[Any]) -> str | None:
    for mechanism, state in zip(model.mechanisms(), states, strict=True):
        for part in others(state):
            return (
                f"the decode state of {type(mechanism).__name__} contains {type(part).__name__}, "
                "which a CUDA graph cannot change; keep a count of tokens in an int64 tensor"
            )
    return None


def others(state: Any) -> Iterator[Any]:
    """Yield the parts of a state that are neither tensors nor containers."""
    if isinstance(state, tuple | list):
        for part in state:  # pyright: ignore[reportUnknownVariableType]
            yield from others(part)
    elif not isinstance(state, Tensor):
        yield state
