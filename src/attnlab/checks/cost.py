"""The stated cost of a mechanism, compared with the measured one.

Parameters are counted. FLOPs are those of the matrix products of one decode step, and of the
forward pass of a sequence, as torch's counter counts them, fused kernels of attention included.
Bytes are those of the smallest decode state that holds the context. What a call keeps beside it
must be nothing.

Shapes: B batch, T tokens, D model width.
"""

import math
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import cache
from gc import get_referents
from types import CellType, FunctionType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from attnlab.checks.modes import (
    BFLOAT16_EVAL,
    EVAL,
    FLOAT32_EVAL,
    TRAIN,
    Mode,
    NotJudgedError,
    placed,
)
from attnlab.checks.result import Finding, mechanism_property
from attnlab.checks.small_configs import FAR, LONG
from attnlab.checks.subject import Subject
from attnlab.config import is_own
from attnlab.device.flops import counts_flex_attention, flop_counter
from attnlab.inference.decoder import others
from attnlab.mechanism import Cost, Mechanism, state_bytes
from attnlab.mechanisms.fla_layer import FlaLayer

_CACHED = type(cache(len))  # a function whose results are kept
MOST_OBJECTS = 100_000  # that are looked at for memory that they hold
CONTEXT = 300  # tokens: past most windows of a check, and no multiple of a chunk
FORWARD_OFF = 0.05  # relative error of the stated FLOPs of `forward`, which are whole per token


@mechanism_property(
    "parameters are as stated",
    cause="`cost` counts a layer too many or too few: a norm, a bias, a gate",
)
def params(subject: Subject) -> Iterator[Finding]:
    """Count the elements of the parameters, at two model widths; a context changes nothing."""
    _require_cost(subject)
    for each in (subject, *_wider(subject)):
        counted = sum(parameter.numel() for parameter in each.build().parameters())
        for context in (1, CONTEXT, FAR):
            where = f"d_model {each.d_model}, context {context}"
            yield _counted(where, _stated(each, context).params, counted, "parameters")


@mechanism_property(
    "FLOPs of a step are as stated",
    cause="`cost` leaves out a projection, the scores or the values, counts a multiply-add once, "
    "or does not stop growing at the window",
)
@torch.no_grad()
def flops(subject: Subject) -> Iterator[Finding]:
    """Count the FLOPs of a decode step, at several contexts."""
    _require_cost(subject, flops=True, decoding=True)
    for batch, context in _contexts(subject):
        stated = _stated(subject, context).flops
        counted = _of_step(subject, EVAL, batch, context).flops // batch
        yield _counted(f"batch {batch}, context {context}", stated, counted)
    for context in () if subject.quick else (CONTEXT, FAR):
        stated, counted = _stated(subject, context).flops, _of_first_step(subject, context)
        if stated != counted and context == CONTEXT:
            break  # a step computes less while the state is empty
        yield _counted(f"with room for {context} tokens", stated, counted)
    for wider in _wider(subject):
        counted = _of_step(wider, EVAL, 1, 7).flops
        yield _counted(f"d_model {wider.d_model}, context 7", _stated(wider, 7).flops, counted)


@mechanism_property(
    "FLOPs of the forward pass are as stated",
    cause="`forward` computes another way than a step, such as by chunks or with masked pairs, and "
    "`forward_flops` does not say so",
)
@torch.no_grad()
def forward_flops(subject: Subject) -> Iterator[Finding]:
    """Count the FLOPs per token of the forward pass of a sequence, as long as decoding's."""
    _require_cost(subject, flops=True)
    mechanism = subject.build()
    trials = [(1, subject.past), (4, max(CONTEXT, subject.past)), *_contexts(subject)[4:]]
    for batch, tokens in trials:
        with subject.at(EVAL, batch, tokens):
            x_BTD = subject.tokens(batch, tokens)
            total = _counted_in(lambda x_BTD=x_BTD: subject.forward(mechanism, EVAL, x_BTD))
        counted = total.flops // (batch * tokens)
        stated = sum(each.forward_flops(subject.d_model, tokens) for each in subject.judged)
        if abs(stated - counted) <= FORWARD_OFF * counted:
            counted = stated
        where = f"batch {batch}, {tokens} tokens"
        found = _counted(where, stated, counted, "FLOPs/token")
        yield found._replace(note=total.note)


@mechanism_property(
    "bytes of the decode state are as stated",
    cause="`cost` counts keys without values, forgets `itemsize`, or the state holds more tokens "
    "than it needs",
)
@torch.no_grad()
def bytes_of_state(subject: Subject) -> Iterator[Finding]:
    """Count the bytes of the decode state after a context, in several dtypes."""
    _require_cost(subject, decoding=True)
    for part in others(subject.built().init_state(1, CONTEXT)):
        # the bytes of a cache of flash-linear-attention are counted by its layer
        is_known = part is None or isinstance(part, int | float | str)
        is_known = is_known or isinstance(subject.config, FlaLayer)
        words = "" if is_known else "is not counted: a state is a NamedTuple of tensors"
        yield Finding(f"the state's {type(part).__name__}", math.inf if words else 0.0, words=words)
    dtypes = {EVAL: subject.dtype, FLOAT32_EVAL: torch.float32, BFLOAT16_EVAL: torch.bfloat16}
    if subject.config.computes_in is not None or not subject.serves_float32:
        dtypes = {EVAL: subject.dtype}
    for mode, dtype in dtypes.items():
        for batch, context in _contexts(subject) if mode == EVAL else ((4, CONTEXT),):
            stated = _stated(subject, context, dtype.itemsize)
            counted = _of_step(subject, mode, batch, context).state_bytes // batch
            name = str(dtype).removeprefix("torch.")
            where = f"{name}, batch {batch}, context {context}"
            yield _counted(where, stated.state_bytes, counted, "bytes")
    for context in (CONTEXT, FAR):
        stated = _stated(subject, context, subject.dtype.itemsize).state_bytes
        counted = state_bytes(subject.built().init_state(1, context))
        if stated != counted and context == CONTEXT:
            break  # it begins with less than a step leaves
        yield _counted(f"at first, for {context} tokens", stated, counted, "bytes")
    for wider in _wider(subject):
        stated = _stated(wider, 7, subject.dtype.itemsize).state_bytes
        counted = _of_step(wider, EVAL, 1, 7).state_bytes
        yield _counted(f"d_model {wider.d_model}, context 7", stated, counted, "bytes")


@mechanism_property(
    "a call keeps no memory",
    cause="outputs, inputs or a cache that are appended to a list, or kept on the module or in a "
    "global until the next call",
)
def memory(subject: Subject) -> Iterator[Finding]:
    """Measure what module, class and file hold after calls, and after calls of larger batches."""
    for mode in (EVAL, TRAIN):
        held = list[Held]()
        mechanism = subject.build(mode)
        with subject.at(mode, 2, 19) as place:
            for batch_size, calls in ((2, 1), (2, 2), (8, 1)):
                x_BTD = subject.tokens(batch_size, 19, mode)
                for _ in range(calls):
                    subject.forward(mechanism, mode, x_BTD)
                    if mode == EVAL and subject.decodes:
                        with torch.no_grad():
                            subject.decode(mechanism, x_BTD[:, :6], 3)
                held.append(held_by(mechanism))
        few, many, large = held
        words = ""
        if many.bytes > few.bytes or many.items > few.items:
            more = max(many.bytes - few.bytes, many.items - few.items)
            unit = "bytes" if many.bytes > few.bytes else "items"
            words = f"{more // 2:,} more {unit} after each call"
        elif large.bytes > many.bytes:
            words = f"{(large.bytes - many.bytes) // 6:,} bytes per sequence are kept after a call"
        yield Finding("", math.inf if words else 0.0, words=words, place=place)


class Held(NamedTuple):
    """Memory that Python objects hold: bytes of tensors and arrays, and items of containers."""

    bytes: int
    items: int


def held_by(mechanism: Mechanism[Any]) -> Held:
    """Return what the module holds, and the classes and files of its parts beside torch's."""
    parts = list(mechanism.modules())
    classes = {cls for part in parts for cls in type(part).__mro__ if cls.__module__ in sys.modules}
    of_others = "torch", *sys.stdlib_module_names
    own = {cls for cls in classes if cls.__module__.split(".")[0] not in of_others}
    files = {cls.__module__: vars(sys.modules[cls.__module__]) for cls in own if is_own(cls)}
    stack: list[Any] = [*map(vars, parts), *map(vars, own), *files.values()]
    seen, size, items = dict[int, Any](), dict[int, int](), 0
    while stack and len(seen) < MOST_OBJECTS:
        held = stack.pop()
        if id(held) in seen:
            continue
        seen[id(held)] = held  # alive, so that nothing else gets its number
        if isinstance(held, Tensor):
            storage = held.untyped_storage()
            size[storage.data_ptr()] = storage.nbytes()
        elif isinstance(held, np.ndarray):
            size[id(held)] = held.nbytes
        elif isinstance(held, Mapping):
            items += len(held)
            stack.extend(held.values())
        elif isinstance(held, list | tuple | set | frozenset | deque):
            items += len(held)
            stack.extend(held)
        elif files:
            stack.extend(_inside(held, files))
    return Held(sum(size.values()), items)


def _inside(held: Any, files: Collection[str]) -> list[Any]:
    """Return what a function, its cache or an object of the files holds."""
    if isinstance(held, CellType):
        return get_referents(held)
    if isinstance(held, staticmethod | classmethod):
        return [held.__func__]
    if isinstance(held, SimpleNamespace) or type(held).__module__ in files:
        return [vars(held)] if hasattr(held, "__dict__") else []
    if getattr(held, "__module__", None) not in files:
        return []
    if isinstance(held, _CACHED):
        return get_referents(held)
    if isinstance(held, type):
        return [vars(held)]
    if isinstance(held, FunctionType):
        return [held.__defaults__, held.__kwdefaults__, held.__closure__, vars(held)]
    return []


def _contexts(subject: Subject) -> list[tuple[int, int]]:
    """Return (batch size, context) pairs."""
    short = [(4 if context == 7 else 1, context) for context in sorted({1, 7, subject.past})]
    return [*short, (1, CONTEXT), *[(1, max(LONG, subject.past))] * (not subject.quick)]


def _wider(subject: Subject) -> list[Subject]:
    """Return the mechanism at twice the model width, in the whole check, if that is possible."""
    double = 2 * subject.d_model
    if subject.quick or list(subject.config.problems_at(double)):
        return []
    if "wider" not in subject.memo:
        subject.memo["wider"] = replace(subject, d_model=double)
    return [subject.memo["wider"]]


def _stated(subject: Subject, context: int, itemsize: int = 2) -> Cost:
    """Return the stated cost of a decode step of all layers that are judged."""
    costs = [each.cost(subject.d_model, context, itemsize) for each in subject.judged]
    return sum(costs[1:], costs[0])


class Step(NamedTuple):
    """The FLOPs of a decode step at the end of a context, and the bytes of the state after it."""

    flops: int
    state_bytes: int


def _of_step(subject: Subject, mode: Mode, batch: int, context: int) -> Step:
    """Return what a step costs; it is made once for all properties."""
    key = "step", mode, batch, context
    if key not in subject.memo:
        subject.memo[key] = _step_made(subject, mode, batch, context)
    return subject.memo[key]


def _step_made(subject: Subject, mode: Mode, batch: int, context: int) -> Step:
    """Make the step. In bfloat16 the parameters have that dtype, too, as in an exported model."""
    mechanism = subject.build(mode)
    if mode.autocast:
        mechanism = placed(mechanism, subject.device, torch.bfloat16, mode)
        mode = mode._replace(autocast=False)
    with subject.at(mode, batch, context):
        x_BTD = subject.tokens(batch, context, mode).to(next(mechanism.parameters()).dtype)
        state = mechanism.init_state(batch, context)
        if context > 1:
            _, state = mechanism.prefill(x_BTD[:, :-1], context)
        states = list[Any]()
        total = _counted_in(lambda: states.append(mechanism.step(x_BTD[:, -1], state)[1]))
    return Step(total.flops, state_bytes(states[0]))


def _of_first_step(subject: Subject, capacity: int) -> int:
    """Return the FLOPs of a step from an empty state with room for `capacity` tokens."""
    mechanism, x_BD = subject.built(), subject.tokens(1, 1)[:, 0]
    state = mechanism.init_state(1, capacity)
    return _counted_in(lambda: mechanism.step(x_BD, state)).flops


class _Count(NamedTuple):
    """The FLOPs of a call, and how they were counted if that needs saying."""

    flops: int
    note: str


def _counted_in(call: Callable[[], object]) -> _Count:
    """Return the FLOPs of a call; attention whose kernel torch selects is counted unfused."""
    with sdpa_kernel(SDPBackend.MATH), flop_counter() as counter:
        call()
    flex = "FlexAttention is counted uncompiled, by the blocks of its mask"
    return _Count(counter.get_total_flops(), flex if counts_flex_attention(counter) else "")


def _counted(where: str, stated: int, counted: int, what: str = "FLOPs") -> Finding:
    words = "" if stated == counted else f"{stated:,} {what} stated, {counted:,} counted"
    return Finding(where, abs(stated - counted), words=words)


def _require_cost(subject: Subject, *, flops: bool = False, decoding: bool = False) -> None:
    if not all(each.states_cost for each in subject.judged):
        raise NotJudgedError("its settings have no cost")
    if flops and not all(each.states_flops for each in subject.judged):
        raise NotJudgedError("its FLOPs are not counted")
    if decoding and not subject.decodes:
        raise NotJudgedError("it has no init_state and step")
