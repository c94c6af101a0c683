"""What the tables say of a variant, column by column: one definition for page, Markdown, terminal.

A column gives a text for people and a value to sort by. What is not known is a
dash, and sorts last.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from attnlab.analysis import numbers
from attnlab.analysis.analysis import Analysis, Comparison
from attnlab.analysis.statistics.paired import Difference, Estimate
from attnlab.analysis.table import PARTS
from attnlab.reporting.tables.rows import Row, split_name, split_of


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table."""

    title: str
    text: Callable[[Row], str]
    value: Callable[[Row], float | None] | None = None  # None: sorted by its text
    about: str = ""  # what it is, for who points at it
    expendable: int = 0  # the largest goes first where a terminal is narrow; 0 stays


def ranking(analysis: Analysis) -> list[Column]:
    """Quality: place, tier, the verdict's loss, its difference to the baseline, and the rest."""
    split, name = split_of(analysis), split_name(analysis)
    several = bool(analysis.seeds) and len(analysis.seeds) > 1
    spread = ", mean ± standard deviation over seeds" if several else ""
    columns = [
        Column(title="#", text=_place, value=lambda r: r.place, about="place by mean loss"),
        Column(
            title="tier",
            text=lambda r: numbers.UNKNOWN if r.tier is None else str(r.tier),
            value=lambda r: r.tier,
            about="variants of one tier cannot be told apart from the first of it",
        ),
        Column(title="variant", text=lambda r: r.name),
        Column(
            title=f"{name} loss",
            text=lambda r: numbers.estimate(r.numbers.get(analysis.metric)),
            value=lambda r: r.mean(analysis.metric),
            about=f"nats a token{spread}",
        ),
    ]
    if not analysis.tiers:
        columns.pop(1)
    baseline = analysis.table.study.baseline
    if baseline is not None:
        columns += [
            Column(
                title=f"Δ {baseline}",
                text=_difference,
                value=lambda r: 0.0 if r.baseline else _mean_difference(r),
                about=f"loss minus that of {baseline}, paired by seed"
                + (", ± half of the 95 % interval that holds for all pairs at once" * several),
            ),
            Column(title="which is", text=_standing, about="at 95 %, for all pairs at once"),
        ]
        if not analysis.tiers:
            columns.pop()
    columns += [
        Column(title="mechanism", text=mechanism_of, expendable=8),
        Column(
            title="seeds",
            text=seeds_of,
            value=lambda r: len(r.variant.finished),
            about="finished of planned",
            expendable=4,
        ),
        _number("perplexity", f"{split}_perplexity", 2, "exp of the mean loss", 1),
        _number("accuracy", f"{split}_accuracy", 4, "fraction of tokens predicted right", 9),
        _number("bits/byte", f"{split}_bits_per_byte", 4, "bits per byte of text", 9),
    ]
    if split == "test":
        columns.append(_number("val loss", "final_loss", 4, "nats a token, validation split", 9))
    return columns


def costs() -> list[Column]:
    """What a variant needs: size, arithmetic, time, memory."""
    return [
        Column(
            title="params",
            text=lambda r: numbers.count(r.variant.parameters.get("total")),
            value=lambda r: r.variant.parameters.get("total"),
            about="parameters, embedding included",
            expendable=3,
        ),
        Column(
            title="active",
            text=lambda r: numbers.UNKNOWN if _active(r) is None else numbers.count(_active(r)),
            value=_active,
            about="parameters that work on one token; not shown where all do",
            expendable=8,
        ),
        _cost("FLOPs/token", "flops_per_token", numbers.count, "forward, at full context", 10),
        _cost("ms/step", "step_time", numbers.milliseconds, "median of a run", 2),
        _cost("tokens/s", "tokens_per_second", numbers.count, "while training", 7),
        _cost("peak memory", "peak_memory_bytes", numbers.size, "while training", 6),
        _cost("decode state", "state_bytes", numbers.size, "of one sequence, at full context", 5),
        _cost("run time", "total_time", numbers.duration, "of one run, all included", 11),
        _cost("training", "train_time", numbers.duration, "steps alone, of one run", 12),
        _cost("compiling", "compile_time", numbers.duration, "and warming up", 13),
    ]


def parts() -> list[Column]:
    """Where the parameters are."""

    def column(part: str) -> Column:
        def value(row: Row) -> int | None:
            return row.variant.parameters.get(part)

        def text(row: Row) -> str:
            count = value(row)
            return numbers.UNKNOWN if count is None else f"{count:,}"

        return Column(title=part.replace("_", "-"), text=text, value=value)

    return [column(part) for part in PARTS]


def lengths(analysis: Analysis) -> list[Column]:
    """The loss at the length of training, and its change at each other; empty where none was."""

    def trained(row: Row) -> Estimate | None:
        found = analysis.lengths.get(row.name)
        return found and found.loss.get(found.trained)

    def column(length: int) -> Column:
        def change(row: Row) -> Difference | None:
            found = analysis.lengths.get(row.name)
            return found and found.change.get(length)

        def value(row: Row) -> float | None:
            found = change(row)
            return found and found.mean

        return Column(
            title=f"Δ {numbers.tokens(length)}",
            text=lambda row: numbers.change(change(row)),
            value=value,
            about=f"loss at {length:,} tokens a window minus that at the length of training",
        )

    def loss(row: Row) -> float | None:
        found = trained(row)
        return found and found.mean

    others = sorted({at for found in analysis.lengths.values() for at in found.change})
    if not others:
        return []
    return [
        VARIANT,
        Column(
            title="loss as trained",
            text=lambda row: numbers.estimate(trained(row)),
            value=loss,
            about="nats a token of the validation split, at the length of training",
        ),
        *map(column, others),
    ]


def differences(analysis: Analysis) -> list[Column]:
    """Differences to the baseline with both intervals; empty without a verdict."""
    if not analysis.to_baseline or not analysis.tiers:
        return []

    def text(read: Callable[[Comparison], str], row: Row) -> str:
        return "" if row.to_baseline is None else read(row.to_baseline)

    return [
        VARIANT,
        Column(
            title="difference",
            text=lambda row: text(lambda pair: f"{pair.mean:+.4f}", row) or "baseline",
            value=_mean_difference,
        ),
        Column(
            title="for all pairs at once",
            text=partial(text, lambda pair: numbers.interval(pair.low, pair.high)),
        ),
        Column(
            title="for this pair alone",
            text=partial(text, lambda pair: numbers.interval(pair.paired_low, pair.paired_high)),
        ),
    ]


def rates(analysis: Analysis) -> list[Column]:
    """The learning rate that tuning chose for each variant."""

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


VARIANT = Column(title="variant", text=lambda row: row.name)


def known(columns: list[Column], shown: tuple[Row, ...]) -> list[Column]:
    """Without the columns of which nothing is known."""
    return [c for c in columns if any(c.text(row) != numbers.UNKNOWN for row in shown)]


def seeds_of(row: Row) -> str:
    return f"{len(row.variant.finished)}/{len(row.variant.runs)}"


def mechanism_of(row: Row) -> str:
    return row.variant.mechanism or numbers.UNKNOWN


def _active(row: Row) -> int | None:
    """None where every parameter is active."""
    parameters = row.variant.parameters
    active = parameters.get("active")
    return None if active == parameters.get("total") else active


def _place(row: Row) -> str:
    return numbers.UNKNOWN if row.place is None else str(row.place)


def _difference(row: Row) -> str:
    return "baseline" if row.baseline else numbers.comparison(row.to_baseline)


def _mean_difference(row: Row) -> float | None:
    return None if row.to_baseline is None else row.to_baseline.mean


def _standing(row: Row) -> str:
    return "baseline" if row.baseline else standing(row.to_baseline)


def standing(pair: Comparison | None) -> str:
    """In words, what a difference comes to."""
    if pair is None or pair.p is None:
        return numbers.UNKNOWN
    if pair.equivalent:
        return "the same within the margin"
    if not pair.separable:
        return "not told apart"
    return "better" if pair.mean < 0 else "worse"


def _number(title: str, key: str, digits: int, about: str, expendable: int) -> Column:
    return Column(
        title=title,
        text=lambda row: numbers.number(row.mean(key), digits),
        value=lambda row: row.mean(key),
        about=about,
        expendable=expendable,
    )


def _cost(
    title: str, key: str, words: Callable[[float | None], str], about: str, expendable: int
) -> Column:
    return Column(
        title=title,
        text=lambda row: words(row.mean(key)),
        value=lambda row: row.mean(key),
        about=about,
        expendable=expendable,
    )
