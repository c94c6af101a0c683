"""Tables whose rows are not one variant each: all variants, families, published results."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from attnlab.analysis import numbers
from attnlab.analysis.analysis import Analysis
from attnlab.analysis.efficiency import Reached, Span
from attnlab.analysis.families import Families, Family, dominating, range_by_chance
from attnlab.analysis.hypotheses.hypothesis import LOSS
from attnlab.analysis.profile import read_by
from attnlab.analysis.sentences import apart, listed
from attnlab.analysis.statistics.letters import shown
from attnlab.reporting.tables.columns import standing
from attnlab.reporting.tables.rows import Row, rows, split_name


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """A table of texts."""

    caption: str
    heading: Sequence[str]
    lines: Sequence[Sequence[str]]  # the first cell names the line
    n_text_columns: int = 1  # the first columns are text, the rest are numbers
    note: str = ""


def family_tables(analysis: Analysis) -> tuple[TextTable, ...]:
    """Return the tables of a study with families; empty where it names none."""
    return tuple(_family_tables(analysis)) if analysis.families else ()


def _family_tables(analysis: Analysis) -> Iterator[TextTable]:
    if analysis.spreads:
        yield _together(analysis)
    if analysis.families and analysis.families.families:
        yield _by_family(analysis.families, analysis.level)
    if analysis.sizes:
        yield _sizes(analysis)


def _together(analysis: Analysis) -> TextTable:
    def end(found: tuple[str, float], unit: str) -> str:
        return f"{_quantity(found[1], unit)} ({found[0]})"

    first, last, chance = analysis.order[0], analysis.order[-1], range_by_chance(analysis)
    return TextTable(
        caption=f"All {len(analysis.order)} variants together",
        heading=("", "mean", "standard deviation", "range", "lowest", "highest"),
        lines=[
            (
                it.label,
                *(_quantity(value, it.unit) for value in (it.mean, it.deviation, it.range)),
                end(it.lowest, it.unit),
                end(it.highest, it.unit),
            )
            for it in analysis.spreads
        ],
        note="Means over seeds; standard deviation and range over the variants. "
        f"{last} is worse than {first} by {apart(analysis.pairs[last, first])}."
        + (
            f" If all variants were equal, the expected range of their mean losses would be "
            f"{chance:.4f} nats."
            if chance is not None
            else ""
        ),
    )


def _by_family(found: Families, level: float) -> TextTable:
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
        heading=(
            "family",
            "variants",
            "vs reference",
            "letters",
            "mean loss (nats/token)",
            f"Δ {found.reference} (nats/token)",
        ),
        lines=[
            (
                family.name,
                ", ".join(family.variants),
                which(family),
                shown(family.letters) or numbers.UNKNOWN,
                numbers.number(family.loss),
                difference(family),
            )
            for family in found.families
        ],
        n_text_columns=3,
        note="Mean over the variants of a family; differences ± half of the simultaneous "
        f"{numbers.confidence(level)} interval for all pairs of families. They hold for "
        "these variants, not for others that a family might have."
        + (f" Not compared: {'; '.join(left)}." if left else ""),
    )


def _sizes(analysis: Analysis) -> TextTable:
    return TextTable(
        caption="Size and loss",
        heading=(
            *("variant", "size and loss", "parameters"),
            f"Δ parameters vs {analysis.baseline}",
            f"Δ {analysis.baseline} (nats/token)",
        ),
        lines=[
            (
                it.name,
                it.trade,
                numbers.millions(it.parameters),
                f"{'-' if it.more < 0 else '+'}{numbers.millions(abs(it.more))}",
                numbers.comparison(it.difference),
            )
            for it in analysis.sizes
        ],
        n_text_columns=2,
        note=dominating(analysis.sizes, analysis),
    )


def _quantity(value: float, unit: str) -> str:
    if unit in ("nats", "fraction"):
        return numbers.number(value)
    if unit == "seconds":
        return numbers.duration(value) if value >= 1 else numbers.quantity(value, unit)
    return numbers.size(value) if unit == "bytes" else numbers.millions(value)


def efficiency_tables(analysis: Analysis) -> tuple[TextTable, ...]:
    """Return the table of steps, tokens and seconds to the target loss; empty without a target."""
    found = analysis.efficiency
    if found is None:
        return ()
    kind = "the validation loss with which" if found.of else "the study's target"
    target = f"{found.target:.4f} nats/token, {kind}{f' {found.of} ends' if found.of else ''}"
    names = [name for name in analysis.order if name in found.variants]
    lines = [_until(name, found.variants[name], found.last) for name in names]
    intervals = (
        "Intervals: the steps at which the interval of the difference to the target contains 0, "
        f"simultaneous 95 %, {'paired by seed' if found.of else 'over seeds'}, without the error "
        "of tuning; -: open. "
        if len(analysis.seeds) > 1
        else ""
    )
    note = (
        f"Validation loss in training, mean over seeds, linear between evaluations. {intervals}"
        "Seconds: of training steps, without compilation and evaluation. "
        "The learning rate of a run falls over all of its steps: a run made for fewer may reach "
        "the target earlier."
    )
    heading = ["variant", "steps", "tokens", "seconds", "speed-up in tokens"]
    return (TextTable(caption=f"Until {target}", heading=heading, lines=lines, note=note),)


def _until(name: str, reached: Reached, last: int) -> tuple[str, ...]:
    def shown(span: Span | None, text: Callable[[float], str]) -> str:
        if span is None:
            return numbers.UNKNOWN
        value = "not reached" if span.value is None else text(span.value)
        value = f"≤ {value}" if span.at_most else value
        if span.low is None or span.low == span.high:
            return value
        low = f"≤ {text(span.low)}" if span.low_at_most else text(span.low)
        return f"{value} [{low}, {'-' if span.high is None else text(span.high)}]"

    steps = shown(reached.steps, lambda value: f"{value:,.0f}")
    if reached.steps.value is None:
        steps = steps.replace("not reached", f"not reached in {last:,}")
    ratio = numbers.UNKNOWN if reached.speedup is None else f"{reached.speedup:.2f}x"
    return (
        name,
        steps,
        shown(reached.tokens, numbers.count),
        shown(reached.seconds, numbers.significant),
        ratio,
    )


def agreement_tables(analysis: Analysis) -> tuple[TextTable, ...]:
    """Return the table of Kendall's tau between texts; empty for a study of one text."""
    found, noun = analysis.agreements, read_by(analysis.whole)
    if not found:
        return ()

    def ordered(pairs: Sequence[tuple[str, str]]) -> str:
        return ", ".join(f"{first} < {second}" for first, second in pairs) or "none"

    lines = [
        (
            listed(it.texts),
            ", ".join(it.mechanisms),
            ordered(it.same),
            ordered(it.opposite),
            f"{it.tau:.2f}",
            numbers.UNKNOWN if it.low is None else f"{it.low:.2f} to {it.high:.2f}",
        )
        for it in found
    ]
    return (
        TextTable(
            caption=f"Agreement of two {noun}s on the order of mechanisms",
            heading=(
                *(f"{noun}s", "mechanisms", "same order on both", "opposite orders"),
                *("Kendall's tau", "interval"),
            ),
            lines=lines,
            n_text_columns=4,
            note="a < b: a has the lower loss, distinguishably; in opposite orders, on the "
            f"first {noun}. Tau: pairs in the same order minus pairs in opposite orders, of all "
            "pairs, by mean losses; 1 is the same order, -1 the opposite one. Interval: of all "
            f"orders that the intervals of differences on the two {noun}s allow; at least 95 % for "
            f"all pairs of {noun}s at once.",
        ),
    )


JUDGED = (
    "Judged by this study's intervals for all pairs, which hold for all hypotheses at once and are "
    "wider than those to the baseline. Supported: every difference that the sentence needs is "
    "distinguishable. Refuted: one is distinguishable in the other direction, or equivalent within "
    "the margin. Undecided: neither, with these seeds. Losses on another {} or with another "
    "tokenizer are not comparable: order, spread and differences are compared."
)


def published_tables(analysis: Analysis) -> tuple[TextTable, ...]:
    """Return a table per source and measure, in the published order; losses also as differences."""
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
    heading, note = ["variant", f"published {measure}", f"{here} (nats/token)", "rank here"], ""
    lines = [
        [name, f"{value:g}", *_found(found.get(name), analysis.metric)]
        for name, value in values.items()
    ]
    if measure == LOSS and len(values) > 1:
        baseline = analysis.baseline
        than = baseline if baseline and baseline in values else next(iter(values))
        heading += [f"published Δ {than}", f"Δ {than} here", "agree"]
        note = (
            "Agreement: yes if the whole interval of the difference here lies between 0 and twice "
            "the published difference (or within the margin of it); no if it excludes the "
            "published difference; else undecided."
        )
        for line in lines:
            line += _apart(line[0], than, values, analysis)
        if len(values) > 2:  # with two, this is the difference above
            heading += ["published Δ next", "Δ next here", "agree with it"]
            note += " Next: the variant of the next line."
            for line, after in zip(lines, [*lines[1:], None], strict=True):
                line += _apart(line[0], after[0], values, analysis) if after else ("", "", "")
    return TextTable(caption=source, heading=heading, lines=lines, note=note)


def _apart(
    name: str, than: str, published: Mapping[str, float], analysis: Analysis
) -> tuple[str, str, str]:
    """Return the published difference to another variant, the difference here, and agreement."""
    if name == than:
        return "0", "0", ""
    difference, pair = published[name] - published[than], analysis.pairs.get((name, than))
    agree = numbers.UNKNOWN
    if pair is not None and pair.low is not None and pair.high is not None:
        near = max(abs(difference), analysis.margin)
        inside = difference - near <= pair.low and pair.high <= difference + near
        possible = pair.low <= difference <= pair.high
        agree = ("yes" if inside else "undecided") if possible else "no"
    return f"{difference:+.3g}", numbers.comparison(pair), agree


def _found(row: Row | None, metric: str) -> tuple[str, str]:
    if row is None:
        return numbers.UNKNOWN, numbers.UNKNOWN
    place = numbers.UNKNOWN if row.place is None else str(row.place)
    return numbers.estimate(row.numbers.get(metric)), place
