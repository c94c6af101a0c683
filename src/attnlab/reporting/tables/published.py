"""What was published beside what was found, as tables: one for each source and measure."""

from collections.abc import Mapping

from attnlab.analysis import numbers
from attnlab.analysis.analysis import Analysis
from attnlab.analysis.hypotheses.claim import LOSS
from attnlab.reporting.tables.rows import Row, rows, split_name
from attnlab.reporting.tables.text_table import Grid

JUDGED = (
    "Each claim is held against this study's own intervals, which are 95 % for all pairs at once. "
    "A loss on another text, or with another tokenizer, is another number: order and spread are "
    "judged, and differences are held beside each other."
)


def published_grids(analysis: Analysis) -> tuple[Grid, ...]:
    """In the order published, the best first; losses also as differences to one of them."""
    published: dict[tuple[str, str], dict[str, float]] = {}
    for judged in analysis.judgements:
        if judged.published:
            published.setdefault((judged.source, judged.measure), {}).update(judged.published)
    return tuple(
        _grid(source, measure, values, analysis) for (source, measure), values in published.items()
    )


def _grid(source: str, measure: str, values: Mapping[str, float], analysis: Analysis) -> Grid:
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
    return Grid(caption=source, heading=heading, lines=lines, note=note)


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
