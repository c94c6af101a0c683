"""Which stretch of an axis to show, when a few values lie far from all the others.

The values are cut where a gap is more than twice as wide as everything on the near side of it, as
long as at least three, and at least half, of them stay.
"""

from collections.abc import Sequence
from typing import NamedTuple

FAR = 2.0
MARGIN = 0.08  # of the stretch, on either side


class Extent(NamedTuple):
    """From the smallest to the largest value of one thing, such as the seeds of a variant."""

    low: float
    high: float


def window(extents: Sequence[Extent]) -> tuple[float, float]:
    """The ends of the axis. Raises ValueError for no extents.

    >>> close = [Extent(5.0, 5.1), Extent(5.1, 5.2), Extent(5.2, 5.3)]
    >>> window([*close, Extent(6.2, 6.3)]) == window(close)
    True
    """
    rest = [Extent(-e.high, -e.low) for e in _without_far_above(extents)]
    kept = [Extent(-e.high, -e.low) for e in _without_far_above(rest)]
    low, high = min(extent.low for extent in kept), max(extent.high for extent in kept)
    margin = MARGIN * (high - low) or max(abs(high), 1.0) * 0.01
    return low - margin, high + margin


def _without_far_above(extents: Sequence[Extent]) -> list[Extent]:
    rising = sorted(extents)
    for kept in range(max(3, (len(rising) + 1) // 2), len(rising)):
        top = max(extent.high for extent in rising[:kept])
        if rising[kept].low - top > FAR * (top - rising[0].low):
            return rising[:kept]
    return rising
