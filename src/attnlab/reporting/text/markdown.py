"""report.md: what `page` shows, in short, for who reads it where HTML does not render.

The text is in `templates/report.md.j2`.
"""

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from attnlab.analysis import numbers
from attnlab.analysis.analysis import Analysis
from attnlab.analysis.lengths import sentences
from attnlab.reporting.tables import columns as column
from attnlab.reporting.tables.columns import VARIANT, Column
from attnlab.reporting.tables.families import family_grids
from attnlab.reporting.tables.published import JUDGED, published_grids
from attnlab.reporting.tables.rows import rows
from attnlab.reporting.text import sentences as words
from attnlab.reporting.text.provenance import environment, settings
from attnlab.version import __version__


def markdown(analysis: Analysis, picture: str | None) -> str:
    """The report as text. `picture` is the path to show, relative to the report, or None."""
    shown, table = rows(analysis), analysis.table
    shared, own = settings(table)
    templates = Environment(
        loader=PackageLoader("attnlab.reporting.html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, not HTML; `cell` escapes what would break a table
    )
    templates.filters["cell"] = _cell
    return templates.get_template("report.md.j2").render(
        analysis=analysis,
        study=table.study,
        question=words.lead(table.study.question),
        asked=words.rest(table.study.question),
        unfair=words.unfair(table),
        devices=words.devices(table),
        how_sure=words.how_sure(analysis),
        facts=words.facts(analysis),
        legend=words.legend(analysis) if analysis.tiers else "",
        picture=picture,
        rows=shown,
        ranking=column.known(column.ranking(analysis), shown),
        judged=JUDGED,
        published=published_grids(analysis),
        families=family_grids(analysis),
        differences=_differences(analysis),
        length_columns=column.lengths(analysis),
        length_rows=[row for row in shown if row.name in analysis.lengths],
        length_sentences=sentences(analysis.lengths),
        costs=column.known([VARIANT, *column.costs()], shown),
        parts=column.known([VARIANT, *column.parts()], shown),
        missing=words.unfinished(table),
        alarms=words.alarms(table),
        shared=shared,
        own=own,
        environment=environment(table),
        numbers=numbers,
        version=__version__,
    )


def _differences(analysis: Analysis) -> list[Column]:
    """The forest plot in numbers."""
    if not analysis.to_baseline or not analysis.tiers:
        return []
    to = analysis.to_baseline

    def mean(name: str) -> str:
        return f"{to[name].mean:+.4f}" if name in to else "baseline"

    def simultaneous(name: str) -> str:
        return numbers.interval(to[name].low, to[name].high) if name in to else ""

    def plain(name: str) -> str:
        pair = to.get(name)
        return numbers.interval(pair.paired_low, pair.paired_high) if pair else ""

    return [
        VARIANT,
        Column(title="difference", text=lambda r: mean(r.name), value=lambda _: None),
        Column(title="for all pairs at once", text=lambda r: simultaneous(r.name)),
        Column(title="for this pair alone", text=lambda r: plain(r.name)),
    ]


def _cell(value: Any) -> str:
    """On one line, and without what Markdown would take for a cell, emphasis or a tag."""
    text = " ".join(str(value).split())
    escaped: Mapping[str, str] = {"\\": "\\\\", "<": "&lt;"} | {"|": "\\|", "*": "\\*"}
    return "".join(escaped.get(character, character) for character in text)
