"""The evidence of a study, and the three-valued rule that turns it into a ruling.

    supported    every fact that the sentence needs is shown
    refuted      one of them is shown to be false
    undecided    neither, with these seeds
    not judged   data that the sentence needs are missing

A fact about two variants is read from their simultaneous interval. "a is better than b" is true
where the difference is distinguishable and a is better. It is false where b is, and also where the
two are equivalent within the study's margin without a distinguishable difference: the margin is
the size below which the study counts a difference as none.

A hypothesis may read the results of another study, whose folder lies beside the study's own.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote

from attnlab.analysis.costs import Cost
from attnlab.analysis.fairness import between_studies
from attnlab.analysis.profile import read_by
from attnlab.analysis.sentences import compared, several
from attnlab.analysis.table import Table, Variant, read_table
from attnlab.analysis.texts import Agreement, by_text
from attnlab.analysis.verdict import Verdict, verdict_of
from attnlab.record import StudyRecord

Ruling = Literal["supported", "refuted", "undecided", "not judged"]
Fact = bool | None  # None: the data do not decide it


class NotJudgedError(Exception):
    """Data that a hypothesis needs are missing; the message says which, and what to do."""


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
    read: dict[str, str] = field(default_factory=dict[str, str])  # other studies and their digests

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

    def basis(self) -> str:
        """Return `digest`, and that of every other study that was read."""
        others = (f"{quote(name)}={digest}" for name, digest in self.read.items())
        return " ".join([self.digest(), *others])

    def has_basis(self, basis: str) -> bool:
        """True if `basis` is that of these numbers, and of those of the studies that it names."""
        fresh = replace(self, read={})
        try:
            for other in basis.split()[1:]:
                fresh.of_study(unquote(other.partition("=")[0]), comparable={})
        except NotJudgedError:
            return False
        return fresh.basis() == basis

    def of_study(
        self,
        name: str,
        *,
        comparable: Mapping[str, str] | None = None,
        apart: Iterable[str] = (),
        command: str = "",
    ) -> "Evidence":
        """Return the evidence of another study, whose runs may be packed.

        Args:
            name: of its folder, which lies beside the study's own.
            comparable: variants of this study, each with the one there that must have the same
                settings, data and number of tokens, but for seed and searched recipe. By default
                the two baselines.
            apart: settings in which they may differ, by path.
            command: what makes the other study; by default `attnlab run NAME`.

        Raises:
            NotJudgedError: there is no such study, it is damaged, or has no verdict yet, or a
                variant is not comparable.
        """
        table = self.verdict.table
        if self.texts:
            variants = tuple(v for of in self.texts for v in of.table.variants)
            table = replace(table, variants=variants)
        folder = table.path.resolve().parent / name
        run = f"`{command or f'attnlab run {name}'}`"
        if folder == table.path.resolve():
            raise NotJudgedError(f"This is study {name} itself.")
        other = _read(folder, absent=f"Not measured yet; {run} measures it.")
        if comparable is None:
            comparable = {table.study.baseline or "": other.study.baseline or ""}
        for own, there in comparable.items():
            first, second = _started(table, own), _started(other, there)
            differ = between_studies((table.study, first), (other.study, second), tuple(apart))
            if differ:
                raise NotJudgedError(f"{own} is not comparable with that of {name}: {differ}.")
        verdicts = tuple(map(verdict_of, by_text(other).values()))
        found = replace(self, verdict=verdicts[0], costs=(), texts=verdicts, agreements=(), read={})
        for there in comparable.values() or [other.study.baseline or ""]:
            verdict = found.on_text_of(there).verdict
            if not verdict.judged:
                raise NotJudgedError(f"Study {name}: {verdict.why} {run} continues it.")
        self.read[name] = found.digest()
        return found

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
        noun = read_by(self.verdict.table)
        for name in names:
            if name in self.verdict.means:
                known.append(name)
            else:
                other_text = any(name in of.means or name in of.left_out for of in self.texts)
                reason = self.verdict.left_out.get(name) or (
                    "it has another size or training length than the baseline"
                    if name in self.verdict.table.study.ladder
                    else f"it reads another {noun}, and losses are compared within one {noun}"
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


def _read(folder: Path, absent: str) -> Table:
    try:
        table = read_table(folder) if StudyRecord.find(folder) else None
    except (ValueError, OSError) as error:
        raise NotJudgedError(f"Study {folder.name} cannot be read: {error}.") from None
    if table is None:
        raise NotJudgedError(absent)
    if table.damage:
        raise NotJudgedError(f"Study {folder.name} is damaged: {table.damage[0]}.")
    return table


def _started(table: Table, name: str) -> Variant:
    found = next((v for v in table.variants if v.name == name and v.config), None)
    if found is None:
        raise NotJudgedError(f"Study {table.study.name} has no run of {name}.")
    return found
