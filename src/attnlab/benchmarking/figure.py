"""Time of decoding, prefill and training, and the decode state, against context, on log axes.

One figure per batch size. A variant has the same colour, line and marker in all panels and in
comparison.png. A line ends where the device runs out of memory.
"""

from collections.abc import Callable, Sequence
from textwrap import fill
from typing import Any, NamedTuple

import attnlab.reporting.figures  # noqa: F401  # pyright: ignore[reportUnusedImport]

# isort: split
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from attnlab.analysis import numbers
from attnlab.benchmarking.point import Workload
from attnlab.benchmarking.table import device_sentence
from attnlab.record import Json
from attnlab.reporting.figures.hues import family_of
from attnlab.reporting.figures.styles import GREY, Styles, matplotlib_style, png, styles_of


class _Panel(NamedTuple):
    what: Workload
    title: str
    value: Callable[[Json], float]
    tick_label: Callable[[float, object], str]  # of a value; the position is not used
    base: int = 10  # of the axis


def bench_png(contents: Json, batch: int) -> bytes:
    """Return the figure of one batch size as a PNG file, from the contents of bench.json."""
    with matplotlib_style():
        return png(_figure(contents, batch))


def _figure(contents: Json, batch: int) -> Figure:
    styles = styles_of({name: family_of(name, of) for name, of in contents["variants"].items()})
    points = [point for point in contents["points"] if point["batch"] == batch]
    panels = [panel for panel in _PANELS if any(p["what"] == panel.what for p in points)]
    rows = (len(panels) + 1) // 2
    figure = Figure(figsize=(12, 0.5 + 4 * rows), layout="constrained")
    title = f"Batch {batch}. {device_sentence(contents)}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=9, color=GREY)
    grid: Any = figure.subplots(rows, min(2, len(panels)), squeeze=False)
    drawn = dict[str, Any]()
    for axes, panel in zip(grid.flat, panels, strict=False):
        drawn |= _draw(axes, panel, [p for p in points if p["what"] == panel.what], styles)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    shown = {name: drawn[name] for name in styles if name in drawn}
    figure.legend(shown.values(), shown.keys(), loc="outside right center", handlelength=3.2)
    return figure


def _draw(axes: Axes, panel: _Panel, points: Sequence[Json], styles: Styles) -> dict[str, Any]:
    """Draw a panel and return its lines by variant; out of memory is written into the panel."""
    lines, missing = dict[str, Any](), list[str]()
    for name, style in styles.items():
        own = sorted((p for p in points if p["variant"] == name), key=lambda p: p["context"])
        values = {p["context"]: panel.value(p) for p in own if p["status"] == "ok"}
        values = {context: value for context, value in values.items() if value}  # 0 has no log
        if values:
            (lines[name],) = axes.plot(
                list(values), list(values.values()), color=style.colour, ls=style.line,
                marker=style.marker, ms=6, mec="white", mew=0.5, lw=1.6,
                zorder=2 if style.line == "-" else 2.5,
            )  # fmt: skip
        if lost := next((p for p in own if p["status"] == "out_of_memory"), None):
            missing.append(f"{name} from {numbers.tokens(lost['context'])}")
    axes.set(title=panel.title, xlabel="context, tokens", xscale="log")
    contexts = sorted({p["context"] for p in points})
    axes.set_xticks(contexts, [numbers.tokens(context) for context in contexts])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yscale("log", base=panel.base)
    low, high = axes.get_ylim()
    few = panel.base == 10 and high < 300 * low
    subs = (1.0, 2.0, 5.0) if few else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(base=panel.base, subs=subs, numticks=9))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(panel.tick_label))
    if missing:
        words = fill(f"out of memory: {', '.join(missing)}", 60)
        axes.text(0.01, 0.99, words, transform=axes.transAxes, va="top", color=GREY, fontsize=9)
    return lines


def _seconds(value: float, place: object = None) -> str:
    """Return a round time in its unit.

    >>> _seconds(2e-05), _seconds(0.5), _seconds(10)
    ('20 µs', '500 ms', '10 s')
    """
    del place
    factor, unit = next((f for f in ((1, "s"), (1e3, "ms")) if value * f[0] >= 0.999), (1e6, "µs"))
    return f"{value * factor:g} {unit}"


def _bytes(value: float, place: object = None) -> str:
    del place
    return numbers.size(value)


def _time(point: Json) -> float:
    return point["seconds"]


def _state(point: Json) -> float:
    return point["state_bytes"] / point["batch"]


_PANELS = (
    _Panel("decode", "Decode: time per token", _time, _seconds),
    _Panel("decode", "Decode: state per sequence", _state, _bytes, base=2),
    _Panel("prefill", "Prefill: time to the first token", _time, _seconds),
    _Panel("train", "Training: time per step", _time, _seconds),
)
