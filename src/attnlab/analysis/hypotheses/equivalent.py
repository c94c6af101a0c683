"""Hypothesis: variants are equivalent within a margin."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from attnlab.analysis.hypotheses.evidence import Evidence, Finding
from attnlab.analysis.hypotheses.hypothesis import Hypothesis, distinct_problems
from attnlab.analysis.sentences import apart, listed
from attnlab.config import Problem


@dataclass(frozen=True, kw_only=True)
class Equivalent(Hypothesis):
    """No two of `variants` (of all, if none is named) differ by more than `margin` nats/token."""

    variants: tuple[str, ...] = ()
    margin: float | None = None  # None: the study's margin

    @property
    def statement(self) -> str:
        who = f"{listed(self.variants)} are" if self.variants else "All variants are"
        margin = "the study's margin" if self.margin is None else f"{self.margin:g} nats/token"
        return f"{who} equivalent within {margin}."

    def judge(self, evidence: Evidence) -> Finding:
        verdict = evidence.verdict
        every = tuple(variant.name for variant in verdict.table.variants)
        known, missing = evidence.available(self.variants or every)
        margin = verdict.margin if self.margin is None else self.margin
        pairs = list(combinations(known, 2))
        facts = [evidence.within(*pair, margin) for pair in pairs]
        found = list(evidence.compared(pairs))
        if len(pairs) > 1:
            by_mean = sorted(known, key=lambda name: verdict.means[name])
            first, last = by_mean[0], by_mean[-1]
            found = [
                f"The means span {apart(verdict.pairs[last, first])}, from {first} to {last}.",
                f"Of {len(pairs)} pairs, {facts.count(True)} are within {margin:g} nats/token, and "
                f"{facts.count(False)} differ by more.",
            ]
        return evidence.finding(facts, found, missing)

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from distinct_problems(self.variants, at_least=2 if self.variants else 0)
        if self.margin is not None and self.margin <= 0:
            yield Problem("margin", f"must be positive, got {self.margin}")
