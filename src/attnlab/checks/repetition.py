"""Reproducibility: the same seed, call or settings give the same bits.

Shapes: B batch, T tokens, D model width.
"""

import math
import random
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnlab.checks.modes import DROPOUT, EVAL, FLOAT32_EVAL, LATE, TRAIN, Place, tolerance
from attnlab.checks.purity import global_state
from attnlab.checks.result import Finding, by_position, mechanism_property, relative
from attnlab.checks.subject import Subject
from attnlab.checks.training import STEPS, batch, course, first_course
from attnlab.mechanism import MechanismConfig
from attnlab.model.initialization import constructed
from attnlab.model.language_model import ModelConfig


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
                mechanisms=(subject.config,), n_layers=1, d_model=subject.d_model
            ).build(vocab_size=2, seed=3)
            torch_state = torch.default_generator.get_state().numpy().tobytes()
            streams.append({**global_state(), "torch's random generator": torch_state})
        mechanism = next(model.mechanisms())
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
    "layers of a model share nothing",
    cause="a tensor, list or counter in a class or a global, which every module of it reads and "
    "writes, or a setting drawn or counted up in the constructor",
)
@torch.no_grad()
def layers(subject: Subject) -> Iterator[Finding]:
    """Run a model of two layers, and each of its layers' inputs in a module of its own."""
    model, given = first_course(subject).model.eval(), list[tuple[Tensor, Tensor]]()

    def record(_: Any, args: tuple[Tensor, ...], y_BTD: Any) -> None:
        given.append((args[0], y_BTD))

    hooks = [mechanism.register_forward_hook(record) for mechanism in model.mechanisms()]
    autocast = subject.autocast_in(FLOAT32_EVAL)
    with subject.at(FLOAT32_EVAL, 4, 37, ", two layers") as place, autocast:
        model.features(batch(subject, 0, 0)[:, :-1])
        for hook in hooks:
            hook.remove()
        first, second = (set(m.parameters()) for m in model.mechanisms())
        words = "both layers have one and the same parameter" if first & second else ""
        yield Finding("", math.inf if words else 0.0, words=words, place=place)
        for i, (mechanism, (x_BTD, y_BTD)) in enumerate(
            zip(model.mechanisms(), given, strict=True)
        ):
            prefix = f"blocks.{i}.mix."
            alone = constructed(lambda: subject.config.build(subject.d_model), prefix, seed=0)
            alone.load_state_dict(mechanism.state_dict())
            alone = alone.to(subject.device).eval()
            alone.at_step(LATE)
            alone_BTD = subject.forward(alone, FLOAT32_EVAL, x_BTD)
            yield _same(f"layer {i} differs from a module of its own", alone_BTD, y_BTD, place)
        if subject.decodes:
            x_BTD = given[0][0][:, :5]
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
    "eval mode draws nothing at random",
    cause="dropout that ignores `self.training`: the functional form drops by default",
)
@torch.no_grad()
def evaluation(subject: Subject) -> Iterator[Finding]:
    """Build with dropout and run in eval mode under two seeds."""
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
