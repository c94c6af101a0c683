"""Hypothesis: a variant is among the best, or among the worst, of all."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from attnlab.analysis.hypotheses.evidence import Evidence, Finding
from attnlab.analysis.hypotheses.hypothesis import Hypothesis
from attnlab.config import Problem


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
