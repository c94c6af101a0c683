"""Shared parts of panels: limits and scales of axes, rows of names, values outside a panel.

An axis is broken where a few values at its upper, worse end would take more than two fifths of it,
and lie away from the rest by at least a quarter of what that spans. At its lower end, where the
best are, the gap must be twice as wide as the rest. At least three values, and half of them, stay.
What lies beyond is drawn at the edge, with its value.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import (
    EngFormatter,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    StrMethodFormatter,
)

from attnlab.analysis import numbers
from attnlab.analysis.analysis import Comparison
from attnlab.reporting.figures.styles import GREY, INK, Style, Styles, mark, scale
from attnlab.reporting.tables.rows import Row

SQUEEZED = 0.6  # an axis is broken where the rest would get less than this part of it
APART, FAR = 0.25, 2.0  # of the rest's span: the least gap to what is cut off, above and below
MARGIN = 0.08  # of the stretch, on either side
LEAST_SPAN = 0.02  # nats/token: equal values must not collapse an axis
MOST_LABELS = 24  # lines that are named at their ends
LINE_HEIGHT = 10.5  # points, of these names


class Extent(NamedTuple):
    """The smallest and the largest value of one thing, such as the seeds of a variant."""

    low: float
    high: float


ZERO = Extent(0.0, 0.0)  # of an axis of differences


def window(extents: Sequence[Extent], shown: Extent | None = None) -> tuple[float, float]:
    """Return the ends of an axis, `LEAST_SPAN` or more apart. Raises ValueError for no extents.

    `shown` lies between them, whatever the others are: 0 on an axis of differences.

    >>> close = [Extent(5.0, 5.1), Extent(5.1, 5.2), Extent(5.2, 5.3)]
    >>> window([*close, Extent(6.2, 6.3)]) == window(close)
    True
    >>> window([Extent(5.0, 5.0)])
    (4.99, 5.01)
    >>> low, high = window(close, ZERO)
    >>> low < 0 < 5.3 < high
    True
    """
    rest = [Extent(-e.high, -e.low) for e in _without_far_above(extents, APART)]
    kept = [Extent(-e.high, -e.low) for e in _without_far_above(rest, FAR)]
    kept += [shown] if shown else []
    low, high = min(extent.low for extent in kept), max(extent.high for extent in kept)
    missing = max(LEAST_SPAN - (high - low), 0.0)
    margin = missing / 2 if missing else MARGIN * (high - low)
    return low - margin, high + margin


def _without_far_above(extents: Sequence[Extent], least: float) -> list[Extent]:
    rising = sorted(extents)
    start, end = rising[0].low, max(extent.high for extent in rising)
    for kept in range(max(3, (len(rising) + 1) // 2), len(rising)):
        top = max(extent.high for extent in rising[:kept])
        squeezed = top - start < SQUEEZED * (end - start)
        if squeezed and rising[kept].low - top >= least * (top - start):
            return rising[:kept]
    return rising


class Panel(NamedTuple):
    """A panel of the picture, which is a PDF of its own, too."""

    draw: Callable[[Axes], None]
    caption: str
    by_row: bool = False  # a row per variant


def name_rows(axes: Axes, rows: Sequence[Row], styles: Styles, longest: int = 28) -> None:
    """Label one row per variant, the first on top."""
    axes.set_yticks(range(len(rows)), [row_name(row, styles, longest) for row in rows])
    axes.set_ylim(max(len(rows), 1) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)


def row_name(row: Row, styles: Styles, longest: int) -> str:
    """Return the variant's label, and how many of its seeds finished if some did not."""
    name = shortened(styles[row.name].label, longest)
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
    """Draw an arrow at the edge, with the value, and break the axis there."""
    edge, inward = (1.0, -1) if right else (0.0, 1)
    axes.plot(
        [edge + 0.02 * inward, edge + 0.035 * inward], [0, 0], marker=[(-0.4, -0.5), (0.4, 1)],
        ls="none", color=INK, ms=9, mew=1, transform=axes.transAxes, clip_on=False, zorder=5,
    )  # fmt: skip
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


def filled(style: Style, pair: Comparison) -> dict[str, Any]:
    """Return the colours of a marker: filled where the interval of a difference excludes 0."""
    inside, edge = (style.colour, "white") if pair.separable else ("white", style.colour)
    return {
        "color": style.colour,
        "mfc": inside,
        "mec": edge,
        "mew": 0.6 if pair.separable else 1.6,
    }


def show_message(axes: Axes, text: str) -> None:
    """Write a text where there is nothing to draw."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)
    axes.set(xticks=[], yticks=[])


def beyond(axes: Axes, low: float, high: float, ends: dict[str, float]) -> None:
    """Name the lines and points that lie above or below the panel."""
    for y, va, where, out in (
        (0.99, "top", "above", {name: end for name, end in ends.items() if end > high}),
        (0.01, "bottom", "below", {name: end for name, end in ends.items() if end < low}),
    ):
        if out:
            named = [f"{shortened(name, 16)} {end:.4g}" for name, end in list(out.items())[:3]]
            more = [f"{len(out) - 3} more"] if len(out) > 3 else []
            text = f"{where}: {', '.join([*named, *more])}"
            axes.text(
                0.01, y, text, transform=axes.transAxes, va=va, color=GREY, fontsize=9 * scale()
            )


def name_ends(axes: Axes, ends: Mapping[str, tuple[float, float]], styles: Styles) -> None:
    """Name lines at the right of the panel, each beside its last point `(x, y)`, without overlap.

    Lines that end outside of the panel are named at its edge. Of more than `MOST_LABELS`, the
    first ones are named. Call it when the limits are final.
    """
    low, high = axes.get_ylim()
    top, fits = (
        axes.transData.transform,
        axes.bbox.height / (LINE_HEIGHT * scale() * _per_point(axes)),
    )
    named = list(ends)[: min(MOST_LABELS, int(fits))]
    at = {name: top((ends[name][0], min(max(ends[name][1], low), high)))[1] for name in named}
    step = LINE_HEIGHT * scale() * _per_point(axes)
    places = _apart(sorted(at.values()), step, axes)
    for name, y in zip(sorted(named, key=lambda of: at[of]), places, strict=True):
        end = axes.transAxes.inverted().transform((0, y))[1]
        x, value = ends[name]
        outside = f" {value:.3g} {'↑' if value > high else '↓'}" if not low <= value <= high else ""
        label = axes.annotate(
            f"{shortened(styles[name].label, 18)}{outside}",
            (x, min(max(value, low), high)), (1.05, end),
            textcoords="axes fraction", va="center", fontsize=9 * scale(),
            color=styles[name].colour, annotation_clip=False,
            # neither end is cut off by a shape, which takes a search along the line
            arrowprops={"arrowstyle": "-", "color": styles[name].colour, "lw": 0.6, "alpha": 0.6,
                        "shrinkA": 0, "shrinkB": 0, "patchA": None, "relpos": (-0.04, 0.5)},
        )  # fmt: skip
        for artist in (label, label.arrow_patch):
            mark(artist, styles[name].group)


def _per_point(axes: Axes) -> float:
    figure: Any = axes.figure
    return figure.dpi / 72


def _apart(places: Sequence[float], step: float, axes: Axes) -> list[float]:
    """Return rising places at least `step` apart, near the given ones and within the panel.

    Neighbours that are too close become a block about their mean.
    """
    blocks: list[list[float]] = []  # sum of the places less their offsets, and count
    for place in places:
        blocks.append([place, 1])
        while (
            len(blocks) > 1 and _middle(blocks[-2], step)[1] + step > _middle(blocks[-1], step)[0]
        ):
            total, count = blocks.pop()
            blocks[-1] = [blocks[-1][0] + total, blocks[-1][1] + count]
    found = [_middle(block, step)[0] + i * step for block in blocks for i in range(int(block[1]))]
    least, most = axes.bbox.y0, axes.bbox.y1
    for i in range(len(found)):  # up from the bottom, then down from the top
        found[i] = max(found[i], least + i * step)
    for i in reversed(range(len(found))):
        found[i] = min(found[i], most - (len(found) - 1 - i) * step)
    return found


def _middle(block: Sequence[float], step: float) -> tuple[float, float]:
    """Return the first and the last place of a block."""
    total, count = block
    half = (count - 1) * step / 2
    return total / count - half, total / count + half


def unit_of(values: Sequence[float], unit: str) -> tuple[float, str]:
    """Return the factor and the name of the unit of a whole axis."""
    units = {"bytes": numbers.BYTES, "seconds": numbers.MILLISECONDS}.get(unit, numbers.COUNTS)
    factor, name = numbers.common_unit(list(values), units)
    return factor, f"{name}{unit}" if unit == "FLOPs" else name


def in_units(factor: float) -> FuncFormatter:
    """Return a formatter of ticks in multiples of a unit."""

    def text(value: float, _: int) -> str:
        return f"{value / factor:,.4g}"

    return FuncFormatter(text)


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
