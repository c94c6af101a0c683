"""Columns of changes between window lengths, and of the learning rates that tuning chose."""

from functools import partial

from attnlab.analysis import numbers
from attnlab.analysis.analysis import Analysis
from attnlab.analysis.statistics.paired import Difference, Estimate
from attnlab.reporting.tables.columns import LOSS, VARIANT, Column
from attnlab.reporting.tables.rows import Row


def lengths(analysis: Analysis) -> list[Column]:
    """Return the loss at the training length and its change at others; empty if not measured."""

    def trained(row: Row) -> Estimate | None:
        found = analysis.lengths.get(row.name)
        return found and found.loss.get(found.trained)

    def loss(row: Row) -> float | None:
        found = trained(row)
        return found and found.mean

    def change(length: int, row: Row) -> Difference | None:
        found = analysis.lengths.get(row.name)
        return found and found.change.get(length)

    def column(length: int) -> Column:
        def value(row: Row) -> float | None:
            found = change(length, row)
            return found and found.mean

        return Column(
            title=f"Δ {numbers.tokens(length)}",
            unit=LOSS,
            text=lambda row: numbers.change(change(length, row)),
            value=value,
            about=f"loss in windows of {length:,} tokens minus that at the training length",
        )

    others = sorted({at for found in analysis.lengths.values() for at in found.change})
    if not others:
        return []
    return [
        VARIANT,
        Column(
            title="loss at the training length",
            unit=LOSS,
            text=lambda row: numbers.estimate(trained(row)),
            value=loss,
            about="validation split",
        ),
        *map(column, others),
    ]


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
            text=lambda row: "yes" if analysis.rates[row.name].challenged else "no",
            about="trained at two rates beside the chosen one as well; each seed counts at the "
            "rate that the other seeds chose",
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
