"""Everything that a report shows of one analysis; the HTML and Markdown templates arrange it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attnlab.analysis import lengths
from attnlab.analysis.analysis import Analysis, Pick
from attnlab.analysis.profile import read_by
from attnlab.analysis.settings import describe, flat, shared_and_own
from attnlab.analysis.table import Table
from attnlab.analysis.texts import within_each
from attnlab.record import StudyRecord
from attnlab.reporting import sentences
from attnlab.reporting.profile import harness_tables, profile_tables
from attnlab.reporting.tables import columns, comparisons
from attnlab.reporting.tables.columns import VARIANT, Column
from attnlab.reporting.tables.comparisons import Matrix, matrix_of
from attnlab.reporting.tables.rows import Row, rows
from attnlab.reporting.tables.scaling import scaling_tables
from attnlab.reporting.tables.text_tables import (
    JUDGED,
    TextTable,
    agreement_tables,
    efficiency_tables,
    family_tables,
    published_tables,
)
from attnlab.version import __version__

SECTIONS = {
    "ranking": "Ranking",
    "sweep": "Along the swept settings",
    "scaling": "Scaling",
    "profile": "Answers on tasks",
    "harness": "Tasks of lm-evaluation-harness",
    "texts": "On other texts",  # or tasks
    "hypotheses": "Hypotheses",
    "families": "All variants and families",
    "quality": "Loss",
    "loss_parts": "Parts of the loss",
    "efficiency": "Steps, tokens and time to a target loss",
    "lengths": "Beyond the training length",
    "training_lengths": "Over training lengths",
    "rates": "Learning rates",
    "cost": "Loss and cost",
    "bench": "Speed and memory against context",
    "missing": "Left out, alarms and failures",
    "method": "How it was done",
    "settings": "Settings",
    "again": "How to reproduce",
}
OF_ONE_START = ("started", "earlier", "begins")  # in environment.json: when, and from where


@dataclass(frozen=True, kw_only=True)
class OnText:
    """The ranking on one other text."""

    name: str
    headline: str
    ranking: Sequence[Column]
    rows: Sequence[Row]

    @classmethod
    def of(cls, name: str, analysis: Analysis) -> "OnText":
        """Collect the ranking."""
        shown = rows(analysis)
        ranking = columns.known(columns.ranking(analysis), shown)
        return cls(name=name, headline=analysis.headline[0], ranking=ranking, rows=shown)


@dataclass(frozen=True, kw_only=True)
class ReportContext:
    """The names that the templates use."""

    analysis: Analysis
    study: StudyRecord
    question: str  # the first line of the study's
    asked: Sequence[sentences.Paragraph]  # the rest of it
    unfair: Sequence[str]  # empty where the comparison is fair
    devices: str  # empty where all runs ran on one kind of device
    how_sure: str
    at_recipe: str  # empty where settings were tuned
    facts: Mapping[str, str]
    legend: str  # of the ranking
    intervals: str  # of differences to the baseline
    picked: Sequence[Pick]  # empty without a verdict, where none has a winner
    rows: Sequence[Row]  # variants with a finished run, in order of rank
    ranking: Sequence[Column]
    matrix: Matrix | None  # the differences of all pairs; None for too many variants
    texts: Sequence[OnText]  # the other texts of the study
    texts_note: str  # empty for a study of one text
    scaling: Sequence[TextTable]  # empty for a study that is no ladder
    profile: Sequence[TextTable]  # empty for a study of texts
    harness: Sequence[TextTable]  # one; empty without harness.json
    agreements: Sequence[TextTable]  # one; empty for a study of one text
    costs: Sequence[Column]
    parts: Sequence[Column]
    loss_parts: Sequence[Column]
    loss_parts_rows: Sequence[Row]
    loss_parts_note: str
    efficiency: Sequence[TextTable]  # one; empty without a target
    length_columns: Sequence[Column]
    length_rows: Sequence[Row]
    length_sentences: Sequence[str]
    training_lengths: Sequence[TextTable]  # one; empty without another length beside the study
    rate_columns: Sequence[Column]
    rate_rows: Sequence[Row]
    families: Sequence[TextTable]
    published: Sequence[TextTable]
    judged: str  # how hypotheses are judged
    left_out: Mapping[str, str]  # reasons, by names
    missing: Sequence[str]
    alarms: Sequence[str]
    shared: Mapping[str, str]  # settings of all variants, by dotted path
    own: Mapping[str, Mapping[str, str]]  # settings by variant
    environment: Mapping[str, str]
    titles: Mapping[str, str]  # of sections
    version: str

    @classmethod
    def of(cls, analysis: Analysis) -> "ReportContext":
        """Collect everything but the charts."""
        table, shown, noun = analysis.whole, rows(analysis), read_by(analysis.whole)
        shared, own = settings(table)
        return cls(
            analysis=analysis,
            study=table.study,
            question=sentences.lead(table.study.question) or table.study.name,
            asked=sentences.rest(table.study.question),
            unfair=sentences.unfair(table),
            devices=sentences.devices(table),
            at_recipe=sentences.at_recipe(analysis),
            how_sure=sentences.how_sure(analysis),
            facts=sentences.facts(analysis),
            legend=sentences.legend(analysis),
            intervals=sentences.intervals(analysis),
            picked=analysis.picks if analysis.judged else (),
            rows=shown,
            ranking=columns.known(columns.ranking(analysis), shown),
            matrix=matrix_of(analysis),
            texts=[OnText.of(name, of) for name, of in analysis.texts.items()],
            texts_note=within_each(analysis.text, 1 + len(analysis.texts), analysis.level, noun)
            if analysis.texts
            else "",
            agreements=agreement_tables(analysis),
            scaling=scaling_tables(analysis),
            profile=profile_tables(analysis),
            harness=harness_tables(analysis),
            costs=columns.known([VARIANT, *columns.costs(shown)], shown),
            parts=columns.known([VARIANT, *columns.parts()], shown),
            loss_parts=comparisons.parts_of_loss(analysis),
            loss_parts_rows=[row for row in shown if row.name in analysis.parts],
            loss_parts_note=f"{sentences.RECALL} {sentences.parts_intervals(analysis)}",
            efficiency=efficiency_tables(analysis),
            length_columns=comparisons.lengths(analysis),
            length_rows=[row for row in shown if row.name in analysis.lengths],
            length_sentences=lengths.sentences(analysis.lengths),
            training_lengths=comparisons.over_training_lengths(analysis),
            rate_columns=comparisons.rates(analysis),
            rate_rows=[row for row in shown if row.name in analysis.rates],
            families=family_tables(analysis),
            published=published_tables(analysis),
            judged=sentences.scoped(JUDGED.format(noun), analysis),
            left_out=sentences.left_out(analysis),
            missing=sentences.unfinished(analysis),
            alarms=sentences.alarms(table),
            shared=shared,
            own=own,
            environment=environment(table),
            titles={**SECTIONS, "texts": f"On other {noun}s"},
            version=__version__,
        )


def settings(table: Table) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Return `{path: value}` that all variants share, and what each variant has of its own.

    What is none for all of them does nothing, or is the default that a sentence names.
    """
    configs = {variant.name: variant.config for variant in table.variants if variant.config}
    shared, own = shared_and_own(configs)
    given = {path: value for path, value in shared.items() if value is not None}
    return _described(given), {name: _described(of_one) for name, of_one in own.items()}


def environment(table: Table) -> dict[str, str]:
    """Return where the runs ran, by dotted path; where they differ, every value.

    In a comparison of several folders each value names the folders that have it.
    """
    seen: dict[str, dict[str, dict[str, None]]] = {}
    for variant in table.variants:
        for run in variant.runs:
            there = {key: of for key, of in run.environment.items() if key not in OF_ONE_START}
            if "processes" in there:
                there["processes"] = run.processes
            for path, value in flat(there).items():
                seen.setdefault(path, {}).setdefault(describe(value), {})[variant.name] = None
    starts = sorted(
        run.environment["started"] for run in table.runs if "started" in run.environment
    )
    when = {"runs started": f"{starts[0]} to {starts[-1]}"} if starts else {}
    of_runs = _gradients(table) | when
    return {path: _every(values, table) for path, values in seen.items()} | of_runs


def _gradients(table: Table) -> dict[str, str]:
    """Return how far gradients in bfloat16 are from those in float32, where runs recorded it."""
    found = [
        run.summary["gradient_error"] for run in table.runs if run.summary.get("gradient_error")
    ]
    shares = [
        it["error"] / it["allowed"] for it in found if it["error"] is not None and it["allowed"]
    ]
    if not shares:
        return {}
    worst = max(shares)
    text = f"compared in {len(found)} runs; the largest error is {worst:.0%} of what is allowed"
    return {"gradients in bfloat16 and float32": text}


def _every(values: Mapping[str, Iterable[str]], table: Table) -> str:
    if len(values) == 1 or not table.sources:
        return " | ".join(values)
    return " | ".join(f"{value} ({table.where(names)})" for value, names in values.items())


def _described(values: Mapping[str, Any]) -> dict[str, str]:
    return {path: describe(value) for path, value in values.items()}
