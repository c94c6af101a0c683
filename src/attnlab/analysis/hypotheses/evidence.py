"""The evidence of a study, and the three-valued rule that turns it into a ruling.

    supported    every fact that the sentence needs is shown
    refuted      one of them is shown to be false
    undecided    neither, with these seeds
    not judged   data that the sentence needs are missing

A fact about two variants is read from their simultaneous interval. "a is better than b" is true
where the difference is distinguishable and a is better. It is false where b is, and also where the
two are equivalent within the study's margin without a distinguishable difference: the margin is
the size below which the study counts a difference as none.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from attnlab.analysis.costs import Cost
from attnlab.analysis.sentences import compared, several
from attnlab.analysis.texts import Agreement
from attnlab.analysis.verdict import Verdict

Ruling = Literal["supported", "refuted", "undecided", "not judged"]
Fact = bool | None  # None: the data do not decide it


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A ruling, and the sentences with numbers that it rests on."""

    ruling: Ruling
    found: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The comparison of the variants and their costs, by which a hypothesis is judged."""

    verdict: Verdict  # on the baseline's text
    costs: Sequence[Cost]
    texts: Sequence[Verdict] = ()  # on each text of the study
    agreements: Sequence[Agreement] = ()  # of each two texts on the order of mechanisms

    def digest(self) -> str:
        """Return the SHA-256 of all numbers that can be judged, in hexadecimal."""
        table = self.verdict.table
        runs = [
            [variant.name, run.seed, run.status, *map(run.summary.get, ("final_loss", "test_loss"))]
            for verdict in self.texts or [self.verdict]
            for variant in verdict.table.variants
            for run in variant.runs
        ]
        costs = [[cost.key, dict(cost.of)] for cost in self.costs]
        numbers = [table.study.margin, table.study.baseline, runs, costs]
        return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()

    def on_text_of(self, variant: str) -> "Evidence":
        """Return the evidence with the verdict on the text that a variant reads."""
        found = (of for of in self.texts if variant in of.means or variant in of.left_out)
        return replace(self, verdict=next(found, self.verdict))

    def better(self, first: str, second: str) -> Fact:
        """True if the first variant is better than the second; None if the data do not decide."""
        pair = self.verdict.pairs[first, second]
        if pair.separable:
            return pair.mean < 0
        return False if pair.equivalent else None

    def within(self, first: str, second: str, margin: float) -> Fact:
        """True if the two differ by at most `margin` nats/token, in either direction."""
        pair = self.verdict.pairs[first, second]
        if pair.low is None or pair.high is None:
            return None
        if -margin <= pair.low and pair.high <= margin:
            return True
        return False if pair.low > margin or pair.high < -margin else None

    def available(self, names: Iterable[str]) -> tuple[list[str], tuple[str, ...]]:
        """Return those variants that are compared, and one sentence per reason for the others."""
        known, missing = list[str](), dict[str, list[str]]()
        for name in names:
            if name in self.verdict.means:
                known.append(name)
            else:
                other_text = any(name in of.means or name in of.left_out for of in self.texts)
                reason = self.verdict.left_out.get(name) or (
                    "it has another size or training length than the baseline"
                    if name in self.verdict.table.study.ladder
                    else "it reads another text, and losses are compared within one text"
                    if other_text
                    else "the study has no such variant"
                )
                missing.setdefault(reason, []).append(name)
        sentences = tuple(
            f"Not compared: {several(absent)} ({reason})." for reason, absent in missing.items()
        )
        return known, sentences

    def compared(self, pairs: Sequence[tuple[str, str]]) -> tuple[str, ...]:
        """Return sentences on pairs of variants, one per group that shares its result."""
        return compared({pair: self.verdict.pairs[pair] for pair in pairs})

    def finding(
        self, facts: Sequence[Fact], found: Sequence[str], missing: Sequence[str] = ()
    ) -> Finding:
        """Judge a sentence that needs all of `facts`, and the variants that are missing."""
        if any(fact is False for fact in facts):
            return self.ruled("refuted", (*found, *missing))
        if missing or not facts:
            return self.ruled("not judged", (*found, *missing))
        decided = all(fact is True for fact in facts)
        return self.ruled("supported" if decided else "undecided", found)

    def ruled(self, ruling: Ruling, found: Sequence[str]) -> Finding:
        """Return the finding with these sentences."""
        return Finding(ruling=ruling, found=tuple(found))
