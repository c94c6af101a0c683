"""What was published beside what was found, as tables: one for each source and measure."""

from attnlab.analysis.analysis import Analysis
from attnlab.report import units
from attnlab.report.grid import Grid
from attnlab.report.rows import Row, rows, split_name

JUDGED = (
    "Each claim is held against this study's own intervals, which are 95 % for all pairs at once. "
    "A loss on another text, or with another tokenizer, is another number: order and spread are "
    "judged."
)


def published_grids(analysis: Analysis) -> tuple[Grid, ...]:
    """In the order published, the best first."""
    found = {row.name: row for row in rows(analysis)}
    published: dict[tuple[str, str], dict[str, float]] = {}
    for judged in analysis.judgements:
        if judged.published:
            published.setdefault((judged.source, judged.measure), {}).update(judged.published)
    here = f"{split_name(analysis)} loss here, nats a token"
    return tuple(
        Grid(
            caption=source,
            heading=("variant", f"published {measure}", here, "place here"),
            lines=[
                (name, f"{value:g}", *_found(found.get(name), analysis.metric))
                for name, value in values.items()
            ],
        )
        for (source, measure), values in published.items()
    )


def _found(row: Row | None, metric: str) -> tuple[str, str]:
    if row is None:
        return units.UNKNOWN, units.UNKNOWN
    place = units.UNKNOWN if row.place is None else str(row.place)
    return units.estimate(row.numbers.get(metric)), place
