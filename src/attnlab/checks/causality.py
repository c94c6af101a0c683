"""Causality: outputs and gradients depend neither on later tokens nor on the sequence length.

    y_t(x) = y_t(x')  for all x, x' that agree up to t        dy_t / dx_s = 0  for s > t

Every row of a batch has a cut of its own, so that one forward pass tries as many cuts as the batch
has rows: with one row per cut, all of them.

Shapes: B batch, T tokens, D model width.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from attnlab.checks.modes import (
    BATCHES,
    BFLOAT16_EVAL,
    BFLOAT16_TRAIN,
    DROPOUT,
    EVAL,
    FIRST_STEP,
    FLOAT32_EVAL,
    FLOAT32_TRAIN,
    LONG,
    TRAIN,
    WITHIN_SCHEDULES,
    Mode,
)
from attnlab.checks.result import Finding, by_position, mechanism_property, relative
from attnlab.checks.subject import Subject

WHOLE_CHUNKS = (16, 32, 64, 128, 256)  # tokens: lengths at which no chunk is incomplete
HUGE = 30.0  # scale of inputs that are far larger than those of training


class Trial(NamedTuple):
    """One mode and shape in which cuts are tried."""

    mode: Mode
    batch: int
    tokens: int
    cuts: Sequence[int]
    scale: float = 1.0  # of the inputs; if it is 0, of those before the cut


@mechanism_property(
    "no position sees the future",
    cause="a mask that is off by one or inverted, a mean, norm or softmax over time, or top-k "
    "taken before the mask",
)
@torch.no_grad()
def values(subject: Subject) -> Iterator[Finding]:
    """Change the tokens after a cut; the outputs before it must stay."""
    for mode, batch, tokens, cuts, scale in _trials(subject):
        mechanism, limit = subject.build(mode), _same_shape_limit(subject, mode)
        more = "" if scale == 1 else f", inputs times {scale:g}"
        with subject.at(mode, batch, tokens, more) as place:
            x_BTD = scale * subject.tokens(batch, tokens, mode)
            other_BTD = max(scale, 1.0) * subject.tokens(batch, tokens, mode, seed=1)
            y_BTD = subject.forward(mechanism, mode, x_BTD)
            for cut_B in _groups(cuts, batch):
                kept_BT1 = _before(cut_B, tokens, x_BTD.device)
                changed_BTD = torch.where(kept_BT1, x_BTD, other_BTD)
                again_BTD = subject.forward(mechanism, mode, changed_BTD)
                off_BTD = torch.where(kept_BT1, relative(again_BTD, y_BTD), 0.0)
                row = _worst_row(off_BTD)
                if batch > 1 and off_BTD.max() > limit:  # of its own future, not of other rows
                    alone_BTD = x_BTD.clone()
                    alone_BTD[row] = changed_BTD[row]
                    again_BTD = subject.forward(mechanism, mode, alone_BTD)
                    off_BTD = torch.where(kept_BT1, relative(again_BTD, y_BTD), 0.0)
                deviation, first = by_position(off_BTD[row : row + 1], limit)
                where = f"position {first} sees tokens from {cut_B[row]} on"
                yield Finding(where, deviation, limit, place=place)


@mechanism_property(
    "no gradient reaches the future",
    cause="a path that is masked in value and not in gradient, such as a straight-through "
    "estimator or a statistic over time",
)
def gradients(subject: Subject) -> Iterator[Finding]:
    """Differentiate the outputs before a cut with respect to the inputs after it: must be 0."""
    modes = (EVAL, TRAIN) if subject.quick else (EVAL, FIRST_STEP, TRAIN, FLOAT32_TRAIN)
    short = [(mode, batch, subject.past) for mode in modes for batch in (1, 3)]
    of_training = (FLOAT32_TRAIN, BFLOAT16_TRAIN)
    every = [(mode, len(_every(subject)), subject.past) for mode in of_training]
    long = [(FLOAT32_TRAIN, 2, max(LONG, subject.past))] * (not subject.quick)
    for mode, batch, tokens in [*short, *every, *long]:
        mechanism, limit = subject.build(mode), subject.limit_in(mode)
        cut_B = _every(subject) if batch > 3 else _spread(tokens, batch)
        with subject.at(mode, batch, tokens) as place:
            x_BTD = subject.tokens(batch, tokens, mode).requires_grad_()
            weight_BTD = subject.tokens(batch, tokens, mode, seed=1)
            y_BTD = subject.forward(mechanism, mode, x_BTD)
            if not y_BTD.isfinite().all():
                continue  # reported by the property of finite values
            kept_BT1 = _before(cut_B, tokens, x_BTD.device)
            weighted_BTD = y_BTD.to(x_BTD.dtype) * weight_BTD * kept_BT1
            (by_x_BTD,) = torch.autograd.grad(weighted_BTD.sum(), x_BTD)
            off_BTD = relative(torch.where(kept_BT1, by_x_BTD, 0.0), by_x_BTD)
            row = _worst_row(off_BTD)
            if batch > 1 and off_BTD.max() > limit:  # into its own future, not into other rows
                y_BTD = subject.forward(mechanism, mode, x_BTD).to(x_BTD.dtype)
                weighted_TD = (y_BTD * weight_BTD * kept_BT1)[row]
                (by_x_BTD,) = torch.autograd.grad(weighted_TD.sum(), x_BTD)
                off_BTD = relative(torch.where(kept_BT1, by_x_BTD, 0.0), by_x_BTD)
        deviation, first = by_position(off_BTD[row : row + 1], limit)
        where = f"outputs before {cut_B[row]} have a gradient by token {first}"
        yield Finding(where, deviation, limit, place=place)


@mechanism_property(
    "a prefix alone gives the same outputs",
    cause="something that depends on the length of the whole sequence: a scale, a position "
    "counted from the end, padding that is not masked",
)
@torch.no_grad()
def prefixes(subject: Subject) -> Iterator[Finding]:
    """Compare a prefix alone with the same tokens of a longer sequence, up to `exact_length`."""
    modes = (EVAL,) if subject.quick or subject.is_noisy else (EVAL, FIRST_STEP, TRAIN)
    trials = [
        (mode, batch, tokens, subject.cuts(tokens))
        for mode in modes
        for batch, tokens in (subject.shapes if mode == EVAL else subject.shapes[-2:])
    ]
    if not subject.quick:
        longest = max(LONG, subject.past)
        trials.append((FLOAT32_EVAL, 1, longest, [300, 513, longest - 1]))
    for mode, batch, tokens, cuts in trials:
        mechanism, limit = subject.build(mode), subject.limit_in(mode)
        tokens, note = subject.exact(tokens)
        x_BTD = subject.tokens(batch, tokens, mode)
        with subject.at(mode, batch, tokens):
            y_BTD = subject.forward(mechanism, mode, x_BTD)
        yield Finding("", 0.0, note=note)
        for cut in (cut for cut in cuts if cut < tokens):
            with subject.at(mode, batch, cut, f" of {tokens}") as place:
                alone_BTD = subject.forward(mechanism, mode, x_BTD[:, :cut])
                deviation, first = by_position(relative(alone_BTD, y_BTD[:, :cut]), limit)
                yield Finding(f"position {first} differs", deviation, limit, place=place)


def _trials(subject: Subject) -> Iterator[Trial]:
    """Yield every mode and shape, the cheap ones first."""
    past, every = subject.past, _every(subject)
    for batch, tokens in subject.shapes:
        if tokens > 1:
            yield Trial(EVAL, batch, tokens, _spread(tokens, 6))
    modes = [FLOAT32_TRAIN, BFLOAT16_TRAIN, TRAIN]
    modes += [DROPOUT] if subject.can_drop() else []
    if not subject.quick:
        modes += [FLOAT32_EVAL, BFLOAT16_EVAL, FIRST_STEP]
        yield Trial(EVAL, 8, 139, _spread(139, 8))
    for mode in modes:
        yield Trial(mode, 1, past, _spread(past, 3))
        yield Trial(mode, 3, past, _spread(past, 3))
        yield Trial(mode, 8, past, _spread(past, 8))
    for mode in (EVAL, FLOAT32_TRAIN, BFLOAT16_TRAIN):
        yield Trial(mode, len(every), past, every)
    for tokens in WHOLE_CHUNKS:
        yield Trial(FLOAT32_TRAIN, 2, tokens, [tokens // 3, tokens - 1])
    for batch in BATCHES:
        yield Trial(FLOAT32_TRAIN, batch, 11, _spread(11, batch))
    for scale in (HUGE, 0.0):
        yield Trial(EVAL, 8, past, _spread(past, 8), scale)
    yield from _long_trials(subject)


def _long_trials(subject: Subject) -> Iterator[Trial]:
    """Yield trials within a schedule, past 1,000 tokens, and in the shape of the study."""
    past = subject.past
    if subject.has_schedule:
        within = WITHIN_SCHEDULES[2:5] if subject.quick else WITHIN_SCHEDULES
        for mode in (TRAIN._replace(name=f"train at step {step}", step=step) for step in within):
            yield Trial(mode, 8, past, _spread(past, 8))
    longest = max(LONG, past)
    for mode in (FLOAT32_TRAIN,) if subject.quick else (FLOAT32_EVAL, FLOAT32_TRAIN):
        yield Trial(mode, 2, longest, [longest // 2, longest - 1])
    if subject.of_study is not None:
        batch, tokens = subject.of_study
        for mode in (FLOAT32_TRAIN, BFLOAT16_TRAIN) if tokens > 1 else ():
            yield Trial(mode, batch, tokens, _spread(tokens, batch))


def _every(subject: Subject) -> Sequence[int]:
    """Return all cuts of the sequence past the reach, or as many as a batch can take."""
    tokens = subject.past
    return _spread(tokens, min(tokens - 1, max(8, 4096 // tokens)))


def _spread(tokens: int, number: int) -> list[int]:
    """Return `number` cuts from 1 to `tokens - 1`, evenly spread from both ends, repeated if few.

    >>> _spread(9, 3), _spread(9, 8), _spread(3, 4)
    ([1, 4, 8], [1, 2, 3, 4, 5, 6, 7, 8], [1, 1, 1, 2])
    """
    if number == 1:
        return [tokens // 2]
    return [1 + (tokens - 2) * i // (number - 1) for i in range(number)]


def _groups(cuts: Sequence[int], batch: int) -> Iterator[list[int]]:
    """Yield a cut per row of the batch, until all have been used; the last ones may repeat."""
    for first in range(0, len(cuts), batch):
        group = list(cuts[first : first + batch])
        yield group + [group[-1]] * (batch - len(group))


def _before(cut_B: Sequence[int], tokens: int, device: torch.device) -> Tensor:
    """Return `kept_BT1`: True before the cut of each row."""
    position_T = torch.arange(tokens, device=device)
    return (position_T < torch.tensor(cut_B, device=device)[:, None])[..., None]


def _worst_row(off_BTD: Tensor) -> int:
    return int(off_BTD.amax((1, 2)).argmax())


def _same_shape_limit(subject: Subject, mode: Mode) -> float:
    """Return the limit between two calls of one shape, whose roundings nearly agree."""
    return min(subject.limit_in(mode), 2 * torch.finfo(torch.bfloat16).eps)
