"""Times and the decode state against context: bench-batch-N.png and charts of the page.

Both axes are logarithmic, and each has one unit. A line ends where memory does. A variant has the
same colour, line and marker in all panels and in comparison.png.
"""

from collections.abc import Callable, Mapping, Sequence
from textwrap import fill
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from attnlab.analysis import numbers
from attnlab.reporting.figures.axes import in_units, name_ends, show_message, unit_of
from attnlab.reporting.figures.styles import (
    GREY,
    Styles,
    family_of,
    mark,
    matplotlib_style,
    png,
    styles_of,
)

Point = Mapping[str, Any]  # a point of bench.json
WIDE = 300.0  # of an axis with ticks at powers of ten alone
NARROW = 5.0  # of an axis with a tick at every digit


class Panel(NamedTuple):
    """A quantity that is measured at several contexts."""

    workload: str
    title: str
    unit: str  # "seconds" or "bytes"
    value: Callable[[Point], float | None]


def _seconds(point: Point) -> float | None:
    return point.get("seconds")


def _state(point: Point) -> float | None:
    total = point.get("state_bytes")
    return total and total / point["batch"]


PANELS = (
    Panel("decode", "Time to decode one token", "seconds", _seconds),
    Panel("decode", "Decode state per sequence", "bytes", _state),
    Panel("prefill", "Time to the first token", "seconds", _seconds),
    Panel("train", "Time of a training step", "seconds", _seconds),
)


def bench_png(contents: Mapping[str, Any], batch: int, device: str) -> bytes:
    """Return the figure of one batch size as a PNG file, from the contents of bench.json.

    `device` is a sentence on the device and its rates.
    """
    with matplotlib_style():
        return png(bench_figure(contents, batch, device))


def bench_figure(contents: Mapping[str, Any], batch: int, device: str) -> Figure:
    """Draw the quantities that were measured at a batch size; call it in `matplotlib_style`."""
    styles = styles_of({name: family_of(name, of) for name, of in contents["variants"].items()})
    points = [point for point in contents["points"] if point["batch"] == batch]
    panels = [panel for panel in PANELS if any(p["what"] == panel.workload for p in points)]
    rows = (len(panels) + 1) // 2
    figure = Figure(figsize=(12, 0.7 + 4 * rows), layout="constrained")
    figure.suptitle(f"Batch {batch}. {device}", x=0.01, ha="left", fontsize=9, color=GREY)
    figure.supxlabel(
        "Lower is better in every panel. A line ends where memory does.",
        x=0.01, ha="left", fontsize=9, color=GREY,
    )  # fmt: skip
    grid: Any = figure.subplots(rows, min(2, len(panels)), squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        axes.set_title(panel.title)
        against_context(axes, [p for p in points if p["what"] == panel.workload], styles, panel)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    return figure


def of_workload(points: Sequence[Point], panel: Panel) -> tuple[int, list[Point]]:
    """Return the smallest batch size at which a panel was measured, and its points there."""
    found = [point for point in points if point["what"] == panel.workload and panel.value(point)]
    batch = min((point["batch"] for point in found), default=0)
    return batch, [point for point in found if point["batch"] == batch]


def against_context(axes: Axes, points: Sequence[Point], styles: Styles, panel: Panel) -> None:
    """Draw one line per variant, from points of one workload and batch size.

    What ran out of memory is named in the panel.
    """
    ends: dict[str, tuple[float, float]] = {}
    values: list[float] = []
    missing: list[str] = []
    for name, style in styles.items():
        own = sorted((p for p in points if p["variant"] == name), key=lambda p: p["context"])
        lost = next((p for p in own if p.get("status") == "out_of_memory"), None)
        missing += [f"{name} from {numbers.tokens(lost['context'])}"] if lost else []
        measured = {p["context"]: panel.value(p) for p in own if p.get("status", "ok") == "ok"}
        found = {context: value for context, value in measured.items() if value}  # 0 has no log
        if not found:
            continue
        ends[name] = [*found.items()][-1]
        values += found.values()
        (line,) = axes.plot(
            list(found), list(found.values()), color=style.colour, ls=style.line,
            marker=style.marker, ms=5, mec="white", mew=0.5, lw=1.6,
            zorder=2 if style.line == "-" else 2.5,
        )  # fmt: skip
        tips = [
            f"{name}, context {c:,}: {numbers.quantity(y, panel.unit)}" for c, y in found.items()
        ]
        mark(line, style.group, tips=tips)
    if missing:
        words = fill(f"out of memory: {', '.join(missing)}", 60)
        axes.text(0.01, 0.99, words, transform=axes.transAxes, va="top", color=GREY, fontsize=9)
    if not values:
        show_message(axes, "not measured")
        return
    _logarithmic(axes, panel, values, sorted({point["context"] for point in points}))
    name_ends(axes, ends, styles)


def _logarithmic(
    axes: Axes, panel: Panel, values: Sequence[float], contexts: Sequence[int]
) -> None:
    factor, unit = unit_of(values, panel.unit)
    axes.set(xscale="log", xlabel="context (tokens)", ylabel=unit)
    axes.set_xticks(contexts, [numbers.tokens(context) for context in contexts])
    base, span = (2 if panel.unit == "bytes" else 10), max(values) / min(values)
    axes.set_yscale("log", base=base)
    digits = (1.0,) if base == 2 or span > WIDE else (1.0, 2.0, 5.0)
    digits = tuple(range(1, 10)) if base == 10 and span < NARROW else digits
    axes.yaxis.set_major_locator(LogLocator(base=base, subs=digits, numticks=9))
    axes.yaxis.set_major_formatter(in_units(factor))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
