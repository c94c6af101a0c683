"""Causality: neither outputs nor gradients depend on later tokens.

    y_t(x) = y_t(x')  for all x, x' that agree up to t        dy_t / dx_s = 0  for s > t

Every row of a batch has a cut of its own, so that one forward pass tries as many cuts as the batch
has rows: with one row per cut, all of them. Where half of the rows change, the same two passes show
whether the rows are independent of each other.

Shapes: B batch, T tokens, D model width.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from attnlab.checks.modes import (
    BFLOAT16_DROPOUT,
    BFLOAT16_EVAL,
    BFLOAT16_TRAIN,
    DROPOUT,
    EVAL,
    FIRST_STEP,
    FLOAT32_EVAL,
    FLOAT32_TRAIN,
    TRAIN,
    WITHIN_SCHEDULES,
    Mode,
    Place,
    seeded,
)
from attnlab.checks.processes import generator_state
from attnlab.checks.result import Finding, by_position, mechanism_property, relative
from attnlab.checks.small_configs import BATCHES, CHEAP, FAR, FEW, HUGE, LONG, PAST_LONG
from attnlab.checks.subject import Subject

WHOLE_CHUNKS = (8, 16, 32, 64, 128, 192, 256)  # tokens: no chunk is incomplete
DISTINCT = 5  # tokens of sequences that repeat them
SEEDS = 65  # of random numbers in training, which may choose a path one time in twenty
EDGES = sorted(e + beyond for e in (*range(16, CHEAP - 1, 16), 50, 100) for beyond in (0, 1))
# ^ cuts after the last and after the first token of a chunk, where either sees one token ahead


class HalfChanged(NamedTuple):
    """Two calls of a batch; in the second half of the sequences are others from a cut on.

    They come in pairs, the first and the last sequence of most batches among them, so that one that
    stays has a neighbour that changes.
    """

    x_BTD: Tensor
    changed_BTD: Tensor
    y_BTD: Tensor
    again_BTD: Tensor
    cut_B: list[int]  # the length for sequences that stay


class Trial(NamedTuple):
    """One mode and shape in which cuts are tried."""

    mode: Mode
    batch: int
    tokens: int
    cuts: Sequence[int]
    scale: float = 1.0  # of the inputs; if it is 0, of those before the cut
    repeats: bool = False  # True: sequences are of few tokens, which come again and again


@mechanism_property(
    "no position sees the future",
    cause="a mask that is off by one or inverted, a mean, norm or softmax over time, or top-k "
    "taken before the mask",
)
@torch.no_grad()
def values(subject: Subject) -> Iterator[Finding]:
    """Change the tokens after a cut; the outputs before it must stay."""
    for mode, batch, tokens, cuts, scale, repeats in _trials(subject):
        more = ", tokens that repeat" if repeats else ""
        more = more if scale == 1 else f", inputs times {scale:g}"
        with subject.at(mode, batch, tokens, more) as place:
            x_BTD = scale * subject.tokens(batch, tokens, mode)
            other_BTD = max(scale, 1.0) * subject.tokens(batch, tokens, mode, seed=1)
            if repeats:
                place_T = torch.arange(tokens, device=x_BTD.device)
                other_BTD = x_BTD[:, place_T**2 % DISTINCT]
                x_BTD = x_BTD[:, place_T % DISTINCT]
            mechanism = subject.built(mode)
            if scale == 1 and not repeats:
                y_BTD = subject.output(mode, batch, tokens)
            else:
                y_BTD = subject.forward(mechanism, mode, x_BTD)
            for cut_B in _groups(cuts, batch):
                kept_BT1 = _before(cut_B, tokens, x_BTD.device)
                changed_BTD = torch.where(kept_BT1, x_BTD, other_BTD)
                again_BTD = subject.forward(mechanism, mode, changed_BTD)
                half = HalfChanged(x_BTD, changed_BTD, y_BTD, again_BTD, cut_B)
                yield _seen(subject, mode, half, place)
    for mode, batch, tokens in beside_others(subject):
        with subject.at(mode, batch, tokens) as place:
            yield _seen(subject, mode, half_changed(subject, mode, batch, tokens), place)
    for mode in (TRAIN, DROPOUT) if subject.can_drop() else (TRAIN,):
        yield from _by_chance(subject, mode)


def _by_chance(subject: Subject, mode: Mode) -> Iterator[Finding]:
    """Change the second half of a sequence under many seeds, if a call draws random numbers."""
    mechanism, cut = subject.built(mode), FEW // 2
    x_BTD, changed_BTD = (subject.tokens(1, FEW, mode, seed) for seed in (0, 1))
    changed_BTD[:, :cut] = x_BTD[:, :cut]
    with subject.at(mode, 1, FEW, ", under many seeds") as place, seeded(0):
        before = generator_state()
        subject.forward_with_loss(mechanism, mode, x_BTD, seed=None)
        draws = generator_state() != before
        for seed in range(1, SEEDS) if draws else ():
            y_BTD, again_BTD = (
                subject.forward_with_loss(mechanism, mode, each_BTD, seed)[0]
                for each_BTD in (x_BTD, changed_BTD)
            )
            half = HalfChanged(x_BTD, changed_BTD, y_BTD, again_BTD, [cut])
            yield _seen(subject, mode, half, place)


def _seen(subject: Subject, mode: Mode, calls: HalfChanged, place: Place) -> Finding:
    """Return the largest change of outputs before the cut of their own sequence."""
    x_BTD, changed_BTD, y_BTD, again_BTD, cut_B = calls
    limit, batch = _same_shape_limit(subject, mode), len(x_BTD)
    kept_BT1 = _before(cut_B, x_BTD.shape[1], x_BTD.device)
    is_cut_B11 = torch.tensor(cut_B, device=x_BTD.device)[:, None, None] < x_BTD.shape[1]
    own_BT1 = kept_BT1 & is_cut_B11
    off_BTD = torch.where(own_BT1, relative(again_BTD, y_BTD), 0.0)
    row = int(off_BTD.amax((1, 2)).argmax())
    if batch > 1 and off_BTD.max() > limit:  # of its own future, not of other sequences
        alone_BTD = x_BTD.clone()
        alone_BTD[row] = changed_BTD[row]
        again_BTD = subject.forward(subject.built(mode), mode, alone_BTD)
        off_BTD = torch.where(own_BT1, relative(again_BTD, y_BTD), 0.0)
    deviation, first = by_position(off_BTD[row : row + 1], limit)
    where = f"position {first} sees tokens from {cut_B[row]} on"
    return Finding(where, deviation, limit, place=place)


def beside_others(subject: Subject) -> list[tuple[Mode, int, int]]:
    """Return modes, batch sizes and lengths in which half of the sequences are changed."""
    trials = [(FLOAT32_TRAIN, batch, FEW) for batch in BATCHES]
    trials += [(mode, batch, FEW) for mode in (EVAL, BFLOAT16_TRAIN) for batch in (4, 8, 16)]
    trials += [(TRAIN, 2, subject.past)]
    if not subject.quick:
        trials += [(mode, 16, subject.short) for mode in (FLOAT32_EVAL, BFLOAT16_TRAIN)]
    if subject.of_study is not None:
        trials += [(mode, *subject.of_study) for mode in (FLOAT32_TRAIN, BFLOAT16_TRAIN)]
    return trials


@torch.no_grad()
def half_changed(subject: Subject, mode: Mode, batch: int, tokens: int) -> HalfChanged:
    """Return two calls that are made once: causality and independence both read them."""
    key = "half changed", mode, batch, tokens
    if key not in subject.memo:
        x_BTD, other_BTD = (subject.tokens(batch, tokens, mode, seed) for seed in (0, 1))
        cut_B = [tokens] * batch
        changed = [row for row in range(batch) if row % 4 in (0, 3)]
        for row, cut in zip(changed, _spread(tokens, len(changed)), strict=True):
            cut_B[row] = cut
        kept_BT1 = _before(cut_B, tokens, x_BTD.device)
        changed_BTD = torch.where(kept_BT1, x_BTD, other_BTD)
        y_BTD = subject.output(mode, batch, tokens)
        again_BTD = subject.forward(subject.built(mode), mode, changed_BTD)
        subject.memo[key] = HalfChanged(x_BTD, changed_BTD, y_BTD, again_BTD, cut_B)
    return subject.memo[key]


@mechanism_property(
    "no gradient reaches the future",
    cause="a path that is masked in value and not in gradient, such as a straight-through "
    "estimator or a statistic over time",
)
def gradients(subject: Subject) -> Iterator[Finding]:
    """Differentiate the outputs before a cut with respect to the inputs after it: must be 0."""
    modes, short, past = subject.apart(EVAL, FIRST_STEP, TRAIN), subject.short, subject.past
    trials = [(EVAL, 1, short), (TRAIN, 3, short)]
    if not subject.quick:
        trials = [(mode, batch, short) for mode in modes for batch in (1, 3)]
        trials += [(FLOAT32_TRAIN, 2, max(LONG, past))]
    trials += [(FLOAT32_TRAIN, 2, past)] * (past > short)
    trials += [(mode, short - 1, short) for mode in (FLOAT32_TRAIN, BFLOAT16_TRAIN)]
    trials += [(FLOAT32_TRAIN, len(EDGES), CHEAP)]
    trials += [(BFLOAT16_TRAIN, 2, 128)]
    trials += [(DROPOUT, 2, short)] * subject.can_drop()
    for mode, batch, tokens in trials:
        mechanism, limit = subject.build(mode), subject.limit_in(mode)
        cut_B = EDGES if (batch, tokens) == (len(EDGES), CHEAP) else _spread(tokens, batch)
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
            row = int(off_BTD.amax((1, 2)).argmax())
            if batch > 1 and off_BTD.max() > limit:  # into its own future, not into other rows
                y_BTD = subject.forward(mechanism, mode, x_BTD).to(x_BTD.dtype)
                weighted_TD = (y_BTD * weight_BTD * kept_BT1)[row]
                (by_x_BTD,) = torch.autograd.grad(weighted_TD.sum(), x_BTD)
                off_BTD = relative(torch.where(kept_BT1, by_x_BTD, 0.0), by_x_BTD)
        deviation, first = by_position(off_BTD[row : row + 1], limit)
        where = f"outputs before {cut_B[row]} have a gradient by token {first}"
        yield Finding(where, deviation, limit, place=place)


def _trials(subject: Subject) -> Iterator[Trial]:
    """Yield modes and shapes, the cheap ones first."""
    past, short = subject.past, subject.short
    for batch, tokens in subject.shapes:
        if tokens > 1:
            yield Trial(EVAL, batch, tokens, _spread(tokens, 6))
    modes = [FLOAT32_TRAIN, BFLOAT16_TRAIN, TRAIN]
    modes += [DROPOUT, BFLOAT16_DROPOUT] if subject.can_drop() else []
    if not subject.quick:
        modes += subject.apart(FLOAT32_EVAL, BFLOAT16_EVAL, FIRST_STEP)
        yield Trial(EVAL, 8, CHEAP, _spread(CHEAP, 8))
    for mode in modes:
        yield Trial(mode, 1, short, [short // 2] if subject.quick else _spread(short, 3))
        yield Trial(mode, 8, short, _spread(short, 8))
    for mode in (EVAL, FLOAT32_TRAIN, BFLOAT16_TRAIN):
        yield Trial(mode, short - 1, short, _spread(short, short - 1))
    for mode in (FLOAT32_TRAIN, BFLOAT16_TRAIN, *[BFLOAT16_EVAL] * (not subject.quick)):
        yield Trial(mode, len(EDGES), CHEAP, EDGES)
    for mode, scale in ((EVAL, HUGE), (FLOAT32_TRAIN, HUGE), (EVAL, 0.0)):
        yield Trial(mode, 8, short, _spread(short, 8), scale)
    yield Trial(EVAL, 8, short, _spread(short, 8), repeats=True)
    for mode in modes if past > short else ():
        yield Trial(mode, 2, past, [past // 2, past - 1])
    yield from _long_trials(subject)


def _long_trials(subject: Subject) -> Iterator[Trial]:
    """Yield trials of whole chunks, within a schedule, and past 1,000 and 4,096 tokens."""
    chunks = [(FLOAT32_TRAIN, tokens) for tokens in WHOLE_CHUNKS]
    chunks += [(BFLOAT16_TRAIN, tokens) for tokens in (64, 256)] + [(BFLOAT16_EVAL, 128)]
    if not subject.quick:
        chunks += [(mode, 512) for mode in (FLOAT32_TRAIN, BFLOAT16_TRAIN)]
        chunks += [(FLOAT32_TRAIN, 1_024), (BFLOAT16_TRAIN, PAST_LONG)]
    for mode, tokens in chunks:
        yield Trial(mode, 2, tokens, [tokens // 3, tokens - 1])
    short, longest = subject.short, max(LONG, subject.past)
    if subject.has_schedule:
        within = WITHIN_SCHEDULES[2:5] if subject.quick else WITHIN_SCHEDULES
        for mode in (TRAIN._replace(name=f"train at step {step}", step=step) for step in within):
            yield Trial(mode, 8, short, _spread(short, 8))
    for mode in (FLOAT32_TRAIN,) if subject.quick else (FLOAT32_EVAL, FLOAT32_TRAIN):
        cuts = [768 if mode.training else 960, longest - 1, 513, 1024]
        yield Trial(mode, len(cuts), longest, cuts)
    for mode in () if subject.quick else (EVAL, FLOAT32_TRAIN):
        yield Trial(mode, 1, FAR, [FAR - 20])  # decoding compares with the same outputs of EVAL


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


def _same_shape_limit(subject: Subject, mode: Mode) -> float:
    """Return the limit between two calls of one shape, whose roundings nearly agree."""
    return min(subject.limit_in(mode), 2 * torch.finfo(torch.bfloat16).eps)
