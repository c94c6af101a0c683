"""Tables whose rows are not one variant each: all variants, families, published results."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from attnlab.analysis import numbers
from attnlab.analysis.analysis import Analysis
from attnlab.analysis.families import Families, Family, caution, range_by_chance
from attnlab.analysis.hypotheses.hypothesis import LOSS
from attnlab.analysis.sentences import apart, listed
from attnlab.reporting.tables.columns import standing
from attnlab.reporting.tables.rows import Row, rows, split_name


@dataclass(frozen=True, kw_only=True)
class TextTable:
    caption: str
    heading: Sequence[str]
    lines: Sequence[Sequence[str]]  # the first cell names the line
    n_text_columns: int = 1  # the first columns are text, the rest are numbers
    note: str = ""


def family_tables(analysis: Analysis) -> tuple[TextTable, ...]:
    """Empty where the study names no families."""
    return tuple(_family_tables(analysis)) if analysis.families else ()


def _family_tables(analysis: Analysis) -> Iterator[TextTable]:
    if analysis.spreads:
        yield _together(analysis)
    if analysis.families and analysis.families.families:
        yield _by_family(analysis.families)
    if analysis.efficiencies:
        yield _efficiency(analysis)


def _together(analysis: Analysis) -> TextTable:
    def end(said: tuple[str, float], unit: str) -> str:
        return f"{_amount(said[1], unit)} ({said[0]})"

    first, last, chance = analysis.order[0], analysis.order[-1], range_by_chance(analysis)
    return TextTable(
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


def _by_family(found: Families) -> TextTable:
    def difference(family: Family) -> str:
        if family.name == found.reference:
            return "reference"
        return numbers.comparison(family.to_reference)

    def which(family: Family) -> str:
        if family.name == found.reference:
            return "reference"
        return standing(family.to_reference)

    left = [f"{listed(names)} of {family}" for family, names in found.left_out.items()]
    return TextTable(
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
        n_text_columns=3,
        note="The mean over a family's variants, ± its standard deviation over seeds; differences "
        "paired by seed, ± half of the 95 % interval that holds for all pairs of families at once. "
        "They are of these variants, and not of others that a family might have."
        + (f" Not compared: {'; '.join(left)}." if left else ""),
    )


def _efficiency(analysis: Analysis) -> TextTable:
    return TextTable(
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
        n_text_columns=2,
        note=f"The loss of {analysis.baseline} minus the variant's, by the parameters of the whole "
        f"model. {caution(analysis.efficiencies, analysis)}",
    )


def _amount(value: float, unit: str) -> str:
    if unit in ("nats", "fraction"):
        return numbers.number(value)
    if unit == "seconds":
        return numbers.duration(value) if value >= 1 else numbers.quantity(value, unit)
    return numbers.size(value) if unit == "bytes" else numbers.millions(value)


JUDGED = (
    "Judged by this study's own intervals, which are 95 % for all pairs at once. Supported: every "
    "difference that the sentence needs is distinguishable. Refuted: one is distinguishable in the "
    "other direction, or equivalent within the margin. A published loss on another text, or with "
    "another tokenizer, is another number: order, spread and differences are compared."
)


def published_tables(analysis: Analysis) -> tuple[TextTable, ...]:
    """In the order published, the best first; losses also as differences to one of them."""
    published: dict[tuple[str, str], dict[str, float]] = {}
    for judged in analysis.judgements:
        if judged.published:
            published.setdefault((judged.source, judged.measure), {}).update(judged.published)
    return tuple(
        _published_table(source, measure, values, analysis)
        for (source, measure), values in published.items()
    )


def _published_table(
    source: str, measure: str, values: Mapping[str, float], analysis: Analysis
) -> TextTable:
    found = {row.name: row for row in rows(analysis)}
    here = f"{split_name(analysis)} loss here"
    heading, note = ["variant", f"published {measure}", here, "place here"], ""
    lines = [
        [name, f"{value:g}", *_found(found.get(name), analysis.metric)]
        for name, value in values.items()
    ]
    if measure == LOSS and len(values) > 1:
        baseline = analysis.baseline
        than = baseline if baseline and baseline in values else next(iter(values))
        heading += [f"published Δ {than}", f"Δ {than} here", "agree"]
        note = "They agree where the interval of the difference here holds the published one."
        for line in lines:
            line += _apart(line[0], than, values, analysis)
    return TextTable(caption=source, heading=heading, lines=lines, note=note)


def _apart(
    name: str, than: str, published: Mapping[str, float], analysis: Analysis
) -> tuple[str, str, str]:
    """How far it was published to be from another, how far it is here, and whether they agree."""
    if name == than:
        return "0", "0", ""
    difference, pair = published[name] - published[than], analysis.pairs.get((name, than))
    agree = numbers.UNKNOWN
    if pair is not None and pair.low is not None and pair.high is not None:
        agree = "yes" if pair.low <= difference <= pair.high else "no"
    return f"{difference:+.3g}", numbers.comparison(pair), agree


def _found(row: Row | None, metric: str) -> tuple[str, str]:
    if row is None:
        return numbers.UNKNOWN, numbers.UNKNOWN
    place = numbers.UNKNOWN if row.place is None else str(row.place)
    return numbers.estimate(row.numbers.get(metric)), place
