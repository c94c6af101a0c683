"""Loss against a cost, with the Pareto front."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from attnlab.analysis import numbers
from attnlab.analysis.analysis import Front
from attnlab.reporting.figures.axes import (
    Extent,
    beyond,
    in_units,
    shortened,
    show_message,
    unit_of,
    window,
)
from attnlab.reporting.figures.styles import GREY, Styles, mark, mark_each
from attnlab.reporting.tables.rows import Row

SPARE = 0.02  # of the largest cost, on either side of the points
MOST_BARS = 40  # of more variants, only those on the front have bars
WIDE = 8.0  # costs that differ by more than this factor get a logarithmic axis


def pareto(axes: Axes, rows: Sequence[Row], styles: Styles, front: Front) -> None:
    """Draw a point per variant; a stair joins the Pareto front, named where there is space.

    Bars are the interval of the difference to the baseline, about the baseline's loss, and one
    standard deviation of the cost over runs.
    """
    points = {row.name: front.points[row.name] for row in rows if row.name in front.points}
    if not points:
        show_message(axes, "not measured")
        return
    by_name = {row.name: row for row in rows}
    bars = {row.name: _bar(row, front) for row in rows if row.name in points}
    low, high = window([Extent(*bar) for bar in bars.values()])
    axes.set_ylim(low, high)
    axes.set_ylabel("loss (nats/token)")
    cost_axis(axes, [cost for cost, _ in points.values()], front.label, front.unit)
    steps = [front.points[name] for name in front.front if name in points]
    axes.step(
        [cost for cost, _ in steps], [loss for _, loss in steps],
        where="post", color=GREY, lw=1, ls=(0, (3, 2)), zorder=1.5,
    )  # fmt: skip
    barred = [name for name in points if name in front.front or len(points) <= MOST_BARS]
    _bars(axes, [by_name[name] for name in barred], styles, front, bars)
    _points(axes, points, styles, front)
    _name(axes, points, [name for name in front.front if name in points], styles)
    beyond(axes, low, high, {name: loss for name, (_, loss) in points.items()})


def _bars(
    axes: Axes, rows: Sequence[Row], styles: Styles, front: Front, bars: Mapping[str, Extent]
) -> None:
    """Draw the bars of all variants at once, down and across."""
    if not rows:
        return
    at = [front.points[row.name] for row in rows]
    costs, losses = [cost for cost, _ in at], [loss for _, loss in at]
    measured = [row.numbers.get(front.key) for row in rows]
    spreads = [(of.spread or 0.0) if of else 0.0 for of in measured]
    ends = [bars[row.name] for row in rows]
    left = [cost - spread for cost, spread in zip(costs, spreads, strict=True)]
    right = [cost + spread for cost, spread in zip(costs, spreads, strict=True)]
    look: Any = {"colors": [styles[row.name].colour for row in rows], "alpha": 0.6, "lw": 1.2}
    down = axes.vlines(costs, [e.low for e in ends], [e.high for e in ends], zorder=2, **look)
    for drawn in (down, axes.hlines(losses, left, right, zorder=2, **look)):
        mark_each(drawn, [styles[row.name].group for row in rows])


def _points(
    axes: Axes, points: Mapping[str, tuple[float, float]], styles: Styles, front: Front
) -> None:
    """Draw the points of each marker at once: hundreds of lines of one point take seconds."""
    by_marker = dict[str, list[str]]()
    for name in points:
        by_marker.setdefault(styles[name].marker, []).append(name)
    for marker, names in by_marker.items():
        colours = [styles[name].colour for name in names]
        drawn = axes.scatter(
            [points[name][0] for name in names], [points[name][1] for name in names], s=64,
            marker=marker, edgecolors=colours, linewidths=1.6, zorder=3,
            facecolors=[
                colour if name in front.front else "white"
                for name, colour in zip(names, colours, strict=True)
            ],
        )  # fmt: skip
        where = {name: " (on the Pareto front)" if name in front.front else "" for name in names}
        mark_each(
            drawn,
            [styles[name].group for name in names],
            [
                f"{name}{where[name]}: {numbers.quantity(points[name][0], front.unit)}, "
                f"loss {points[name][1]:.4f}"
                for name in names
            ],
        )


def _bar(row: Row, front: Front) -> Extent:
    """Return the ends of the interval of a loss, as far as they are finite."""
    loss, pair = front.points[row.name][1], row.to_baseline
    if pair is None or pair.low is None or pair.high is None:
        return Extent(loss, loss)
    of_baseline = loss - pair.mean
    low, high = of_baseline + pair.low, of_baseline + pair.high
    return Extent(low if math.isfinite(low) else loss, high if math.isfinite(high) else loss)


def _name(
    axes: Axes,
    points: Mapping[str, tuple[float, float]],
    named: Sequence[str],
    styles: Styles,
) -> None:
    """Name points where the name covers no other point and no other name."""
    figure: Any = axes.figure
    point = figure.dpi / 72  # in display units
    at = {name: axes.transData.transform(place) for name, place in points.items()}
    taken = [
        _Box(x - 6 * point, y - 6 * point, x + 6 * point, y + 6 * point) for x, y in at.values()
    ]
    low, high = axes.get_ylim()
    for name in named:
        if not low <= points[name][1] <= high:
            continue
        text = shortened(name, 18)
        width, height = 6.2 * len(text) * point, 11 * point
        x, y = at[name]
        for right, above in ((1, 1), (0, 1), (1, 0), (0, 0)):
            left = x + 9 * point if right else x - 9 * point - width
            bottom = y + 3 * point if above else y - 3 * point - height
            box = _Box(left, bottom, left + width, bottom + height)
            if box.within(axes) and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                label = axes.annotate(
                    text, points[name], (9 if right else -9, 3 if above else -3),
                    textcoords="offset points", ha="left" if right else "right",
                    va="bottom" if above else "top", fontsize=10,
                )  # fmt: skip
                mark(label, styles[name].group)
                break


class _Box(NamedTuple):
    """A rectangle in display units."""

    left: float
    bottom: float
    right: float
    top: float

    def overlaps(self, other: "_Box") -> bool:
        apart = self.right < other.left or other.right < self.left
        return not (apart or self.top < other.bottom or other.top < self.bottom)

    def within(self, axes: Axes) -> bool:
        around = axes.bbox
        return around.x0 <= self.left and self.right <= around.x1 and self.bottom >= around.y0


def cost_axis(axes: Axes, costs: list[float], label: str, unit: str) -> None:
    positive = [cost for cost in costs if cost > 0]
    factor, name = unit_of(positive, unit)
    axes.set_xlabel(f"{label} ({name})" if name else label)
    if positive and max(positive) > WIDE * min(positive):
        base = 2 if unit == "bytes" else 10
        if min(costs) > 0:
            axes.set_xscale("log", base=base)
            axes.set_xlim(min(costs) / 1.4, max(costs) * 1.4)
            span = max(positive) / min(positive)
            subs = (1.0, 2.0, 5.0) if base == 10 and span < 300 else (1.0,)
            axes.xaxis.set_major_locator(LogLocator(base=base, subs=subs, numticks=5))
        else:  # a cost may be 0
            axes.set_xscale("symlog", base=base, linthresh=min(positive), linscale=0.5)
            axes.set_xlim(-0.25 * min(positive), max(costs) * 1.6)
            axes.set_xticks([0.0, *_powers(base, min(positive), max(positive))])
    else:
        axes.xaxis.set_major_locator(_InUnits(factor))
        spare = max(0.12 * (max(costs) - min(costs)), SPARE * max(costs)) or factor
        axes.set_xlim(min(costs) - spare, max(costs) + spare)
    axes.xaxis.set_major_formatter(in_units(factor))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()


def _powers(base: int, low: float, high: float) -> list[float]:
    """Return at most three powers of the base between two costs.

    >>> _powers(2, 70.0, 2600.0)
    [128.0, 512.0, 2048.0]
    """
    first, last = math.ceil(math.log(low, base)), math.floor(math.log(high, base))
    step = max(1, -(-(last - first) // 2))
    return [float(base) ** exponent for exponent in range(first, last + 1, step)]


class _InUnits(MaxNLocator):
    """Ticks at round multiples of a unit."""

    def __init__(self, unit: float) -> None:
        super().__init__(nbins=4)
        self._unit = unit

    def tick_values(self, vmin: float, vmax: float) -> Any:
        ticks: Any = super().tick_values(vmin / self._unit, vmax / self._unit)
        return ticks * self._unit
