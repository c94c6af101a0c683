"""Reproducibility: the same seed, call or settings give the same bits.

Shapes: B batch, T tokens, D model width.
"""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from attnlab.checks.decoding import with_other_weights
from attnlab.checks.modes import BFLOAT16_EVAL, DROPOUT, EVAL, FIRST_STEP, LATE, TRAIN, tolerance
from attnlab.checks.processes import another_process, global_state
from attnlab.checks.result import Finding, by_position, mechanism_property, relative, same_bits
from attnlab.checks.small_configs import CHEAP
from attnlab.checks.subject import Subject
from attnlab.checks.training import STEPS, course, first_course
from attnlab.config import ConfigError
from attnlab.mechanism import MechanismConfig
from attnlab.model.language_model import ModelConfig

DRAWS = 8  # of dropout
UNUSED = 206  # tokens that follow those of other calls
RARE = 0.1  # a rate of dropout whose effect is far smaller than that of `DROPOUT`
MEAN_WITH_DROPOUT = 0.75, 1.5  # times the output without dropout; the factor is 2 or 1/2 if wrong


@mechanism_property(
    "same seed, same bits",
    cause="`build` or `initial_value` draws from numpy's or Python's random stream, or from a "
    "generator without a fixed seed, or seeded by the clock, the process or `hash` of a name: a "
    "constructor draws with torch, `initial_value` from the generator that is passed in",
)
def seeds(subject: Subject) -> Iterator[Finding]:
    """Build and call twice, the second time as in another process; train one step twice."""
    models, streams = list[dict[str, Tensor]](), list[dict[str, Any]]()
    for drawn_before in (0, 1):
        with torch.random.fork_rng(devices=()), another_process(drawn_before):
            torch.default_generator.manual_seed(drawn_before)
            model = ModelConfig(
                mechanisms=subject.judged, n_layers=len(subject.judged), d_model=subject.d_model
            ).build(vocab_size=2, seed=3)
            torch_state = torch.default_generator.get_state().numpy().tobytes()
            streams.append({**global_state(), "torch's random generator": torch_state})
        mechanism = [*model.mechanisms()][-1]
        models.append(dict([*mechanism.named_parameters(), *mechanism.named_buffers()]))
    for name, value in models[0].items():
        yield same_bits(name, models[1][name], value)
    for name in (name for name in streams[0] if "generator" in name):
        words = "the constructor seeds it" if streams[0][name] == streams[1][name] else ""
        yield Finding(name, math.inf if words else 0.0, words=words)

    with subject.at(EVAL, 2, 5, ", in another process") as place, another_process(1):
        found_BTD = subject.forward(subject.built(), EVAL, subject.tokens(2, 5))
    yield same_bits("forward", found_BTD, subject.output(EVAL, 2, 5), place)

    with subject.at(TRAIN, 4, 37, ", two layers from the real start") as place:
        first = first_course(subject).losses
        course(subject, 1, STEPS[:1])
        again = course(subject, 0).losses
    words = "the losses of one seed differ after a run with another"
    is_same = first == again or any(loss != loss for loss in first)
    yield Finding("", 0.0 if is_same else math.inf, words="" if is_same else words, place=place)


@mechanism_property(
    "no hidden state between calls",
    cause="something is kept on the module or in a global: of an earlier sequence, of earlier "
    "weights, of training in evaluation or of evaluation in training, or a table that modules of "
    "other settings read",
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
        yield same_bits("forward again", again_BTD, fresh_BTD, place)
    yield from _between_passes_of_training(subject)
    yield from _beside_other_settings(subject)

    if subject.has_schedule:
        with subject.at(FIRST_STEP, 2, 5) as place:
            fresh_BTD = subject.forward(subject.build(FIRST_STEP), FIRST_STEP, short)
            mechanism = subject.build(FIRST_STEP)
            for step in (1, LATE, 0, 0):
                mechanism.at_step(step)
            again_BTD = subject.forward(mechanism, FIRST_STEP, short)
        found = same_bits("forward", again_BTD, fresh_BTD, place)
        words = "at_step(0) after other steps is not the same" if found.deviation else ""
        yield found._replace(words=words)

    if subject.decodes:
        with subject.at(EVAL, 2, 5) as place:
            fresh_BTD = subject.decode(subject.build(), short)
            mechanism = subject.build()
            subject.decode(mechanism, long[:, :12], prompt=3)
            again_BTD = subject.decode(mechanism, short)
            yield same_bits("decoding again", again_BTD, fresh_BTD, place)
            with torch.enable_grad():
                subject.forward(mechanism.train(), TRAIN, long)
            again_BTD = subject.decode(mechanism.eval(), short)
            yield same_bits("decoding after a training pass", again_BTD, fresh_BTD, place)


def _between_passes_of_training(subject: Subject) -> Iterator[Finding]:
    """Train after evaluations, one under inference mode; evaluate then, and with other weights."""
    short, long = (subject.tokens(2, n, seed=1) for n in (5, subject.past + 4))
    mechanism, outputs = subject.build(), list[Tensor]()
    with subject.at(TRAIN, 2, long.shape[1], ", after an evaluation") as place:
        with torch.inference_mode():
            subject.forward(subject.build(), EVAL, long)
        subject.forward(mechanism, EVAL, long)
        with torch.enable_grad():
            for each in (mechanism.train(), subject.build(TRAIN)):
                y_BTD = subject.forward(each, TRAIN, long)
                if y_BTD.requires_grad:
                    y_BTD.sum().backward()
                outputs.append(y_BTD.detach())
        yield same_bits("forward", outputs[0], outputs[1], place)
    with subject.at(EVAL, 2, 5, ", after a training pass") as place:
        fresh_BTD = subject.forward(subject.build(), EVAL, short)
        again_BTD = subject.forward(mechanism.eval(), EVAL, short)
        yield same_bits("forward", again_BTD, fresh_BTD, place)
    with subject.at(EVAL, 2, 5, ", after the weights changed") as place:
        fresh = with_other_weights(subject, mechanism)
        y_BTD, expected_BTD = (subject.forward(each, EVAL, short) for each in (mechanism, fresh))
        off = float(relative(y_BTD, expected_BTD).max())
        yield Finding("forward", off, subject.limit_in(EVAL), place=place)


def _beside_other_settings(subject: Subject) -> Iterator[Finding]:
    """Call a module after one of other settings, at lengths that no call had before."""
    length, limit = subject.past, subject.limit_in(EVAL)
    more_BTD, y_BTD = subject.tokens(1, UNUSED, seed=1), subject.output(EVAL, 1, length)
    x_BTD = torch.cat([subject.tokens(1, length), more_BTD], 1)
    for i, (name, other) in enumerate(_with_other_numbers(subject)):
        tokens = length + UNUSED // 2 + 4 * i  # ever more: a table may have grown
        if subject.exact(tokens)[0] < tokens or tokens > x_BTD.shape[1]:
            return

        def off(tokens: int) -> Tensor:
            found_BTD = subject.forward(subject.built(), EVAL, x_BTD[:, :tokens])
            return relative(found_BTD[:, :length], y_BTD)

        with subject.at(EVAL, 1, tokens, f", after a module of another {name}") as place:
            if off(tokens - 2).max() > limit:
                return  # it depends on the length: a property of its own
            with suppress(Exception), torch.no_grad():  # impossible, perhaps; this one is judged
                subject.forward(replace(subject, config=other).build(), EVAL, x_BTD[:, :tokens])
            deviation, first = by_position(off(tokens), limit)
            yield Finding(f"position {first}", deviation, limit, place=place)


def _with_other_numbers(subject: Subject) -> Iterator[tuple[str, MechanismConfig]]:
    """Yield the name of each number that can be doubled or halved, and the settings with that."""
    for field in fields(subject.config):
        value = getattr(subject.config, field.name)
        for other in (2 * value, type(value)(value / 2)) if type(value) in (int, float) else ():
            with suppress(ConfigError):
                changed = replace(subject.config, **{field.name: other})
                if other != value and not [*changed.problems_at(subject.d_model)]:
                    yield field.name, changed
                    break


@mechanism_property(
    "dropout draws in training alone, and keeps the mean",
    cause="dropout that ignores `self.training`: the functional form drops by default; one "
    "written by hand without the factor 1 / (1 - dropout), or with a seed of its own; or the rate "
    "taken for its complement",
)
@torch.no_grad()
def evaluation(subject: Subject) -> Iterator[Finding]:
    """Build with dropout; run in eval mode under two seeds, and in training under many."""
    rate = DROPOUT.dropout if subject.can_drop() else 0.0
    for mode, tokens in ((EVAL, subject.past), (BFLOAT16_EVAL, CHEAP)):
        with subject.at(mode, 2, tokens, ", built with dropout") as place:
            x_BTD = subject.tokens(2, tokens, mode)
            mechanism = subject.build(mode._replace(dropout=rate))
            first, second = (
                subject.forward_with_loss(mechanism, mode, x_BTD, seed)[0] for seed in (0, 1)
            )
            yield same_bits("forward", second, first, place)
            off_BTD = relative(first, subject.output(mode, 2, tokens))
            limit = subject.limit_in(mode)
            deviation, position = by_position(off_BTD, limit)
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
        rare = subject.build(DROPOUT._replace(dropout=RARE))
        y_BTD = subject.forward_with_loss(rare, DROPOUT, x_BTD, 0)[0].double()
    energy = float(whole_BTD.square().sum()) or math.inf
    of_half = squares - float(total.square().sum())  # the variance, in the sum over all numbers
    of_few = float((y_BTD - whole_BTD).square().sum())
    scale = float((total * whole_BTD).sum()) / energy
    low, high = MEAN_WITH_DROPOUT
    is_wrong = (scale < low and squares / energy < low) or scale > high
    words = f"the mean output is {scale:.2f} times that without dropout, which keeps the mean"
    if of_half <= tolerance(torch.float32) * energy < float((total - whole_BTD).square().sum()):
        is_wrong, words = True, "every call drops the same"
    if not is_wrong and of_few > of_half > 0:
        is_wrong, words = True, f"dropout of {RARE} changes more than dropout of {DROPOUT.dropout}"
    return Finding("", math.inf if is_wrong else 0.0, words=words * is_wrong, place=place)


@mechanism_property(
    "weights that are saved and read again compute the same",
    cause="a random tensor that the constructor draws and keeps as an attribute or as a buffer "
    "that is not persistent",
)
@torch.no_grad()
def weights_round_trip(subject: Subject) -> Iterator[Finding]:
    """Build from another seed, load the state dict, and compare outputs and decoding."""
    saved, other = subject.build().state_dict(), replace(subject, seed=subject.seed + 1)
    x_BTD = subject.tokens(2, 7)
    for mode in (EVAL, TRAIN):
        with subject.at(mode, 2, 7) as place:
            mechanism = other.build(mode)
            mechanism.load_state_dict(saved)
            pairs = [(subject.forward(mechanism, mode, x_BTD), subject.output(mode, 2, 7))]
            if subject.decodes and mode == EVAL:
                pairs.append((subject.decode(mechanism, x_BTD, 3), subject.decoded(2, 7, 3)))
            for found_BTD, expected_BTD in pairs:
                deviation = float(relative(found_BTD, expected_BTD).max())
                yield Finding("", deviation, subject.limit_in(EVAL), place=place)


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
