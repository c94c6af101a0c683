"""Hypothesis: a cost of every variant lies in a range."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from attnlab.analysis.costs import COSTS, CostKey
from attnlab.analysis.hypotheses.evidence import Evidence, Finding
from attnlab.analysis.hypotheses.hypothesis import Hypothesis
from attnlab.analysis.numbers import gigabytes, millions, quantity
from attnlab.analysis.sentences import listed
from attnlab.config import Problem


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
