"""The differences of all pairs of variants as a triangular table, for up to 30 variants."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from attnlab.analysis import numbers
from attnlab.analysis.analysis import Analysis
from attnlab.analysis.verdict import Comparison
from attnlab.reporting.sentences import at_recipe

MOST = 30  # variants; of more, nobody reads a table of all pairs


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
    if not analysis.judged or not 2 < len(order) <= MOST:
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
