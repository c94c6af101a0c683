"""Reproducibility: the same seed, call or settings give the same bits.

Shapes: B batch, T tokens, D model width.
"""

import math
import random
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from attnlab.checks.modes import (
    DROPOUT,
    EVAL,
    FLOAT32_EVAL,
    LATE,
    TRAIN,
    Place,
    seeded,
    tolerance,
)
from attnlab.checks.purity import global_state
from attnlab.checks.result import Finding, by_position, mechanism_property, relative
from attnlab.checks.subject import Subject
from attnlab.checks.training import STEPS, batch, course, first_course
from attnlab.mechanism import Handed, HandingMechanism, Mechanism, MechanismConfig
from attnlab.model.initialization import constructed
from attnlab.model.language_model import ModelConfig

DRAWS = 8  # of dropout
MEAN_WITH_DROPOUT = 0.75, 1.5  # times the output without dropout; the factor is 2 or 1/2 if wrong


@mechanism_property(
    "same seed, same bits",
    cause="`build` or `initial_value` draws from numpy's or Python's random stream, or from a "
    "generator without a fixed seed: a constructor draws with torch, `initial_value` from the "
    "generator that is passed in",
)
def seeds(subject: Subject) -> Iterator[Finding]:
    """Build twice, after different use of the global random stream; train one step twice."""
    models, streams = list[dict[str, Tensor]](), list[dict[str, Any]]()
    for drawn_before in (0, 1):
        with torch.random.fork_rng(devices=()), _other_streams(drawn_before):
            torch.default_generator.manual_seed(drawn_before)
            model = ModelConfig(
                mechanisms=subject.judged, n_layers=len(subject.judged), d_model=subject.d_model
            ).build(vocab_size=2, seed=3)
            torch_state = torch.default_generator.get_state().numpy().tobytes()
            streams.append({**global_state(), "torch's random generator": torch_state})
        mechanism = [*model.mechanisms()][-1]
        models.append(dict([*mechanism.named_parameters(), *mechanism.named_buffers()]))
    for name, value in models[0].items():
        yield _same(name, models[1][name], value)

    for name in (name for name in streams[0] if "generator" in name):
        words = "the constructor seeds it" if streams[0][name] == streams[1][name] else ""
        yield Finding(name, math.inf if words else 0.0, words=words)

    with subject.at(TRAIN, 4, 37, ", two layers from the real start") as place:
        first = first_course(subject).losses
        course(subject, 1, STEPS[:1])
        again = course(subject, 0).losses
    words = "the losses of one seed differ after a run with another"
    is_same = first == again or any(loss != loss for loss in first)
    yield Finding("", 0.0 if is_same else math.inf, words="" if is_same else words, place=place)


@mechanism_property(
    "layers share only what they declare",
    cause="a tensor, list or counter in a class or a global, which every module of it reads and "
    "writes, a setting drawn or counted up in the constructor, or something handed to later "
    "layers that `gives` and `takes` do not name",
)
@torch.no_grad()
def layers(subject: Subject) -> Iterator[Finding]:
    """Run a model, and each of its layers' inputs in a module of its own."""
    model, calls = first_course(subject).model.eval(), list[_LayerCall]()

    def begins(_: Any, args: tuple[Any, ...]) -> None:
        calls.append(_LayerCall(args[0], dict(*args[1:]), list[Tensor]()))

    def ends(_: Any, args: tuple[Any, ...], y_BTD: Tensor) -> None:
        del args
        calls[-1].outputs.append(y_BTD)

    hooks = [mechanism.register_forward_pre_hook(begins) for mechanism in model.mechanisms()]
    hooks += [mechanism.register_forward_hook(ends) for mechanism in model.mechanisms()]
    autocast = subject.autocast_in(FLOAT32_EVAL)
    more = f", {len(subject.layers)} layers"
    with subject.at(FLOAT32_EVAL, 4, 37, more.replace("2", "two")) as place, autocast:
        model.features(batch(subject, 0, 0)[:, :-1])
        for hook in hooks:
            hook.remove()
        parameters = [id(p) for m in model.mechanisms() for p in m.parameters()]
        words = "layers have one and the same parameter"
        is_one = len(parameters) > len(set(parameters))
        yield Finding("", math.inf if is_one else 0.0, words=words * is_one, place=place)
        for i, (mechanism, call) in enumerate(zip(model.mechanisms(), calls, strict=True)):
            prefix, config = f"blocks.{i}.mix.", subject.layers[i]
            alone = constructed(lambda config=config: config.build(subject.d_model), prefix, seed=0)
            alone.load_state_dict(mechanism.state_dict())
            alone = alone.to(subject.device).eval()
            alone.at_step(LATE)
            hands = bool(subject.before) and isinstance(alone, HandingMechanism)
            found = _again(alone, call.x_BTD, call.taken if hands else None)
            where = f"layer {i} differs from a module of its own"
            yield _same(where, found, call.outputs[0], place)
            if hands:
                yield from _handing(subject, alone, call, f"layer {i}", place)
        if subject.decodes and not subject.before:
            x_BTD = calls[0].x_BTD[:, :5]
            one, two = model.mechanisms()
            alone_BTD = subject.decode(one, x_BTD, mode=FLOAT32_EVAL)
            state, other = (mechanism.init_state(len(x_BTD), 5) for mechanism in (one, two))
            outputs = list[Tensor]()
            for x_BD in x_BTD.unbind(1):
                y_BD, state = one.step(x_BD, state)
                _, other = two.step(y_BD, other)
                outputs.append(y_BD)
            found_BTD = torch.stack(outputs, 1)
            yield _same("decoding beside another layer", found_BTD, alone_BTD, place)


class _LayerCall(NamedTuple):
    """One call of a layer's mechanism in a model."""

    x_BTD: Tensor
    taken: Handed
    outputs: list[Tensor]  # one: filled when the call ends


def _again(mechanism: Mechanism[Any], x_BTD: Tensor, taken: Handed | None) -> Tensor:
    """Return `y_BTD` of a call outside of its model. `taken` is not changed."""
    with seeded(0):
        return mechanism(x_BTD) if taken is None else mechanism(x_BTD, dict(taken))


def _handing(
    subject: Subject, mechanism: Mechanism[Any], call: _LayerCall, layer: str, place: Place
) -> Iterator[Finding]:
    """Compare what a layer puts in and reads with what its settings declare."""
    number = int(layer.split()[-1])
    declared, handed = subject.layers[number].gives(subject.d_model), dict(call.taken)
    with seeded(0):
        mechanism(call.x_BTD, handed)
    for name in sorted(handed.keys() | set(declared)):
        words = ""
        if name in call.taken:
            changed = handed.get(name) is not call.taken[name]
            words = "it replaces what it has taken" if changed else ""
        elif name not in declared:
            words = "it puts in what `gives` does not name"
        elif name not in handed:
            words = "`gives` names it, and it is not put in"
        yield Finding(f"{layer}, {name}", math.inf if words else 0.0, words=words, place=place)
    for name in call.taken:
        other = {**call.taken, name: _other(call.taken[name])}
        is_read = not torch.equal(_again(mechanism, call.x_BTD, other), call.outputs[0])
        words = "" if is_read else "`takes` names it, and the output does not depend on it"
        yield Finding(f"{layer}, {name}", math.inf if words else 0.0, words=words, place=place)


def _other(handed: Any) -> Any:
    """Return other numbers of the same shapes."""
    if isinstance(handed, Tensor):
        return 1 - 2 * handed
    return type(handed)(map(_other, handed)) if type(handed) in (tuple, list) else handed


@mechanism_property(
    "no hidden state between calls",
    cause="something of an earlier sequence is kept on the module or in a global: a running mean, "
    "a cache, a position counter",
)
@torch.no_grad()
def calls(subject: Subject) -> Iterator[Finding]:
    """Compare the first call of a module with the same call after others."""
    short, long = (subject.tokens(2, n, seed=1) for n in (5, subject.past))
    for mode in (EVAL, TRAIN):
        with subject.at(mode, 2, 5) as place:
            fresh_BTD = subject.forward(subject.build(mode), mode, short)
            mechanism = subject.build(mode)
            subject.forward(mechanism, mode, long)
            subject.forward(mechanism, mode, short.flip(1))
            again_BTD = subject.forward(mechanism, mode, short)
        yield _same("forward again", again_BTD, fresh_BTD, place)

    if subject.decodes:
        with subject.at(EVAL, 2, 5) as place:
            fresh_BTD = subject.decode(subject.build(), short)
            mechanism = subject.build()
            subject.decode(mechanism, long[:, :12], prompt=3)
            again_BTD = subject.decode(mechanism, short)
            yield _same("decoding again", again_BTD, fresh_BTD, place)
            with torch.enable_grad():
                subject.forward(mechanism.train(), TRAIN, long)
            again_BTD = subject.decode(mechanism.eval(), short)
            yield _same("decoding after a training pass", again_BTD, fresh_BTD, place)


@mechanism_property(
    "dropout draws in training alone, and keeps the mean",
    cause="dropout that ignores `self.training`: the functional form drops by default; or one "
    "written by hand without the factor 1 / (1 - dropout)",
)
@torch.no_grad()
def evaluation(subject: Subject) -> Iterator[Finding]:
    """Build with dropout; run in eval mode under two seeds, and in training under many."""
    with subject.at(EVAL, 2, subject.past, ", built with dropout") as place:
        x_BTD = subject.tokens(2, subject.past)
        settings = EVAL._replace(dropout=DROPOUT.dropout if subject.can_drop() else 0.0)
        mechanism = subject.build(settings)
        first, second = (
            subject.forward_with_loss(mechanism, EVAL, x_BTD, seed)[0] for seed in (0, 1)
        )
        yield _same("forward", second, first, place)
        without_BTD = subject.output(EVAL, 2, subject.past)
        limit = subject.limit_in(EVAL)
        deviation, position = by_position(relative(first, without_BTD), limit)
        where = f"position {position} differs from one built without dropout"
        yield Finding(where, deviation, limit, place=place)
    if subject.can_drop():
        yield _scale_of_dropout(subject)


def _scale_of_dropout(subject: Subject) -> Finding:
    """Return how far outputs with dropout are scaled, on average, against those without.

    Where a mechanism normalises what it drops, the mean is smaller and the mean square is not:
    both must be, or the mean must be larger.
    """
    with subject.at(DROPOUT, 4, 37) as place:
        x_BTD, mechanism = subject.tokens(4, 37, DROPOUT), subject.build(DROPOUT)
        whole_BTD = subject.output(TRAIN, 4, 37).double()
        total, squares = torch.zeros_like(whole_BTD), 0.0
        for seed in range(DRAWS):
            y_BTD = subject.forward_with_loss(mechanism, DROPOUT, x_BTD, seed)[0].double()
            total += y_BTD / DRAWS
            squares += float(y_BTD.square().sum()) / DRAWS
    energy = float(whole_BTD.square().sum()) or math.inf
    scale = float((total * whole_BTD).sum()) / energy
    low, high = MEAN_WITH_DROPOUT
    is_wrong = (scale < low and squares / energy < low) or scale > high
    words = f"the mean output is {scale:.2f} times that without dropout, which keeps the mean"
    return Finding("", math.inf if is_wrong else 0.0, words=words * is_wrong, place=place)


@mechanism_property(
    "settings survive JSON",
    cause="`to_dict` or `problems` was overridden so that what is written does not read back",
)
def json_round_trip(subject: Subject) -> Iterator[Finding]:
    """Write the settings to JSON values and read them again."""
    written = subject.config.to_dict()
    for field in fields(subject.config):
        missing = field.name not in written
        words = "not written" if missing else ""
        yield Finding(field.name, math.inf if missing else 0.0, words=words)
    read = MechanismConfig.from_dict(written).to_dict()
    for name, value in written.items():
        words = "" if read[name] == value else f"{value!r} was written, {read[name]!r} was read"
        yield Finding(name, math.inf if words else 0.0, words=words)


@contextmanager
def _other_streams(seed: int) -> Generator[None]:
    """Seed the generators of Python and numpy inside, and restore the caller's afterwards."""
    before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def _same(where: str, found: Tensor, expected: Tensor, place: Place | None = None) -> Finding:
    """Compare bits; on CUDA, where the order of sums varies, allow the tolerance."""
    if torch.equal(found.nan_to_num(), expected.nan_to_num()):
        return Finding(where, 0.0, place=place)
    deviation = max(float(relative(found, expected).max()), torch.finfo(torch.float64).tiny)
    limit = tolerance(found.dtype) if found.is_cuda else 0.0
    return Finding(where, deviation, limit, place=place)
