"""Reproducibility: the same seed, call or settings give the same bits.

Shapes: B batch, T tokens, D model width.
"""

import math
from collections.abc import Iterator
from dataclasses import fields

import torch
from torch import Tensor

from attnlab.checks.result import Finding, by_position, mechanism_property, relative, tolerance
from attnlab.checks.subject import DROPOUT, EVAL, TRAIN, Subject
from attnlab.mechanism import MechanismConfig
from attnlab.model.language_model import ModelConfig


@mechanism_property(
    "same seed, same bits",
    cause="`build` or `initial_value` draws from numpy's or Python's random stream, or from a "
    "generator without a fixed seed: a constructor draws with torch, `initial_value` from the "
    "generator that is passed in",
)
def seeds(subject: Subject) -> Iterator[Finding]:
    """Build twice, after different use of the global random stream; train one step twice."""
    models = list[dict[str, Tensor]]()
    for drawn_before in (0, 1):
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(drawn_before)
            model = ModelConfig(
                mechanisms=(subject.config,), n_layers=1, d_model=subject.d_model
            ).build(vocab_size=2, seed=3)
        mechanism = next(model.mechanisms())
        models.append(dict([*mechanism.named_parameters(), *mechanism.named_buffers()]))
    for name, value in models[0].items():
        yield _same(name, models[1][name], value)

    with subject.at(TRAIN, 3, subject.past) as place:
        first, second = (_trained_once(subject) for _ in range(2))
    for name, value in first.items():
        yield _same(f"{name} ({place})", second[name], value)


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
        yield _same(f"forward again ({place})", again_BTD, fresh_BTD)

    with subject.at(EVAL, 2, 5) as place:
        fresh_BTD = subject.decode(subject.build(), short)
        mechanism = subject.build()
        subject.decode(mechanism, long[:, :37], prompt=3)
        again_BTD = subject.decode(mechanism, short)
        yield _same(f"decoding again ({place})", again_BTD, fresh_BTD)
        again_BTD = _alternately(subject, short)
        yield _same(f"decoding two sequences alternately ({place})", again_BTD, fresh_BTD)


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
        yield _same(f"forward ({place})", second, first)
        without_BTD = subject.forward(subject.build(EVAL), EVAL, x_BTD)
        limit = tolerance(subject.dtype)
        deviation, position = by_position(relative(first, without_BTD), limit)
        where = f"position {position} differs from one built without dropout ({place})"
        yield Finding(where, deviation, limit)


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


def _trained_once(subject: Subject) -> dict[str, Tensor]:
    """Return the output and every gradient of one training pass, by name."""
    mechanism, x_BTD = subject.build(TRAIN), subject.tokens(3, subject.past)
    y_BTD, loss = subject.forward_with_loss(mechanism, TRAIN, x_BTD)
    (y_BTD.square().mean() + (0 if loss is None else loss)).backward()
    gradients = {f"gradient of {n}": p.grad for n, p in mechanism.named_parameters()}
    reached = {name: value for name, value in gradients.items() if value is not None}
    return {"output": y_BTD.detach(), **reached}


def _alternately(subject: Subject, x_BTD: Tensor) -> Tensor:
    """Decode two sequences alternately with one module; return the outputs of the first."""
    mechanism, tokens = subject.build(), x_BTD.shape[1]
    state, other = (mechanism.init_state(len(x_BTD), tokens) for _ in range(2))
    outputs = list[Tensor]()
    for x_BD in x_BTD.unbind(1):
        y_BD, state = mechanism.step(x_BD, state)
        _, other = mechanism.step(-x_BD, other)
        outputs.append(y_BD)
    return torch.stack(outputs, 1)


def _same(where: str, found: Tensor, expected: Tensor) -> Finding:
    """Compare bits; on CUDA, where the order of sums varies, allow the tolerance."""
    if torch.equal(found, expected):
        return Finding(where, 0.0)
    deviation = max(float(relative(found, expected).max()), torch.finfo(torch.float64).tiny)
    return Finding(where, deviation, tolerance(found.dtype) if found.is_cuda else 0.0)
