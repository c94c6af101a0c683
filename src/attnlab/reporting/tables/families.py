"""The tables of a study with families: all variants together, family by family, efficiency."""

from collections.abc import Iterator

from attnlab.analysis import numbers
from attnlab.analysis.analysis import Analysis
from attnlab.analysis.costs import meaning
from attnlab.analysis.families import Families, Family, by_chance
from attnlab.analysis.sentences import apart, listed
from attnlab.reporting.tables.columns import standing
from attnlab.reporting.tables.text_table import Grid


def family_grids(analysis: Analysis) -> tuple[Grid, ...]:
    """Empty where the study names no families."""
    return tuple(_grids(analysis)) if analysis.families else ()


def _grids(analysis: Analysis) -> Iterator[Grid]:
    if analysis.spreads:
        yield _together(analysis)
    if analysis.families and analysis.families.families:
        yield _by_family(analysis.families)
    if analysis.efficiencies:
        yield _efficiency(analysis)


def _together(analysis: Analysis) -> Grid:
    def end(said: tuple[str, float], unit: str) -> str:
        return f"{_amount(said[1], unit)} ({said[0]})"

    first, last, chance = analysis.order[0], analysis.order[-1], by_chance(analysis)
    return Grid(
        caption=f"All {len(analysis.order)} variants together",
        heading=("", "mean", "spread", "range", "lowest", "highest"),
        lines=[
            (
                it.label,
                *(_amount(value, it.unit) for value in (it.mean, it.deviation, it.range)),
                end(it.lowest, it.unit),
                end(it.highest, it.unit),
            )
            for it in analysis.spreads
        ],
        note="Means over seeds; the spread is their sample standard deviation over the variants. "
        f"{first} and {last} are apart by {apart(analysis.pairs[last, first])}."
        + (
            f" If no two variants differed, noise alone would make the losses range over about "
            f"{chance:.4f} nats."
            if chance is not None
            else ""
        ),
    )


def _by_family(found: Families) -> Grid:
    def difference(family: Family) -> str:
        if family.name == found.reference:
            return "reference"
        return numbers.comparison(family.to_reference)

    def which(family: Family) -> str:
        if family.name == found.reference:
            return "reference"
        return standing(family.to_reference)

    left = [f"{listed(names)} of {family}" for family, names in found.left_out.items()]
    return Grid(
        caption="By family",
        heading=("family", "variants", "which is", "tier", "mean loss", f"Δ {found.reference}"),
        lines=[
            (
                family.name,
                ", ".join(family.variants),
                which(family),
                numbers.UNKNOWN if family.tier is None else str(family.tier),
                numbers.estimate(family.loss),
                difference(family),
            )
            for family in found.families
        ],
        words=3,
        note="The mean over a family's variants, ± its standard deviation over seeds; differences "
        "paired by seed, ± half of the 95 % interval that holds for all pairs of families at once. "
        "They are of these variants, and not of others that a family might have."
        + (f" Not compared: {'; '.join(left)}." if left else ""),
    )


def _efficiency(analysis: Analysis) -> Grid:
    return Grid(
        caption="Parameter efficiency",
        heading=(
            *("variant", "which is", "parameters", f"more than {analysis.baseline}"),
            "µnats gained for each million parameters",
            "95 % interval",
        ),
        lines=[
            (
                it.name,
                standing(analysis.to_baseline[it.name]),
                numbers.millions(it.parameters),
                f"{'-' if it.more < 0 else '+'}{numbers.millions(abs(it.more))}",
                f"{1e6 * it.mean:+.0f}",
                numbers.UNKNOWN
                if it.low is None or it.high is None
                else f"{1e6 * it.low:+.0f} to {1e6 * it.high:+.0f}",
            )
            for it in analysis.efficiencies
        ],
        words=2,
        note=f"The loss of {analysis.baseline} minus the variant's, by the parameters of the whole "
        f"model. {meaning(analysis.efficiencies, analysis)}",
    )


def _amount(value: float, unit: str) -> str:
    if unit in ("nats", "fraction"):
        return numbers.number(value)
    if unit == "seconds":
        return numbers.duration(value) if value >= 1 else numbers.quantity(value, unit)
    return numbers.size(value) if unit == "bytes" else numbers.millions(value)
