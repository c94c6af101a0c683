"""Hypotheses on ranges: of the accuracy or loss of some variants, or of a cost of every variant."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from attnlab.analysis.costs import COSTS, CostKey
from attnlab.analysis.hypotheses.evidence import Evidence, Fact, Finding
from attnlab.analysis.hypotheses.hypothesis import Hypothesis, distinct_problems
from attnlab.analysis.numbers import gigabytes, millions, quantity
from attnlab.analysis.profile import accuracy_at, mean_interval
from attnlab.analysis.sentences import listed
from attnlab.analysis.table import Variant
from attnlab.config import Problem

Interval: TypeAlias = tuple[float | None, float | None, str]  # ends if it has any; with the mean


@dataclass(frozen=True, kw_only=True)
class AccuracyInRange(Hypothesis):
    """Each of `variants` has an accuracy of at least `low` and at most `high`.

    It is the mean over seeds, with 95 % intervals that hold for all variants at once (Bonferroni),
    of seeds and at least of the answers (`profile`): supported where all lie in the range, refuted
    where one lies outside. With `length` it is that of validation sequences of so many tokens
    (`eval.lengths`).
    """

    variants: tuple[str, ...]
    low: float = 0.0
    high: float = 1.0
    length: int | None = None  # None: that of training, on the split of the verdict

    needs_verdict = False

    @property
    def statement(self) -> str:
        who = f"{listed(self.variants)} has" if len(self.variants) == 1 else ""
        who = who or f"Each of {listed(self.variants)} has"
        if self.low > 0 and self.high < 1:
            what = f"an accuracy of {self.low:g} to {self.high:g}"
        elif self.high < 1:
            what = f"an accuracy of at most {self.high:g}"
        else:
            what = f"an accuracy of at least {self.low:g}"
        where = "" if self.length is None else f" in sequences of {self.length:,} tokens"
        return f"{who} {what}{where}."

    def judge(self, evidence: Evidence) -> Finding:
        def measured(variant: Variant, split: str) -> Interval | None:
            accuracy = accuracy_at(variant, split, self.length, among=len(self.variants))
            return accuracy and (accuracy.low, accuracy.high, str(accuracy))

        return _judged(evidence, self.variants, measured, (self.low, self.high))

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from distinct_problems(self.variants, at_least=1)
        if not 0 <= self.low <= self.high <= 1:
            yield Problem("low", f"must lie from 0 to high <= 1, got {self.low} and {self.high}")
        elif (self.low, self.high) == (0.0, 1.0):
            yield Problem("low", "give low or high: every accuracy is from 0 to 1")
        if self.length is not None and self.length < 1:
            yield Problem("length", f"must be at least 1 token, got {self.length}")


@dataclass(frozen=True, kw_only=True)
class LossInRange(Hypothesis):
    """Each of `variants` has a loss from `low` to `high`, in nats/token.

    It is that of the split of the verdict, or with `best` the lowest validation loss during
    training; the rule is that of `AccuracyInRange`.
    """

    variants: tuple[str, ...]
    low: float = 0.0
    high: float
    best: bool = False  # True: the lowest validation loss of the run, not the last loss

    needs_verdict = False

    @property
    def statement(self) -> str:
        who = f"{listed(self.variants)} has" if len(self.variants) == 1 else ""
        who = who or f"Each of {listed(self.variants)} has"
        what = "a lowest validation loss" if self.best else "a loss"
        low, high = f"{self.low:g}", f"{self.high:g} nats/token"
        return f"{who} {what} of {f'{low} to' if self.low > 0 else 'at most'} {high}."

    def judge(self, evidence: Evidence) -> Finding:
        def measured(variant: Variant, split: str) -> Interval | None:
            by_seed = variant.by_seed("best_loss" if self.best else f"{split}_loss")
            found = mean_interval(list(by_seed.values()), among=len(self.variants))
            if found is None:
                return None
            mean, low, high = found
            interval = f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else ""
            return low, high, f"{mean:.3f}{interval}"

        return _judged(evidence, self.variants, measured, (self.low, self.high))

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from distinct_problems(self.variants, at_least=1)
        if not 0 <= self.low <= self.high < math.inf:
            yield Problem("low", f"must lie from 0 to high, got {self.low} and {self.high}")


def _judged(
    evidence: Evidence,
    variants: Sequence[str],
    measured: Callable[[Variant, str], Interval | None],
    ends: tuple[float, float],
) -> Finding:
    """Return the finding on the means of variants, of which all have to lie between the ends.

    `measured` gives mean and interval of a variant, by the name of the split of the verdict.
    """
    facts, found, missing = list[Fact](), list[str](), list[str]()
    for name in variants:
        verdict = evidence.on_text_of(name).verdict
        variant = next((v for v in verdict.table.variants if v.name == name), None)
        interval = variant and measured(variant, verdict.metric.removesuffix("_loss"))
        if interval is None:
            missing.append(name)
            continue
        low, high, shown = interval
        if low is None or high is None:
            facts.append(None)
            found.append(f"{name}: {shown}, no interval with one seed.")
            continue
        inside = ends[0] <= low and high <= ends[1]
        outside = high < ends[0] or low > ends[1]
        facts.append(True if inside else False if outside else None)
        found.append(f"{name}: {shown}.")
    return evidence.finding(facts, found, [f"Not measured: {listed(missing)}."] if missing else [])


@dataclass(frozen=True, kw_only=True)
class CostInRange(Hypothesis):
    """A cost of every variant is from `low` to `high`, in its own unit (bytes, seconds, none)."""

    cost: CostKey
    low: float
    high: float
    resolution: float = 0.0  # half of the last digit published

    needs_verdict: ClassVar[bool] = False

    @property
    def statement(self) -> str:
        label, unit = COSTS[self.cost]
        ends = f"{_decimal(self.low, unit)} to {_decimal(self.high, unit)}"
        return f"{label[0].upper()}{label[1:]}: every variant has {ends}."

    def judge(self, evidence: Evidence) -> Finding:
        cost = next((cost for cost in evidence.costs if cost.key == self.cost), None)
        if cost is None:
            why = f"{COSTS[self.cost][0]}: not measured, or measured on several devices"
            return evidence.ruled("not judged", (f"{why[0].upper()}{why[1:]}.",))
        by_size = sorted(cost.of, key=lambda name: cost.of[name])
        shown = {name: _decimal(cost.of[name], cost.unit) for name in by_size}
        first, last = by_size[0], by_size[-1]
        found = [f"Measured: {shown[first]} ({first}) to {shown[last]} ({last})."]
        outside = [name for name in by_size if not self._holds(cost.of[name])]
        if outside:
            which = listed([f"{name} ({shown[name]})" for name in outside])
            inside = len(by_size) - len(outside)
            found.append(f"{inside} of {len(by_size)} are in the range; outside: {which}.")
            if not inside:
                found[-1] = "None is in the range."
            return evidence.ruled("refuted", found)
        unmeasured = [v.name for v in evidence.verdict.table.variants if v.name not in cost.of]
        if unmeasured:
            found.append(f"Not measured yet: {listed(unmeasured)}.")
        return evidence.ruled("not judged" if unmeasured else "supported", found)

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if self.low > self.high:
            yield Problem("low", f"must not be above high, {self.high}; got {self.low}")

    def _holds(self, value: float) -> bool:
        return self.low - self.resolution <= value <= self.high + self.resolution


def _decimal(value: float, unit: str) -> str:
    """Return a cost as papers write it, bytes in units of 10^9."""
    if unit == "bytes":
        return gigabytes(value)
    return quantity(value, unit) if unit else millions(value)
