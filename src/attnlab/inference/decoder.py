"""Decoding: one token a step, with every state in place.

On CUDA the step is recorded as a CUDA graph after a few real ones: at small batches a step is
hundreds of kernels of microseconds, and launching them one by one takes longer than they run.
The states keep their shapes and their addresses, so that one recording serves every step.

Shapes: B batch, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from attnlab.device.memory import beside, side_stream
from attnlab.model.language_model import LanguageModel
from attnlab.training.step import EAGER_STEPS


class Decoder:
    """Reads tokens one by one and says what comes next.

    `states` are those of every layer, from `LanguageModel.prefill` or `full_state`; they are used
    up. With `hold` the counts of tokens stay where they are: every step is the work of the same
    context, for measuring.
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
        self._step = torch.compile(model.step, dynamic=False) if compiled else model.step
        self.graph_problem = _problem(model, self.states)  # why no graph is used; None where one is
        self._records = graph and model.embed.weight.is_cuda and self.graph_problem is None
        self._eager_steps_left = EAGER_STEPS
        self._graph: torch.cuda.CUDAGraph | None = None
        self._tokens_B: Tensor | None = None  # one tensor for all steps that lead to the graph
        self._logits_BV = torch.empty(0)  # the graph's own, once there is one

    @torch.inference_mode()
    def step(self, tokens_B: Tensor) -> Tensor:
        """Read one more token a sequence; `logits_BV` of the next, valid until the next step."""
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
        for mine, new in zip(tensors(self.states), tensors(after), strict=True):
            if not new.is_set_to(mine) and not (self.hold and is_count(mine)):
                mine.copy_(new)
        return logits_BV

    def _recorded(self, tokens_B: Tensor) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side_stream(tokens_B.device)):
            self._logits_BV = self._advance(tokens_B)
        return graph


@torch.inference_mode()
def full_state(model: LanguageModel, batch_size: int, context: int) -> list[Any]:
    """States of the size and count of a model that has read `context` - 1 tokens, for measuring.

    The numbers in them are random. With `Decoder(..., hold=True)` each step sees `context` tokens.
    """
    states = [mechanism.init_state(batch_size, context) for mechanism in model.mechanisms()]
    for part in tensors(states):
        if is_count(part):
            part.fill_(context - 1)
        elif part.is_floating_point():
            part.normal_()
    return states


def tensors(state: Any) -> Iterator[Tensor]:
    """The tensors of a decode state, or of several, in order."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, tuple | list):
        for part in state:  # pyright: ignore[reportUnknownVariableType]
            yield from tensors(part)


def is_count(part: Tensor) -> bool:
    """Whether this part of a state counts tokens."""
    return part.ndim == 0 and not part.is_floating_point()


def _problem(model: LanguageModel, states: Sequence[Any]) -> str | None:
    for mechanism, state in zip(model.mechanisms(), states, strict=True):
        for part in _others(state):
            return (
                f"the decode state of {type(mechanism).__name__} holds {type(part).__name__}, "
                "which a recorded graph cannot change; keep a count of tokens in an int64 tensor"
            )
    return None


def _others(state: Any) -> Iterator[Any]:
    """What in a state is neither a tensor nor a container of some."""
    if isinstance(state, tuple | list):
        for part in state:  # pyright: ignore[reportUnknownVariableType]
            yield from _others(part)
    elif not isinstance(state, Tensor):
        yield state
