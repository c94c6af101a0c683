"""report.html: one file that holds the answer, its evidence and its limits, and needs no network.

Everything in it can be read without JavaScript; what is switched on and off is form controls and
CSS. The text is in `templates/page.html.j2`, made of the pieces of `templates/parts.html.j2`.
"""

import re
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from attnlab.analysis import numbers
from attnlab.analysis.analysis import Analysis
from attnlab.analysis.lengths import sentences
from attnlab.reporting.html.charts import Charts
from attnlab.reporting.html.svg_charts import Chart
from attnlab.reporting.tables import columns as column
from attnlab.reporting.tables.columns import VARIANT, Column
from attnlab.reporting.tables.families import family_grids
from attnlab.reporting.tables.published import JUDGED, published_grids
from attnlab.reporting.tables.rows import Row, rows
from attnlab.reporting.text import sentences as words
from attnlab.reporting.text.provenance import environment, settings
from attnlab.version import __version__

SECTIONS = {
    "ranking": "Ranking",
    "answers": "The study's questions",
    "claims": "What was published, and what was found",
    "families": "All variants together, and by family",
    "picks": "What to pick",
    "quality": "Quality",
    "lengths": "Beyond the length of training",
    "rates": "Learning rates",
    "cost": "Quality and cost",
    "bench": "Speed and memory against context",
    "missing": "Left out, alarms and failures",
    "settings": "Settings",
    "again": "How to reproduce",
}


def page(analysis: Analysis) -> str:
    """The whole page."""
    table, shown, charts = analysis.table, rows(analysis), Charts(analysis)
    samples, curves = charts.canvas.samples(charts.looks), charts.curves()
    shared, own = settings(table)
    held: dict[str, Any] = {
        "analysis": analysis,
        "study": table.study,
        "question": words.lead(table.study.question) or table.study.name,
        "asked": words.rest(table.study.question),
        "unfair": words.unfair(table),
        "devices": words.devices(table),
        "how_sure": words.how_sure(analysis),
        "facts": words.facts(analysis),
        "legend": words.legend(analysis) if analysis.tiers else words.how_sure(analysis),
        "rows": shown,
        "ranking": column.known(column.ranking(analysis), shown),
        "ranking_caption": "Every variant, the best first",
        "costs": column.known([VARIANT, *column.costs()], shown),
        "parts": column.known([VARIANT, *column.parts()], shown),
        "judged": JUDGED,
        "published": published_grids(analysis),
        "families": family_grids(analysis),
        "looks": {row.name: charts.looks[row.name] for row in shown},
        "samples": samples,
        "loss": charts.loss(),
        "forest": charts.forest(),
        "curves": curves,
        "against": _against(curves),
        "positions": charts.positions(),
        "recall": charts.recall(),
        "lengths": charts.lengths(),
        "length_columns": column.lengths(analysis),
        "length_rows": [row for row in shown if row.name in analysis.lengths],
        "length_sentences": sentences(analysis.lengths),
        "pareto": charts.pareto(),
        "rates": charts.rates(),
        "rate_rows": [row for row in shown if row.name in analysis.rates],
        "rate_columns": rate_columns(analysis),
        "bench": charts.bench(),
        "missing": words.unfinished(table),
        "alarms": words.alarms(table),
        "shared": shared,
        "own": own,
        "environment": environment(table),
        "version": __version__,
    }
    filled = {
        "quality": held["loss"] or held["curves"],
        "cost": shown,
        "missing": held["missing"] or held["alarms"] or analysis.left_out,
        "settings": shared,
        "answers": analysis.answers,
        "claims": analysis.judgements,
        "picks": analysis.picks,
    }
    held["sections"] = {
        key: title
        for key, title in SECTIONS.items()
        if key in ("ranking", "again") or filled.get(key, held.get(key))
    }
    return templates().get_template("page.html.j2").render(held)


def _against(curves: Sequence[Chart]) -> dict[str, str]:
    """What the curves are drawn against, in words."""
    drawn = {form.split()[0] for chart in curves for form in chart.forms}
    steps = "steps" if "tokens" in drawn else "steps and tokens"
    said = {"step": steps, "tokens": "tokens", "time": "time"}
    return {against: words for against, words in said.items() if against in drawn}


def templates() -> Environment:
    """Where a page's pieces are. What is not said to be safe is escaped."""
    environment = Environment(
        loader=PackageLoader("attnlab.reporting.html"),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["prose"] = prose
    return environment


def prose(text: str) -> Markup:
    """Escaped, with `code` between backticks as such.

    >>> prose("`gqa_1` & <b>")
    Markup('<code>gqa_1</code> &amp; &lt;b&gt;')
    """
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def rate_columns(analysis: Analysis) -> list[Column]:
    """What tuning found for each variant."""

    def chosen(row: Row) -> float:
        return analysis.rates[row.name].chosen

    def off_by_two(row: Row) -> float | None:
        return analysis.rates[row.name].within_factor_2

    def curvature(row: Row) -> float | None:
        return analysis.rates[row.name].curvature

    return [
        VARIANT,
        Column(title="rate", text=lambda row: f"{chosen(row):g}", value=chosen),
        Column(
            title="interior",
            text=lambda row: "yes" if analysis.rates[row.name].interior else "no: at the edge",
            about="rates on both sides of it were tried and were no better",
        ),
        Column(
            title="off by 2x costs",
            text=lambda row: numbers.number(off_by_two(row)),
            value=off_by_two,
            about="nats a token, at most, for a rate within a factor of 2",
        ),
        Column(
            title="curvature",
            text=lambda row: numbers.number(curvature(row)),
            value=curvature,
            about="nats a token and squared factor of 2",
        ),
    ]
