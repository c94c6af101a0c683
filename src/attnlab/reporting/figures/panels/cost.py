"""Loss beside a cost: the lower left is where to be; on the front, more buys better."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from attnlab.analysis import numbers
from attnlab.analysis.analysis import Front
from attnlab.reporting.figures.panels.frame import beyond, say, shortened
from attnlab.reporting.figures.scale import Extent, window
from attnlab.reporting.figures.styles import GREY, Looks, mark
from attnlab.reporting.tables.rows import Row

WIDE = 8.0  # costs that differ by more than this factor stand on a logarithmic axis


def pareto(axes: Axes, rows: Sequence[Row], looks: Looks, front: Front) -> None:
    """A point a variant; those on the front are joined by a stair and named where there is room."""
    points = {row.name: front.points[row.name] for row in rows if row.name in front.points}
    if not points:
        say(axes, "not measured")
        return
    low, high = window([Extent(loss, loss) for _, loss in points.values()])
    axes.set_ylim(low, high)
    _cost_axis(axes, [cost for cost, _ in points.values()], front.unit)
    steps = [front.points[name] for name in front.front if name in points]
    axes.step(
        [cost for cost, _ in steps], [loss for _, loss in steps],
        where="post", color=GREY, lw=1, ls=(0, (3, 2)), zorder=1.5,
    )  # fmt: skip
    for name, (cost, loss) in points.items():
        look, on_front = looks[name], name in front.front
        (point,) = axes.plot(
            cost, loss, look.marker, color=look.colour, ms=8, zorder=3,
            mfc=look.colour if on_front else "white", mec=look.colour, mew=1.6,
        )  # fmt: skip
        where = " (on the front)" if on_front else ""
        tip = f"{name}{where}: {numbers.quantity(cost, front.unit)}, loss {loss:.4f}"
        mark(point, look.group, tips=[tip])
    _name(axes, {name: points[name] for name in front.front if name in points}, looks)
    beyond(axes, low, high, {name: loss for name, (_, loss) in points.items()})


def _name(axes: Axes, points: Mapping[str, tuple[float, float]], looks: Looks) -> None:
    named: list[Any] = []
    low, high = axes.get_ylim()
    for name, (cost, loss) in points.items():
        at = axes.transData.transform((cost, loss))
        crowded = any(abs(at - other)[1] < 12 and abs(at - other)[0] < 70 for other in named)
        if crowded or not low <= loss <= high:
            continue
        named.append(at)
        left = axes.transAxes.inverted().transform(at)[0] > 0.5
        words = axes.annotate(
            shortened(name, 18), (cost, loss), (-8 if left else 8, 3),
            textcoords="offset points", ha="right" if left else "left", va="bottom", fontsize=10,
        )  # fmt: skip
        mark(words, looks[name].group)


def _cost_axis(axes: Axes, costs: list[float], unit: str) -> None:
    positive = [cost for cost in costs if cost > 0]

    def words(cost: float, _: int) -> str:
        return numbers.quantity(cost, "" if unit == "FLOPs" else unit)

    if positive and max(positive) > WIDE * min(positive):
        base = 2 if unit == "bytes" else 10
        if min(costs) > 0:
            axes.set_xscale("log", base=base)
            axes.set_xlim(min(costs) / 1.4, max(costs) * 1.4)
            span = max(positive) / min(positive)
            subs = (1.0, 2.0, 5.0) if base == 10 and span < 300 else (1.0,)
            axes.xaxis.set_major_locator(LogLocator(base=base, subs=subs, numticks=5))
        else:  # nothing at all is a cost, too
            axes.set_xscale("symlog", base=base, linthresh=min(positive), linscale=0.5)
            axes.set_xlim(-0.25 * min(positive), max(costs) * 1.6)
            ticks = [0.0, min(positive), (min(positive) * max(positive)) ** 0.5, max(positive)]
            axes.set_xticks(ticks)
    else:
        if positive and unit == "bytes":  # whole ones of the binary unit that they read in
            binary = 1024 ** int(math.log(min(positive), 1024))
            axes.xaxis.set_major_locator(_InUnits(binary))
        else:
            axes.locator_params(axis="x", nbins=4)
        axes.margins(x=0.12)
    axes.xaxis.set_major_formatter(FuncFormatter(words))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()


class _InUnits(MaxNLocator):
    """Ticks at round numbers of a unit."""

    def __init__(self, unit: float) -> None:
        super().__init__(nbins=4)
        self._unit = unit

    def tick_values(self, vmin: float, vmax: float) -> Any:
        ticks: Any = super().tick_values(vmin / self._unit, vmax / self._unit)
        return ticks * self._unit
