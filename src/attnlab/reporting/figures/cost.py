"""Loss against a cost, with the Pareto front; and costs against the context length."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from attnlab.analysis import numbers
from attnlab.analysis.analysis import Front
from attnlab.reporting.figures.axes import Extent, beyond, shortened, show_message, window
from attnlab.reporting.figures.styles import GREY, Styles, mark
from attnlab.reporting.tables.rows import Row

Point = Mapping[str, Any]  # a point of bench.json

SPARE = 0.02  # of the largest cost, on either side of the points
WIDE = 8.0  # costs that differ by more than this factor stand on a logarithmic axis


BENCH_CHARTS = (  # activity, key of its points, unit, title
    ("decode", "seconds", "seconds", "Time to decode one token"),
    ("decode", "state_bytes", "bytes", "Decode state"),
    ("prefill", "seconds", "seconds", "Time to the first token"),
    ("train", "seconds", "seconds", "Time of a training step"),
)


def pareto(axes: Axes, rows: Sequence[Row], styles: Styles, front: Front) -> None:
    """Draw a point per variant; a stair joins the Pareto front, named where there is space."""
    points = {row.name: front.points[row.name] for row in rows if row.name in front.points}
    if not points:
        show_message(axes, "not measured")
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
        style, on_front = styles[name], name in front.front
        (point,) = axes.plot(
            cost, loss, style.marker, color=style.colour, ms=8, zorder=3,
            mfc=style.colour if on_front else "white", mec=style.colour, mew=1.6,
        )  # fmt: skip
        where = " (on the Pareto front)" if on_front else ""
        tip = f"{name}{where}: {numbers.quantity(cost, front.unit)}, loss {loss:.4f}"
        mark(point, style.group, tips=[tip])
    _name(axes, {name: points[name] for name in front.front if name in points}, styles)
    beyond(axes, low, high, {name: loss for name, (_, loss) in points.items()})


def _name(axes: Axes, points: Mapping[str, tuple[float, float]], styles: Styles) -> None:
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
        mark(words, styles[name].group)


def _cost_axis(axes: Axes, costs: list[float], unit: str) -> None:
    positive = [cost for cost in costs if cost > 0]

    def text(cost: float, _: int) -> str:
        return numbers.quantity(cost, "" if unit == "FLOPs" else unit)

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
            ticks = [0.0, min(positive), (min(positive) * max(positive)) ** 0.5, max(positive)]
            axes.set_xticks(ticks)
    else:
        if positive and unit == "bytes":  # whole ones of the binary unit that they read in
            binary = 1024 ** int(math.log(min(positive), 1024))
            axes.xaxis.set_major_locator(_InUnits(binary))
        else:
            axes.locator_params(axis="x", nbins=4)
        spare = max(0.12 * (max(costs) - min(costs)), SPARE * max(costs), 1e-9)
        axes.set_xlim(min(costs) - spare, max(costs) + spare)
    axes.xaxis.set_major_formatter(FuncFormatter(text))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()


class _InUnits(MaxNLocator):
    """Ticks at round multiples of a unit."""

    def __init__(self, unit: float) -> None:
        super().__init__(nbins=4)
        self._unit = unit

    def tick_values(self, vmin: float, vmax: float) -> Any:
        ticks: Any = super().tick_values(vmin / self._unit, vmax / self._unit)
        return ticks * self._unit


def bench_points(study_dir: Path) -> Sequence[Point]:
    """Return every point of bench.json that was measured; empty without the file."""
    path = study_dir / "bench.json"
    if not path.is_file():
        return ()
    points = json.loads(path.read_text(encoding="utf-8"))["points"]
    return [point for point in points if point["status"] == "ok"]


def of_activity(points: Sequence[Point], activity: str) -> tuple[int, list[Point]]:
    """Return the smallest batch size of an activity, and its points at that size."""
    found = [point for point in points if point["what"] == activity]
    batch = min((point["batch"] for point in found), default=0)
    return batch, [point for point in found if point["batch"] == batch]


def against_context(
    axes: Axes, points: Sequence[Point], styles: Styles, key: str, unit: str
) -> None:
    """Draw one line per variant, from points of one activity and batch size, on log axes.

    A line ends where memory does.
    """
    contexts: set[int] = set()
    for name, style in styles.items():
        own = sorted((p for p in points if p["variant"] == name), key=lambda p: p["context"])
        found: dict[int, float] = {p["context"]: p[key] for p in own if p.get(key)}
        if not found:
            continue
        contexts |= found.keys()
        (line,) = axes.plot(
            list(found), list(found.values()), color=style.colour, ls=style.line,
            marker=style.marker, ms=5, mec="white", mew=0.5, lw=1.6,
            zorder=2 if style.line == "-" else 2.5,
        )  # fmt: skip
        tips = [f"{name}, context {c:,}: {numbers.quantity(y, unit)}" for c, y in found.items()]
        mark(line, style.group, tips=tips)
    if not contexts:
        show_message(axes, "not measured")
        return

    def text(value: float, _: int) -> str:
        return numbers.quantity(value, unit)

    axes.set(xscale="log", yscale="log", xlabel="context (tokens)")
    axes.set_xticks(sorted(contexts), [numbers.count(context) for context in sorted(contexts)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(text))
    axes.yaxis.set_minor_locator(NullLocator())
