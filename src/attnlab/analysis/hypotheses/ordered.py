"""Hypothesis: the variants have this order."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from attnlab.analysis.hypotheses.evidence import Evidence, Finding
from attnlab.analysis.hypotheses.hypothesis import Hypothesis, distinct_problems
from attnlab.analysis.sentences import listed
from attnlab.config import Problem


@dataclass(frozen=True, kw_only=True)
class Ordered(Hypothesis):
    """Each of `variants` is better than all of those after it."""

    variants: tuple[str, ...]

    @property
    def statement(self) -> str:
        return f"The order is {listed(self.variants)}, the best first."

    def judge(self, evidence: Evidence) -> Finding:
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
