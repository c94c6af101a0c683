"""Hypotheses on order: of variants by loss or cost, of mechanisms on all texts; one's place."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar, Literal

from attnlab.analysis.costs import COSTS, Cost, CostKey
from attnlab.analysis.hypotheses.evidence import Evidence, Fact, Finding
from attnlab.analysis.hypotheses.hypothesis import Hypothesis, distinct_problems
from attnlab.analysis.numbers import quantity
from attnlab.analysis.profile import read_by
from attnlab.analysis.sentences import listed
from attnlab.analysis.texts import agreed
from attnlab.config import Problem


@dataclass(frozen=True, kw_only=True)
class Ordered(Hypothesis):
    """Each of `variants` is better than all of those after it."""

    variants: tuple[str, ...]

    @property
    def statement(self) -> str:
        return f"The order is {listed(self.variants)}, the best first."

    def judge(self, evidence: Evidence) -> Finding:
        evidence = evidence.on_text_of(self.variants[0])
        known, missing = evidence.available(self.variants)
        pairs = list(combinations(known, 2))
        facts = [evidence.better(*pair) for pair in pairs]
        against = [pair for pair, fact in zip(pairs, facts, strict=True) if fact is False]
        shown = sum(fact is True for fact in facts)
        count = (f"{shown} of {len(pairs)} pairs are in this order.",) if len(pairs) > 1 else ()
        return evidence.finding(facts, (*count, *evidence.compared(against or pairs)), missing)

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from distinct_problems(self.variants, at_least=2)


@dataclass(frozen=True, kw_only=True)
class OrderedByCost(Hypothesis):
    """Each of `variants` costs less than all of those after it.

    A time is compared by its own intervals, of the runs on this device, simultaneous over the pairs
    of the order. Costs that differ by less than their resolution, 5 % for times, are equal.
    """

    cost: CostKey
    variants: tuple[str, ...]

    needs_verdict: ClassVar[bool] = False  # a cost has intervals of its own

    @property
    def statement(self) -> str:
        return f"By {COSTS[self.cost][0]}, the order is {listed(self.variants)}, the lowest first."

    def judge(self, evidence: Evidence) -> Finding:
        cost = next((cost for cost in evidence.costs if cost.key == self.cost), None)
        if cost is None:
            why = f"{COSTS[self.cost][0]}: not measured, or measured on several devices."
            return evidence.ruled("not judged", (f"{why[0].upper()}{why[1:]}",))
        known = [name for name in self.variants if name in cost.of]
        absent = [name for name in self.variants if name not in cost.of]
        missing = (f"Not measured: {listed(absent)}.",) if absent else ()
        pairs = list(combinations(known, 2))
        facts = [_cheaper(cost, *pair, among=len(pairs)) for pair in pairs]
        against = [pair for pair, fact in zip(pairs, facts, strict=True) if fact is False]
        shown = [
            f"{name} {quantity(cost.of[name], cost.unit)}"
            for name in sorted(known, key=lambda name: cost.of[name])
        ]
        found = [f"{facts.count(True)} of {len(pairs)} pairs are in this order."] if pairs else []
        if against:
            after = {first: [second for one, second in against if one == first] for first in known}
            false = [f"{first} before {listed(of)}" for first, of in after.items() if of]
            found.append(f"Shown to be false: {'; '.join(false)}.")
        found.append(f"Measured: {', '.join(shown)}.")
        return evidence.finding(facts, found, missing)

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from distinct_problems(self.variants, at_least=2)


def _cheaper(cost: Cost, first: str, second: str, *, among: int) -> Fact:
    """True if the first costs less; False if it costs more or as much, within the resolution."""
    if cost.cheaper(first, second, among):
        return True
    equal = cost.equal(first, second, among)
    return False if equal or cost.cheaper(second, first, among) else None


@dataclass(frozen=True, kw_only=True)
class SameOrder(Hypothesis):
    """Kendall's tau of the order of mechanisms is at least `least` between any two texts.

    The study has variants with the same mechanisms on several texts. Their losses are compared
    within each text alone (`attnlab.analysis.texts`).
    """

    least: float = 0.6  # 1: the same order, -1: opposite orders

    needs_verdict: ClassVar[bool] = False  # each text has one of its own

    @property
    def statement(self) -> str:
        return (
            "The mechanisms have much the same order on every text: Kendall's tau between any two "
            f"is at least {self.least:g}."
        )

    def judge(self, evidence: Evidence) -> Finding:
        noun = read_by(evidence.verdict.table)
        if not (found := evidence.agreements):
            return evidence.ruled(
                "not judged", (f"No two {noun}s have two mechanisms in common that are compared.",)
            )
        facts = [
            None
            if it.low is None or it.high is None
            else True
            if it.low >= self.least
            else False
            if it.high < self.least
            else None
            for it in found
        ]
        missing = [f"No verdict on both of {listed(it.texts)}." for it in found if it.low is None]
        return evidence.finding(facts, [agreed(it) for it in found], missing)

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if not -1 < self.least <= 1:
            yield Problem("least", f"must be above -1, and at most 1; got {self.least:g}")


@dataclass(frozen=True, kw_only=True)
class Ranked(Hypothesis):
    """`variant` is better (or worse) than all others but `places` - 1.

    With one place, it is better (or worse) than every other variant. Names of one function share
    a place.
    """

    variant: str
    among: Literal["best", "worst"] = "best"
    places: int = 1

    @property
    def statement(self) -> str:
        others = "every other variant"
        if self.places > 1:
            others = f"all but {self.places - 1} of the other variants"
        return f"{self.variant} is {'better' if self.among == 'best' else 'worse'} than {others}."

    def judge(self, evidence: Evidence) -> Finding:
        evidence = evidence.on_text_of(self.variant)
        verdict, name = evidence.verdict, self.variant
        missing = evidence.available([name, *verdict.left_out])[1]
        if name not in verdict.means:
            return evidence.ruled("not judged", missing)
        others = [names[0] for names in verdict.functions if name not in names]
        behind = {other: evidence.better(name, other) for other in others}
        if self.among == "worst":
            behind = {other: evidence.better(other, name) for other in others}
        beaten = sum(fact is True for fact in behind.values())
        refuting = [other for other in others if behind[other] is False]
        rivals = refuting or [other for other in others if behind[other] is None] or others
        place = 1 + sum(verdict.means[other] < verdict.means[name] for other in others)
        comparative = "better" if self.among == "best" else "worse"
        found = (
            f"{name} is {comparative} than {beaten} of {len(others)}; by its mean loss it has "
            f"place {place} of {len(others) + 1}.",
            *evidence.compared([(other, name) for other in rivals]),
            *missing,
        )
        if len(refuting) >= self.places:
            return evidence.ruled("refuted", found)
        if beaten > len(others) + len(verdict.left_out) - self.places:
            return evidence.ruled("supported", found)
        return evidence.ruled("not judged" if verdict.left_out else "undecided", found)

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if self.places < 1:
            yield Problem("places", f"must be at least 1, got {self.places}")
