"""Hypothesis: some variants are better than others."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from attnlab.analysis.hypotheses.evidence import Evidence, Finding
from attnlab.analysis.hypotheses.hypothesis import Hypothesis, distinct_problems
from attnlab.analysis.sentences import listed
from attnlab.config import Problem


@dataclass(frozen=True, kw_only=True)
class Better(Hypothesis):
    """Each of `variants` is better than each of `than`."""

    variants: tuple[str, ...]
    than: tuple[str, ...]

    @property
    def statement(self) -> str:
        first, second = self.variants, self.than
        who = listed(first) if len(first) == 1 else f"Each of {listed(first)}"
        whom = listed(second) if len(second) == 1 else f"each of {listed(second)}"
        return f"{who} is better than {whom}."

    def judge(self, evidence: Evidence) -> Finding:
        known, missing = evidence.available((*self.variants, *self.than))
        pairs = [pair for pair in product(self.variants, self.than) if set(pair) <= set(known)]
        return evidence.finding(
            [evidence.better(*pair) for pair in pairs], evidence.compared(pairs), missing
        )

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from distinct_problems((*self.variants, *self.than), at_least=2)
        if not self.variants:
            yield Problem("variants", "name at least 1")
        if not self.than:
            yield Problem("than", "name at least 1")
