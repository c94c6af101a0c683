"""Columns of changes between window lengths, of parts of the loss, and of what tuning chose.

The variants at all training lengths of a study are a table of their own.

The differences of all pairs of variants are a triangular table, for up to 30 variants.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from attnlab.analysis import numbers
from attnlab.analysis.analysis import Analysis, Comparison
from attnlab.analysis.sentences import listed
from attnlab.analysis.statistics.paired import Difference, Estimate
from attnlab.analysis.sweeps import TOKENS, WINDOW, OfLength
from attnlab.reporting.sentences import RECALL, at_recipe
from attnlab.reporting.tables.columns import LOSS, VARIANT, Column
from attnlab.reporting.tables.rows import Row
from attnlab.reporting.tables.text_tables import TextTable

MOST_IN_MATRIX = 30  # variants; of more, nobody reads a table of all pairs


def lengths(analysis: Analysis) -> list[Column]:
    """Return the loss at the training length and its change at others; empty if not measured."""

    def trained(row: Row) -> Estimate | None:
        found = analysis.lengths.get(row.name)
        return found and found.loss.get(found.trained)

    def change(length: int, row: Row) -> Difference | None:
        found = analysis.lengths.get(row.name)
        return found and found.change.get(length)

    others = sorted({at for found in analysis.lengths.values() for at in found.change})
    if not others:
        return []
    about = "loss in windows of {:,} tokens minus that at the training length"
    title = "loss at the training length"
    return [
        VARIANT,
        _of_means(title, trained, numbers.estimate, "validation split"),
        *(
            _of_means(
                f"Δ {numbers.tokens(at)}", partial(change, at), numbers.change, about.format(at)
            )
            for at in others
        ),
    ]


NOT_READ = "Not there, without a run that is compared, or with other rules of tuning"


def over_training_lengths(analysis: Analysis) -> tuple[TextTable, ...]:
    """Return the table of all training lengths of a study; empty without another one beside it."""
    found = analysis.training_lengths
    if found is None:
        return ()
    names = dict.fromkeys(variant.name for of in found.found for variant in of.variants)
    lines = [_of_length(name, of) for name in names for of in found.found]
    missing = [
        f"{study} (`attnlab run` with {f'--length {length}' if length else 'no --length'})"
        for study, length in found.missing.items()
    ]
    others = [of.study for of in found.found if of.study != analysis.table.study.name]
    said = [
        "Losses in nats/token, each that of the split of its study's verdict. Δ: minus "
        f"the baseline ({analysis.table.study.baseline}) of the same length, with the intervals of "
        "that study; those on recall and other tokens are of the seeds alone. n.s.: not "
        f"distinguishable. {RECALL} Read beside this study's folder: {listed(others)}.",
        *([f"{NOT_READ}: {listed(missing)}."] if missing else []),
        *(f"{study} cannot be read: {why}." for study, why in found.damaged.items()),
    ]
    return (
        TextTable(
            caption="Every variant at every training length",
            heading=(
                *("variant", WINDOW, TOKENS, "loss", "Δ", "recall tokens", "Δ recall"),
                *("other tokens", "Δ other", "time/step (ms)", "peak memory (GiB)"),
            ),
            lines=[line for line in lines if line],
            note=" ".join(said),
        ),
    )


def _of_length(name: str, of: OfLength) -> tuple[str, ...]:
    """Return a variant at one length; empty if it is not compared there."""
    variant = next((variant for variant in of.variants if variant.name == name), None)
    if variant is None:
        return ()
    verdict, split = of.verdict, of.verdict.metric.removesuffix("_loss")
    parts = of.parts.get(name)

    def mean(key: str) -> float | None:
        return variant.numbers[key].mean if key in variant.numbers else None

    def minus(pair: Comparison | None) -> str:
        if name == verdict.baseline:
            return "baseline"
        tie = pair is not None and pair.half_width is not None and not pair.separable
        return f"{numbers.comparison(pair, 3)}{' n.s.' if tie else ''}"

    memory = mean("peak_memory_bytes")
    return (
        *(name, f"{of.window:,}", numbers.count(of.tokens), f"{verdict.means[name]:.4f}"),
        minus(verdict.to_baseline.get(name)),
        numbers.number(mean(f"{split}_recall_loss")),
        minus(parts and parts.recall),
        numbers.number(mean(f"{split}_other_loss")),
        minus(parts and parts.other),
        numbers.milliseconds(mean("step_time")),
        numbers.UNKNOWN if memory is None else numbers.significant(memory / 2**30),
    )


def parts_of_loss(analysis: Analysis) -> list[Column]:
    """Return differences to the baseline on recall tokens, on others, between these, and late."""
    starts = [start for of in analysis.parts.values() for start in of.position]
    late = max(starts, default=0)

    def pair(kind: str, row: Row) -> Comparison | None:
        return getattr(analysis.parts.get(row.name), kind, None)

    def at_end(row: Row) -> Comparison | None:
        of = analysis.parts.get(row.name)
        return of and of.position.get(late)

    than = f"minus that of {analysis.baseline}"
    return [
        VARIANT,
        *(
            _of_means(title, partial(pair, kind), numbers.comparison, about)
            for title, kind, about in (
                ("Δ recall tokens", "recall", f"loss on tokens that repeat a bigram, {than}"),
                ("Δ other tokens", "other", f"loss on all other tokens, {than}"),
                ("recall minus other", "recall_more", "the first of these minus the second"),
            )
        ),
        *(
            [
                _of_means(
                    f"Δ from position {late + 1:,}",
                    at_end,
                    numbers.comparison,
                    f"loss at the last positions of the window, {than}; the interval holds for all "
                    "ranges of positions at once",
                )
            ]
            if late
            else []
        ),
    ]


def _of_means(
    title: str, read: Callable[[Row], Any], text: Callable[[Any], str], about: str
) -> Column:
    """Return a column of what has a mean, by which it is sorted."""

    def mean(row: Row) -> float | None:
        found = read(row)
        return found and found.mean

    return Column(title=title, unit=LOSS, text=lambda row: text(read(row)), value=mean, about=about)


def rates(analysis: Analysis) -> list[Column]:
    """Return the learning rate that tuning chose for each variant."""

    def chosen(row: Row) -> float:
        return analysis.rates[row.name].chosen

    def missed(row: Row) -> float | None:
        return analysis.tuning.allowance.get(row.name)

    def increase(row: Row) -> float | None:
        return analysis.rates[row.name].within_factor_2

    return [
        VARIANT,
        Column(title="peak learning rate", text=lambda row: f"{chosen(row):g}", value=chosen),
        Column(
            title="warm-up",
            unit="steps",
            text=lambda row: _number(analysis.rates[row.name].warmup_steps),
            about="the same multiple of its own for every variant",
        ),
        *(
            Column(title=name, text=partial(_setting, analysis, name))
            for name in sorted({n for curve in analysis.rates.values() for n in curve.settings})
        ),
        Column(
            title="runs of the search",
            text=lambda row: f"{analysis.rates[row.name].runs}",
        ),
        Column(
            title="allowance for tuning",
            unit=LOSS,
            text=lambda row: numbers.number(missed(row)),
            value=missed,
            about="loss that the search can have missed",
        ),
        Column(
            title="challenged",
            text=lambda row: analysis.rates[row.name].challenged,
            about="trained at two rates beside the chosen one as well; each seed counts at the "
            "rate that the other seeds chose, once all of these runs are done",
        ),
        Column(
            title="optimum bracketed",
            text=lambda row: "yes" if analysis.rates[row.name].interior else "no",
            about="a lower and a higher rate were tried and were no better",
        ),
        Column(
            title="loss increase at 2x the rate",
            unit=LOSS,
            text=lambda row: numbers.number(increase(row)),
            value=increase,
            about="or at half the rate, whichever is larger",
        ),
    ]


def _setting(analysis: Analysis, name: str, row: Row) -> str:
    return _number(analysis.rates[row.name].settings.get(name))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


class Cell(NamedTuple):
    """The difference of one pair."""

    text: str
    interval: str
    tip: str  # names, difference and interval
    separable: bool


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Each pair once: row minus column, both in order of mean loss."""

    caption: str
    columns: Sequence[str]
    lines: Mapping[str, Sequence[Cell]]  # by row; a cell per column to the left of the diagonal
    note: str


def matrix_of(analysis: Analysis) -> Matrix | None:
    """Return the differences of all pairs; None without a verdict, or for too many variants."""
    order = analysis.order
    if not analysis.judged or not 2 < len(order) <= MOST_IN_MATRIX:
        return None
    return Matrix(
        caption=f"Loss of the row minus loss of the column{at_recipe(analysis)} (nats/token)",
        columns=order[:-1],
        lines={
            name: [_cell(name, other, analysis.pairs[name, other]) for other in order[:i]]
            for i, name in enumerate(order)
            if i
        },
        note="Bold: distinguishable, by the intervals in small print, which hold for all pairs at "
        "once. They are wider than those of the differences to the baseline alone.",
    )


def _cell(name: str, other: str, pair: Comparison) -> Cell:
    tip = f"{name} minus {other}: {numbers.comparison(pair)}"
    ends = numbers.interval(pair.low, pair.high, 3).replace(" to ", ", ")
    return Cell(f"{pair.mean:+.3f}", f"[{ends}]", tip, pair.separable)
