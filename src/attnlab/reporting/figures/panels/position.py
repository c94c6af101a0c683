"""Loss by position in the sequence: does a mechanism use the context that it is given?"""

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import StrMethodFormatter

from attnlab.analysis.statistics.paired import Estimate
from attnlab.analysis.table import Run, Variant
from attnlab.reporting.figures.panels.frame import beyond, say
from attnlab.reporting.figures.scale import Extent, window
from attnlab.reporting.figures.styles import Looks, mark
from attnlab.reporting.tables.rows import Row


def by_position(
    variant: Variant, read: Callable[[Run], Any], minus: Variant | None = None
) -> dict[int, Estimate]:
    """`{first position of the bin: loss}` over the finished seeds, or minus another's by seed.

    `read` finds {"first": [0, 1, ...], "loss": [...]} in a run, or None.
    """
    lines = {run.seed: _line(read(run)) for run in variant.finished}
    if minus is not None:
        others = {run.seed: _line(read(run)) for run in minus.finished}
        lines = {
            seed: {at: loss - others[seed][at] for at, loss in line.items() if at in others[seed]}
            for seed, line in lines.items()
            if seed in others
        }
    found: dict[int, Estimate] = {}
    for at in sorted({at for line in lines.values() for at in line}):
        estimate = Estimate.of([line[at] for line in lines.values() if at in line])
        if estimate is not None:
            found[at] = estimate
    return found


def positions(
    axes: Axes,
    rows: Sequence[Row],
    looks: Looks,
    read: Callable[[Run], Any],
    minus: Variant | None = None,
) -> None:
    """Against the position, counted from 1, by powers of two; or minus a reference."""
    found = {row.name: by_position(row.variant, read, minus) for row in rows}
    found = {name: line for name, line in found.items() if line}
    if not found:
        say(axes, "not measured")
        return
    axes.set_xscale("log", base=2)
    ends: list[Extent] = []
    for name, line in found.items():
        look, means = looks[name], [e.mean for e in line.values()]
        (drawn,) = axes.plot(
            [at + 1 for at in line], means, color=look.colour, ls=look.line, marker=look.marker,
            ms=5, mec="white", mew=0.5, lw=1.6, zorder=2 if look.line == "-" else 2.5,
        )  # fmt: skip
        sign = "+" if minus else ""
        tips = [f"{name}, from position {at + 1}: {e.mean:{sign}.4f}" for at, e in line.items()]
        mark(drawn, look.group, tips=tips)
        ends.append(Extent(min(means), max(means)))
    low, high = window(ends)
    axes.set_ylim(low, high)
    beyond(axes, low, high, {name: [*line.values()][-1].mean for name, line in found.items()})
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _line(value: Any) -> dict[int, float]:
    if not value:
        return {}
    return {at: loss for at, loss in zip(value["first"], value["loss"], strict=True) if loss}
