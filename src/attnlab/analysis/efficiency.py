"""Sample efficiency: steps, tokens and seconds of training until a target loss is reached.

    t* = first t with mean_s [ L_s(t) - target_s ] <= 0

L_s is the validation loss in training with seed s, linear between evaluations. The target is the
loss with which the baseline ends with the same seed, or one loss that the study names.

The interval of t* is that of the mean, inverted: from the first t at which its lower end is at the
target or below, to the first at which its upper end is. The intervals are paired by seed, of 95 %,
simultaneous over the variants (Bonferroni). An end that no evaluation reaches is open. They hold
the error of the seeds, and none of tuning.

Seconds are the time that the runs had spent in training steps at t*, without compilation and
evaluation: the geometric mean over the seeds. Their interval also holds the error of that mean, on
the log scale, each of the two at half the error rate.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from attnlab.analysis.curves import Curve
from attnlab.analysis.statistics.paired import paired_difference
from attnlab.analysis.table import Variant
from attnlab.analysis.verdict import Verdict


@dataclass(frozen=True, kw_only=True)
class Span:
    """When a target was reached, with its interval."""

    value: float | None  # None: not reached
    low: float | None = None  # None: not reached even by the lower end, or one seed
    high: float | None = None  # None: open, or one seed
    at_most: bool = False  # True: at the first evaluation or before; so the next, of `low`
    low_at_most: bool = False

    def times(self, factor: float) -> "Span":
        """Return the span in another unit."""
        ends = (None if at is None else at * factor for at in (self.value, self.low, self.high))
        value, low, high = ends
        return replace(self, value=value, low=low, high=high)


@dataclass(frozen=True, kw_only=True)
class Reached:
    """When one variant reached the target."""

    steps: Span
    tokens: Span | None  # None: not recorded
    seconds: Span | None  # None: not recorded, or on several devices
    speedup: float | None  # tokens of the baseline per token of this variant


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """When each variant reached the target."""

    target: float  # nats/token; a mean over seeds if it is the baseline's
    of: str | None  # the baseline whose last loss the target is; None: named by the study
    last: int  # step of the last evaluation
    variants: Mapping[str, Reached]


def efficiency_of(verdict: Verdict) -> Efficiency | None:
    """Return when each compared variant reached the target; None without one, or without curves."""
    compared = [variant for variant in verdict.counted.variants if variant.name in verdict.means]
    curves = {variant.name: variant.curve("eval_loss") for variant in compared}
    curves = {name: curve for name, curve in curves.items() if curve.steps}
    named, baseline = verdict.table.study.target_loss, verdict.baseline
    if named is not None:
        target = {seed: named for curve in curves.values() for seed in curve.by_seed}
        baseline = None
    elif baseline in curves:
        end = curves[baseline].steps[-1]
        target = {seed: at[end] for seed, at in _by_seed(curves[baseline]).items()}
    else:
        return None
    if not curves:
        return None
    among = max(1, len(curves) - (baseline is not None))
    timed = len(verdict.table.devices) < 2
    reached = {
        variant.name: _reached(variant, curves[variant.name], target, among, timed)
        for variant in compared
        if variant.name in curves and target.keys() & curves[variant.name].by_seed.keys()
    }
    if baseline is not None:
        reached[baseline] = _by_definition(reached[baseline])
        reached = {
            name: replace(of, speedup=_ratio(reached[baseline].tokens, of.tokens))
            for name, of in reached.items()
        }
    return Efficiency(
        target=sum(target.values()) / len(target),
        of=baseline,
        last=max(curve.steps[-1] for curve in curves.values()),
        variants=reached,
    )


def first_reached(curve: Curve, target: Mapping[int, float], among: int = 1) -> Span:
    """Return the step at which a curve reaches the target of each seed, one of `among` at once.

    >>> curve = Curve.of({0: [{"step": 0, "loss": 4.0}, {"step": 100, "loss": 2.0}]}, "loss")
    >>> first_reached(curve, {0: 3.5}).value
    25.0
    """
    losses = _by_seed(curve)
    means, lows, highs = list[float](), list[float](), list[float]()
    for step in curve.steps:
        at = {seed: of_seed[step] for seed, of_seed in losses.items()}
        difference = paired_difference(at, target, among)
        assert difference is not None
        means.append(difference.mean)
        if difference.interval is not None:
            lows.append(difference.interval[0])
            highs.append(difference.interval[1])
    value, low, high = (_crossing(curve.steps, of) if of else None for of in (means, lows, highs))
    first = curve.steps[0]
    return Span(value=value, low=low, high=high, at_most=value == first, low_at_most=low == first)


def _reached(
    variant: Variant, curve: Curve, target: Mapping[int, float], among: int, timed: bool
) -> Reached:
    steps = first_reached(curve, target, among)
    numbers = variant.numbers
    known = "tokens" in numbers and "steps" in numbers and numbers["steps"].mean
    per_step = numbers["tokens"].mean / numbers["steps"].mean if known else None
    return Reached(
        steps=steps,
        tokens=None if per_step is None else steps.times(per_step),
        seconds=_seconds(variant.curve("train_seconds"), curve, target, 2 * among)
        if timed
        else None,
        speedup=None,
    )


def _seconds(spent: Curve, curve: Curve, target: Mapping[int, float], among: int) -> Span | None:
    """Return the time at which the target was reached, each of its two errors one of `among`."""
    if not spent.steps or any(value <= 0 for _, at in spent.by_seed.values() for value in at):
        return None
    steps, by_seed = first_reached(curve, target, among), _by_seed(spent)
    none = dict.fromkeys(by_seed, 0.0)
    found = [
        paired_difference({seed: math.log(at[step]) for seed, at in by_seed.items()}, none, among)
        for step in spent.steps
    ]
    ends = [(f.mean, *(f.interval or (f.mean, f.mean))) for f in found if f is not None]

    def at(step: float | None, logs: Sequence[float]) -> float | None:
        if step is None:
            return None
        return float(np.interp(step, [0, *spent.steps], [0.0, *np.exp(logs)]))

    mean, low, high = zip(*ends, strict=True)
    return replace(
        steps, value=at(steps.value, mean), low=at(steps.low, low), high=at(steps.high, high)
    )


def _by_definition(reached: Reached) -> Reached:
    """Return the baseline's own without intervals: the target is where it ends."""

    def exact(span: Span) -> Span:
        return Span(value=span.value, low=span.value, high=span.value)

    return replace(
        reached, steps=exact(reached.steps), tokens=reached.tokens and exact(reached.tokens)
    )


def _ratio(whole: Span | None, part: Span | None) -> float | None:
    if whole is None or part is None or not whole.value or not part.value:
        return None
    return whole.value / part.value


def _by_seed(curve: Curve) -> dict[int, dict[int, float]]:
    return {seed: dict(zip(*points, strict=True)) for seed, points in curve.by_seed.items()}


def _crossing(steps: Sequence[int], above: Sequence[float]) -> float | None:
    """Return where the line through the points first falls to 0; None if it does not."""
    for place, here in enumerate(above):
        if here <= 0:
            if place == 0:
                return float(steps[0])
            before, start = above[place - 1], steps[place - 1]
            return start + (steps[place] - start) * before / (before - here)
    return None
