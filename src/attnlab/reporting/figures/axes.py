"""Shared parts of panels: limits and scales of axes, rows of names, values outside a panel.

When a few values lie far from all others, an axis is cut where a gap is more than twice as wide as
everything on the near side of it, as long as at least three, and at least half, of the values stay.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import (
    EngFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    StrMethodFormatter,
)

from attnlab.reporting.figures.styles import GREY, Style, mark
from attnlab.reporting.tables.rows import Row

FAR = 2.0
MARGIN = 0.08  # of the stretch, on either side
LEAST_SPAN = 0.001  # of the largest value, or of 1: equal values must not collapse an axis


class Extent(NamedTuple):
    """The smallest and the largest value of one thing, such as the seeds of a variant."""

    low: float
    high: float


def window(extents: Sequence[Extent]) -> tuple[float, float]:
    """Return the ends of an axis. Raises ValueError for no extents.

    >>> close = [Extent(5.0, 5.1), Extent(5.1, 5.2), Extent(5.2, 5.3)]
    >>> window([*close, Extent(6.2, 6.3)]) == window(close)
    True
    >>> window([Extent(5.0, 5.0)])
    (4.9975, 5.0025)
    """
    rest = [Extent(-e.high, -e.low) for e in _without_far_above(extents)]
    kept = [Extent(-e.high, -e.low) for e in _without_far_above(rest)]
    low, high = min(extent.low for extent in kept), max(extent.high for extent in kept)
    missing = LEAST_SPAN * max(abs(low), abs(high), 1.0) - (high - low)
    margin = MARGIN * (high - low) + max(missing, 0.0) / 2
    return low - margin, high + margin


def _without_far_above(extents: Sequence[Extent]) -> list[Extent]:
    rising = sorted(extents)
    for kept in range(max(3, (len(rising) + 1) // 2), len(rising)):
        top = max(extent.high for extent in rising[:kept])
        if rising[kept].low - top > FAR * (top - rising[0].low):
            return rising[:kept]
    return rising


def name_rows(axes: Axes, rows: Sequence[Row], longest: int = 28) -> None:
    """Label one row per variant, the first on top."""
    axes.set_yticks(range(len(rows)), [row_name(row, longest) for row in rows])
    axes.set_ylim(max(len(rows), 1) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)


def row_name(row: Row, longest: int) -> str:
    """Return the variant's name, and how many of its seeds finished if some did not."""
    name = shortened(row.name, longest)
    done, planned = len(row.variant.finished), len(row.variant.runs)
    return name if done == planned else f"{name} ({done} of {planned})"


def shortened(name: str, longest: int) -> str:
    """Return a name of at most so many characters, the middle left out.

    >>> shortened("attention_needed/mha", 12)
    'attenti…/mha'
    """
    end = longest // 2 - 2  # names of one folder differ at their end
    return name if len(name) <= longest else f"{name[: longest - 1 - end]}…{name[-end:]}"


def off_scale(axes: Axes, row: int, text: str, style: Style, tip: str, *, right: bool) -> None:
    """Draw an arrow at the edge, with the value."""
    edge, inward = (1.0, -1) if right else (0.0, 1)
    across = axes.get_yaxis_transform()  # x in parts of the axes, y in rows
    arrow: Any = axes.annotate(
        "", (edge, row), (edge + 0.12 * inward, row), xycoords=across, textcoords=across,
        arrowprops={
            "arrowstyle": "-|>", "color": style.colour, "lw": 1.6, "shrinkA": 0, "shrinkB": 0
        },
    )  # fmt: skip
    label = axes.text(
        edge + 0.14 * inward, row, text, transform=across, va="center",
        ha="right" if right else "left", fontweight="bold",
    )  # fmt: skip
    for artist in (arrow.arrow_patch, label):
        mark(artist, style.group, tips=[tip])


def show_message(axes: Axes, text: str) -> None:
    """Write a text where there is nothing to draw."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)
    axes.set(xticks=[], yticks=[])


def beyond(axes: Axes, low: float, high: float, ends: dict[str, float]) -> None:
    """Name the lines and points that lie above or below the panel."""
    for y, va, where, out in (
        (0.99, "top", "above", [name for name, end in ends.items() if end > high]),
        (0.01, "bottom", "below", [name for name, end in ends.items() if end < low]),
    ):
        if out:
            text = f"{where} the panel: {', '.join(shortened(name, 16) for name in out)}"
            axes.text(0.01, y, text, transform=axes.transAxes, va=va, color=GREY, fontsize=9)


def scaled(axes: Axes, scale: str, *, both: bool) -> None:
    """Make the x axis, or both axes, "linear" or "log"."""
    if scale == "linear":
        return
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    if both:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())


def tokens_per_step(shown: Sequence[Row]) -> dict[str, float]:
    """Return tokens per training step, by variant, where both were recorded."""
    return {
        row.name: row.numbers["tokens"].mean / row.numbers["steps"].mean
        for row in shown
        if "tokens" in row.numbers and row.numbers.get("steps")
    }


def tokens_on_top(axes: Axes, shown: Sequence[Row]) -> None:
    """Add a second scale in tokens, where all variants read equally many per step."""
    per_step = set(tokens_per_step(shown).values())
    if len(per_step) != 1:
        return
    (tokens,) = per_step

    def to_tokens(steps: Any) -> Any:
        return steps * tokens

    def to_steps(count: Any) -> Any:
        return count / tokens

    top = axes.secondary_xaxis("top", (to_tokens, to_steps))
    top.xaxis.set_major_formatter(EngFormatter(sep=""))
    top.xaxis.set_minor_formatter(NullFormatter())
    top.set_xlabel("tokens")
    top.tick_params(labelsize=9)
