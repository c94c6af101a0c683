"""A hypothesis: one sentence about the variants of a study, and the rule that judges it.

A kind writes its sentence from its own fields, so that the sentence shown is the one judged. Where
somebody else made the claim, `source` and `wording` are quoted beside it.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, cast

from attnlab.analysis.costs import Cost
from attnlab.analysis.hypotheses.evidence import Evidence, Finding, NotJudgedError, Ruling
from attnlab.analysis.texts import Agreement
from attnlab.analysis.verdict import Verdict
from attnlab.config import (
    Choice,
    ConfigError,
    Problem,
    is_interrupt,
    is_own,
    own_error,
    own_kind,
    read_from_record,
)
from attnlab.record import Json, JudgementForm, StudyRecord

LOSS = "loss, nats/token"


@dataclass(frozen=True, kw_only=True)
class Hypothesis(Choice, ABC):
    """A sentence that the data can judge; a subclass is one kind of sentence.

    `published` holds the numbers of a source by variant, the best first. They are shown beside the
    study's own and are not judged: a loss on another text is another number.
    """

    source: str = ""  # who published it, and on what evidence; empty: the study's own
    wording: str = ""  # the source's own words
    published: tuple[tuple[str, float], ...] = ()
    measure: str = LOSS  # name and unit of the published numbers

    needs_verdict: ClassVar[bool] = True  # False for a kind that needs no simultaneous intervals

    @property
    @abstractmethod
    def statement(self) -> str:
        """The hypothesis as one sentence, written from the fields of its kind."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The names of other studies that it reads; in such a study itself it is left out."""
        return (study,) if (study := getattr(self, "study", "")) else ()

    @abstractmethod
    def judge(self, evidence: Evidence) -> Finding:
        """Return the ruling, and the sentences with numbers that it rests on."""

    def problems(self) -> Iterator[Problem]:
        if self.wording and not self.source.strip():
            yield Problem("wording", "name the source of these words in `source`")
        if self.published and not self.source.strip():
            yield Problem("published", "name the source of these numbers in `source`")


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A hypothesis as the data of the study judge it."""

    statement: str
    ruling: Ruling
    found: tuple[str, ...]  # sentences with numbers and intervals
    source: str = ""
    wording: str = ""
    measure: str = LOSS  # of the published numbers
    published: Mapping[str, float]  # by variant, the best first
    basis: str = ""  # of the user's own code: SHA-256 of what it judged, as `Evidence.basis`


def judge_all(
    verdict: Verdict,
    costs: Sequence[Cost],
    texts: Sequence[Verdict] = (),
    agreements: Sequence[Agreement] = (),
) -> tuple[Judgement, ...]:
    """Return one judgement per hypothesis of the study, in the study's order.

    One about variants of another text is judged by the verdict on that text, among `texts`. One of
    the user's own kind, whose class this process has not imported, is that of the record if the
    numbers are those that it judged.
    """
    evidence = Evidence(verdict=verdict, costs=costs, texts=texts, agreements=agreements)
    return tuple(_judged(recorded, evidence) for recorded in verdict.table.study.hypotheses)


def to_record(study: StudyRecord, judgements: Sequence[Judgement]) -> list[JudgementForm]:
    """Return the judgements by the user's own code, for the study's record."""
    earlier = {json.dumps(entry["hypothesis"]): entry for entry in study.judgements}
    found = list[JudgementForm]()
    for hypothesis, judged in zip(study.hypotheses, judgements, strict=True):
        if judged.basis:
            entry = {**asdict(judged), "found": list(judged.found), "hypothesis": hypothesis}
            found.append(cast("JudgementForm", entry))
        elif entry := earlier.get(json.dumps(hypothesis)):
            found.append(entry)
    return found


def _judged(recorded: Mapping[str, Any], evidence: Evidence) -> Judgement:
    entries = evidence.verdict.table.study.judgements
    earlier = next((entry for entry in entries if entry["hypothesis"] == recorded), None)
    try:
        with read_from_record(None, ": it is judged by `attnlab run`, which loads the study"):
            hypothesis = Hypothesis.from_dict({**recorded, "kind": _in_use(recorded.get("kind"))})
    except ConfigError as error:  # a kind of a newer version, or of a user's file that is gone
        if earlier is not None and evidence.has_basis(earlier["basis"]):
            known: Json = {**earlier, "found": tuple(earlier["found"])}
            del known["hypothesis"]
            return Judgement(**known)
        found = [f"{error}."]
        if earlier is not None:
            found.append(f"It was {earlier['ruling']} by other numbers than these.")
        kind = recorded.get("kind")
        return Judgement(
            statement=f"A hypothesis of the kind {kind!r}.",
            ruling="not judged",
            found=tuple(found),
            source=recorded.get("source") or "",
            wording=recorded.get("wording") or "",
            published={},
        )
    own, evidence = is_own(type(hypothesis)), replace(evidence, read={})
    try:
        statement = hypothesis.statement
        if hypothesis.needs_verdict and not evidence.verdict.judged:
            finding = Finding(ruling="not judged", found=(evidence.verdict.why,))
        else:
            finding = _finding(hypothesis, evidence)
    except BaseException as error:
        if not own or is_interrupt(error):
            raise
        statement = f"A hypothesis of the kind {recorded.get('kind')!r}."
        finding = Finding(ruling="not judged", found=(own_error(error) or repr(error),))
    return Judgement(
        statement=statement,
        ruling=finding.ruling,
        found=finding.found,
        source=hypothesis.source,
        wording=hypothesis.wording,
        measure=hypothesis.measure,
        published=dict(hypothesis.published),
        basis=evidence.basis() if own else "",
    )


def _finding(hypothesis: Hypothesis, evidence: Evidence) -> Finding:
    try:
        return hypothesis.judge(evidence)
    except NotJudgedError as error:
        return Finding(ruling="not judged", found=(str(error),))


def _in_use(kind: Any) -> Any:
    """Return a recorded kind; with its class if it is the user's and this process has imported it.

    The study's file imports the kinds of its hypotheses. A record alone executes no file.
    """
    kinds = [own_kind(cls) for cls in _subclasses(Hypothesis) if is_own(cls)]
    return next((own for own in reversed(kinds) if own == kind), kind)


def _subclasses(cls: type[Hypothesis]) -> Iterator[type[Hypothesis]]:
    for one in cls.__subclasses__():
        yield one
        yield from _subclasses(one)


def distinct_problems(variants: Sequence[str], *, at_least: int) -> Iterator[Problem]:
    """Yield the problems of a field `variants` that names too few, or one of them twice."""
    if len(variants) < at_least:
        yield Problem("variants", f"name at least {at_least}")
    if len(set(variants)) < len(variants):
        yield Problem("variants", "name each once")
