"""The first property: a call gives the same bits again, and changes nothing but its result.

Without it no other comparison of calls means anything, so it is judged first, and if it is violated
it is all that is judged.

Shapes: B batch, T tokens, D model width.
"""

import math
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from attnlab.checks.modes import (
    BFLOAT16_TRAIN,
    DROPOUT,
    EVAL,
    FLOAT32_TRAIN,
    TRAIN,
    EmptyAs,
    Mode,
    Place,
    contexts_of,
    seeded,
)
from attnlab.checks.processes import generator_state, global_state, restored, torch_settings
from attnlab.checks.result import Finding, mechanism_property, relative, same_bits
from attnlab.checks.small_configs import CHEAP
from attnlab.checks.subject import Subject
from attnlab.mechanism import Mechanism

TINY = 2.0**-30  # size of the output's gradient in training, about that of a mean over a batch


@mechanism_property(
    "the same call twice gives the same bits and changes nothing else",
    cause="an operation in place on the input or on a result, a buffer or parameter written or "
    "made in `forward`, a seed set inside, random numbers of Python or numpy, memory of "
    "`torch.empty` that is read before it is written, or another path where no gradients are "
    "computed",
)
def repeated(subject: Subject) -> Iterator[Finding]:
    """Call twice in every mode, and compare results, inputs, the module and global generators."""
    before = torch_settings()
    with seeded(0):
        built = subject.made()
    for name in restored(before):
        yield _finding(name, "the constructor changes it", None)
    lazy = [name for name, parameter in built.named_parameters() if is_lazy(parameter)]
    for name in lazy:
        yield Finding(name, math.inf, words="has no shape until the first call of forward")
    if lazy:
        return
    modes = [EVAL, TRAIN, BFLOAT16_TRAIN]
    modes += [DROPOUT] if subject.can_drop() else []
    trials = [(EVAL, 2, 5), (FLOAT32_TRAIN, 2, 5), *((mode, 8, subject.short) for mode in modes)]
    trials.append((FLOAT32_TRAIN, 2, CHEAP))
    if subject.past > subject.short:
        trials += [(mode, 2, subject.past) for mode in (EVAL, FLOAT32_TRAIN)]
    for trial in trials:
        try:
            with subject.at(*trial) as place:
                yield from _forward_twice(subject, trial[0], place)
                if subject.decodes and trial[0] == EVAL:
                    yield from _decoded_twice(subject, place)
            for name in restored(before):
                yield _finding(name, "a call changes it", place)
        except Exception:
            if trial == trials[0]:
                raise
            return  # one that only some shapes raise is reported by the other properties


class _Call(NamedTuple):
    """A call of `forward`: its input, a copy of its output, and how it left torch's generator."""

    x_BTD: Tensor
    y_BTD: Tensor
    copy_BTD: Tensor
    drawn: bytes
    draws: bool


def _call(
    subject: Subject, mode: Mode, mechanism: Mechanism[Any], given_BTD: Tensor, seed: int
) -> _Call:
    leaf_BTD = given_BTD.clone().requires_grad_(mode.training)
    x_BTD = leaf_BTD.clone() if mode.training else leaf_BTD  # only a leaf forbids writing
    with seeded(seed), torch.set_grad_enabled(mode.training):
        before = generator_state()
        y_BTD, _ = subject.forward_with_loss(mechanism, mode, x_BTD, seed=None)
        after = generator_state()
    return _Call(x_BTD, y_BTD, y_BTD.detach().clone(), after, after != before)


def _forward_twice(subject: Subject, mode: Mode, place: Place) -> Iterator[Finding]:
    """Call with one input, with another one, and with the first one again."""
    mechanism, found, limit = subject.build(mode), list[Finding](), subject.limit_in(mode)
    given_BTD = subject.tokens(place.batch, place.tokens, mode)
    with _Unchanged(mechanism, place, found):
        first = _call(subject, mode, mechanism, given_BTD, seed=1)
    changed = not torch.equal(first.x_BTD, given_BTD)
    yield _finding("the input", "forward changes it in place" if changed else "", place)
    by_first = dict[str, Tensor]()
    if mode.training:
        with _Unchanged(mechanism, place, found):
            by_first = yield from _gradients(mechanism, first, given_BTD, place)
    other = _call(subject, mode, mechanism, given_BTD.flip(1), seed=2)
    words = "a call draws from it outside of training, or seeds it"
    if mode.training:
        words = "a call seeds it" if first.drawn == other.drawn else ""
    yield _finding("torch's random generator", words if first.draws else "", place)
    overwritten = not torch.equal(first.y_BTD.detach().nan_to_num(), first.copy_BTD.nan_to_num())
    yield _finding("the output", "the next call writes it" if overwritten else "", place)
    for parameter in mechanism.parameters():  # as those of an earlier micro-batch
        parameter.grad = torch.ones_like(parameter)
    with _Unchanged(mechanism, place, found), _other_memory(subject):
        again = _call(subject, mode, mechanism, given_BTD, seed=1)
    mechanism.zero_grad()
    yield from found
    yield _same("forward", again.copy_BTD, first.copy_BTD, place)
    for name, context in contexts_of(mechanism).items():
        with context(), seeded(1):
            y_BTD = subject.forward_with_loss(mechanism, mode, given_BTD, seed=None)[0]
        deviation = float(relative(y_BTD, first.copy_BTD).max())
        yield Finding(f"forward within {name}", deviation, limit, place=place)
        if by_first and y_BTD.requires_grad and deviation <= limit:
            size = _size_of_gradients(subject, mode)
            yield _by_another(mechanism, y_BTD, by_first, size, limit, place)
    by_again = dict[str, Tensor]()
    if mode.training:
        by_again = yield from _gradients(mechanism, again, given_BTD, place)
    for name in by_again.keys() & by_first.keys():
        yield _same(f"gradient of {name}", by_again[name], by_first[name], place)


def _gradients(
    mechanism: Mechanism[Any], call: _Call, given_BTD: Tensor, place: Place
) -> Generator[Finding, None, dict[str, Tensor]]:
    """Return the gradients of one backward pass by the names of the parameters.

    Autograd does not notice what a kernel writes: an input or a gradient that others also read
    must be as it was.
    """
    tensors = {"the input": call.x_BTD, **dict(mechanism.named_parameters())}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
    by_y_BTD = call.copy_BTD * 2
    given_by_BTD = by_y_BTD.clone()
    found: Any = torch.autograd.grad(
        call.y_BTD, list(tensors.values()), by_y_BTD, allow_unused=True
    )
    by_name = {name: by.clone() for name, by in zip(tensors, found, strict=True) if by is not None}
    kept = {
        "the input": (call.x_BTD, given_BTD),
        "the output": (call.y_BTD, call.copy_BTD),
        "the gradient by the output": (by_y_BTD, given_by_BTD),
    }
    for name, (after_BTD, before_BTD) in kept.items():
        changed = not torch.equal(after_BTD.nan_to_num(), before_BTD.nan_to_num())
        yield _finding(name, "the backward pass changes it in place" if changed else "", place)
    for name, parameter in mechanism.named_parameters():
        words = "" if parameter.grad is None else "the backward pass writes it: autograd adds to it"
        yield _finding(f"`.grad` of {name}", words, place)
        parameter.grad = None
    return by_name


def _size_of_gradients(subject: Subject, mode: Mode) -> float:
    """Return a power of 2: tiny in the dtypes of training, where a mean makes gradients small."""
    if torch.finfo(subject.precision).max < 1 / TINY:
        return 1.0
    return TINY if mode.float32 or mode.autocast else 1 / TINY


def _by_another(
    mechanism: Mechanism[Any],
    y_BTD: Tensor,
    by_name: dict[str, Tensor],
    size: float,
    limit: float,
    place: Place,
) -> Finding:
    """Compare the gradients of parameters with those by `size` times the output's gradient.

    It lies in another order of memory, too.
    """
    names = [name for name, _ in mechanism.named_parameters() if name in by_name]
    parameters = [mechanism.get_parameter(name) for name in names]
    by_y_BTD = (y_BTD.detach() * 2 * size).transpose(0, 1).contiguous().transpose(0, 1)
    found = torch.autograd.grad(y_BTD, parameters, by_y_BTD)
    deviation = max(
        (
            float(relative(by.double() / size, by_name[name]).max())
            for name, by in zip(names, found, strict=True)
        ),
        default=0.0,
    )
    words = "is not proportional to the output's gradient, or depends on its order of memory"
    return Finding("the backward pass", deviation, limit, words * (deviation > limit), place)


@torch.no_grad()
def _decoded_twice(subject: Subject, place: Place) -> Iterator[Finding]:
    """Decode the last tokens after a prompt, twice; a short sequence from an empty state, too."""
    mechanism, found = subject.build(), list[Finding]()
    x_BTD = subject.tokens(place.batch, place.tokens)
    given_BTD, draws = x_BTD.clone(), False
    for prompt in (0, 3) if place.tokens <= 5 else (place.tokens - 19,):
        with _Unchanged(mechanism, place, found), seeded(1):
            before = generator_state()
            first_BTD = subject.decode(mechanism, x_BTD, prompt, seed=None).clone()
            draws = draws or generator_state() != before
            with _other_memory(subject):
                again_BTD = subject.decode(mechanism, x_BTD, prompt)
        changed = not torch.equal(x_BTD, given_BTD)
        yield _finding("the input", "decoding changes it in place" if changed else "", place)
        yield _same("decoding", again_BTD, first_BTD, place)
        with torch.inference_mode():
            again_BTD = subject.decode(mechanism, x_BTD, prompt)
        yield _same("decoding within torch.inference_mode", again_BTD, first_BTD, place)
    yield from found
    words = "decoding: a call draws from it outside of training, or seeds it"
    yield _finding("torch's random generator", words if draws else "", place)


def _other_memory(subject: Subject) -> AbstractContextManager[Any]:
    """Return a context in which unwritten memory is not a number; torch would compile nothing."""
    return EmptyAs(math.nan) if subject.device.type == "cpu" else nullcontext()


class _Unchanged:
    """A context after which the module and global generators must be the same."""

    def __init__(self, mechanism: Mechanism[Any], place: Place, found: list[Finding]) -> None:
        self.mechanism, self.place, self.found = mechanism, place, found

    def __enter__(self) -> None:
        self.tensors, self.world = _tensors(self.mechanism), _world(self.mechanism)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None:
            return
        after = _tensors(self.mechanism)
        persistent = set(self.mechanism.state_dict()) | set(self.tensors)
        for name in (name for name in {**self.tensors, **after} if name in persistent):
            words = ""
            if name not in self.tensors:
                words = "appears in the first call of forward: make it in the constructor"
            elif name not in after or not _alike(after[name], self.tensors[name]):
                words = "a call changes it"
            self.found.append(_finding(name, words, self.place))
        world = _world(self.mechanism)
        for name, before in self.world.items():
            words = "" if world.get(name) == before else "a call changes it"
            self.found.append(_finding(name, words, self.place))


def _tensors(mechanism: Mechanism[Any]) -> dict[str, Tensor]:
    named = dict[str, Tensor]([*mechanism.named_parameters(), *mechanism.named_buffers()])
    grads = {f"`.grad` of {name}": each.grad for name, each in mechanism.named_parameters()}
    named |= {name: grad for name, grad in grads.items() if grad is not None}
    return {name: tensor.detach().clone() for name, tensor in named.items()}


def _world(mechanism: Mechanism[Any]) -> dict[str, Any]:
    """Return the states of global generators, and the switches of the module, by name."""
    parts, parameters = mechanism.named_modules(), mechanism.named_parameters()
    modes = {f"`training` of {name or 'the module'}": part.training for name, part in parts}
    trained = {f"`requires_grad` of {name}": each.requires_grad for name, each in parameters}
    return {**global_state(), **modes, **trained}


def _alike(after: Tensor, before: Tensor) -> bool:
    """True if nothing was written; a table that has grown is a new one."""
    if after.shape != before.shape or after.dtype != before.dtype:
        return after.numel() > before.numel()
    return torch.equal(after.nan_to_num(), before.nan_to_num())


def _finding(where: str, words: str, place: Place | None) -> Finding:
    return Finding(where, math.inf if words else 0.0, words=words, place=place)


def _same(where: str, found: Tensor, expected: Tensor, place: Place) -> Finding:
    """Compare the bits of two calls, and say how the second one differs."""
    if found.shape != expected.shape:
        return Finding(where, math.inf, words="another shape the second time", place=place)
    same = same_bits(where, found, expected, place)
    words = f"differs by {same.deviation:.2g} the second time" if same.deviation else ""
    return same._replace(words=words)
