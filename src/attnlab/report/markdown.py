"""report.md: the question, what the numbers allow one to say, the numbers, and how they were made.

The text is in `templates/report.md.j2`.
"""

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from attnlab.analysis.settings import describe, flat, shared_and_own
from attnlab.analysis.table import Table, Variant
from attnlab.report import units
from attnlab.report.verdict import headline, mechanism_of, seeds_of, unfinished, verdict

OF_ONE_START = ("started", "earlier")  # in environment.json: when, and where before a resume


def markdown(table: Table, picture: str | None) -> str:
    """The report as text. `picture` is the path to show, relative to the report, or None."""
    configs = {variant.name: variant.config for variant in table.variants if variant.config}
    shared, own = shared_and_own(configs)
    environment = Environment(
        loader=PackageLoader("attnlab.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, not HTML; `cell` escapes what would break a table
    )
    environment.filters["cell"] = _cell
    return environment.get_template("report.md.j2").render(
        table=table,
        baseline=table.study.baseline,
        headline=headline(table),
        verdict=verdict(table),
        unfinished=unfinished(table),
        picture=picture,
        picture_words="Validation loss, perplexity, time per step and learning curves by variant",
        tested=any("test_loss" in variant.numbers for variant in table.ranked),
        shared=shared,
        own=own,
        environment=_environment(table),
        units=units,
        describe=describe,
        mean=_mean,
        whole=_whole,
        mechanism_of=mechanism_of,
        seeds_of=seeds_of,
    )


def _environment(table: Table) -> dict[str, str]:
    """Where the runs ran, by dotted path; where they differ, every value."""
    seen: dict[str, dict[str, None]] = {}
    for run in table.runs:
        there = {key: value for key, value in run.environment.items() if key not in OF_ONE_START}
        for path, value in flat(there).items():
            seen.setdefault(path, {})[describe(value)] = None
    starts = sorted(
        run.environment["started"] for run in table.runs if "started" in run.environment
    )
    when = {"runs started": f"{starts[0]} to {starts[-1]}"} if starts else {}
    return {path: " | ".join(values) for path, values in seen.items()} | when


def _mean(variant: Variant, key: str) -> float | None:
    return variant.numbers[key].mean if key in variant.numbers else None


def _whole(value: int | None) -> str:
    return units.UNKNOWN if value is None else f"{value:,}"


def _cell(value: Any) -> str:
    """On one line, and without what Markdown would take for a cell, emphasis or a tag."""
    text = " ".join(str(value).split())
    escaped: Mapping[str, str] = {"\\": "\\\\", "<": "&lt;"} | {"|": "\\|", "*": "\\*"}
    return "".join(escaped.get(character, character) for character in text)
