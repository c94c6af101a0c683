"""Latency of decoding, prefill and training, and the decode state, against context, on log axes.

A picture a batch size. A variant has its colour, line and marker in all panels, by its place among
the variants, as in comparison.png. A line ends where memory does.
"""

from collections.abc import Callable, Sequence
from textwrap import fill
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from attnlab.analysis import numbers
from attnlab.benchmarking.point import What, tokens
from attnlab.benchmarking.table import ceilings_words
from attnlab.record import Json
from attnlab.reporting.figures.drawing import png, style
from attnlab.reporting.figures.styles import GREY, Looks, looks_of


class _Panel(NamedTuple):
    what: What
    title: str
    value: Callable[[Json], float]
    in_words: Callable[[float, object], str]  # of a tick, whose place is of no interest
    base: int = 10  # of the axis


def bench_png(contents: Json, batch: int) -> bytes:
    """The picture of one batch size as a PNG file, from the contents of bench.json."""
    with style():
        return png(_figure(contents, batch))


def _figure(contents: Json, batch: int) -> Figure:
    looks = looks_of(contents["variants"])
    points = [point for point in contents["points"] if point["batch"] == batch]
    panels = [panel for panel in _PANELS if any(p["what"] == panel.what for p in points)]
    rows = (len(panels) + 1) // 2
    figure = Figure(figsize=(12, 0.5 + 4 * rows), layout="constrained")
    title = f"Batch {batch}. {ceilings_words(contents)}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=9, color=GREY)
    grid: Any = figure.subplots(rows, min(2, len(panels)), squeeze=False)
    drawn = dict[str, Any]()
    for axes, panel in zip(grid.flat, panels, strict=False):
        drawn |= _draw(axes, panel, [p for p in points if p["what"] == panel.what], looks)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    shown = {name: drawn[name] for name in looks if name in drawn}
    figure.legend(shown.values(), shown.keys(), loc="outside right center", handlelength=3.2)
    return figure


def _draw(axes: Axes, panel: _Panel, points: Sequence[Json], looks: Looks) -> dict[str, Any]:
    """The lines by variant; what ran out of memory is said in words."""
    lines, missing = dict[str, Any](), list[str]()
    for name, look in looks.items():
        own = sorted((p for p in points if p["variant"] == name), key=lambda p: p["context"])
        values = {p["context"]: panel.value(p) for p in own if p["status"] == "ok"}
        values = {context: value for context, value in values.items() if value}  # 0 has no log
        if values:
            (lines[name],) = axes.plot(
                list(values), list(values.values()), color=look.colour, ls=look.line,
                marker=look.marker, ms=6, mec="white", mew=0.5, lw=1.6,
                zorder=2 if look.line == "-" else 2.5,
            )  # fmt: skip
        if lost := next((p for p in own if p["status"] == "out_of_memory"), None):
            missing.append(f"{name} from {tokens(lost['context'])}")
    axes.set(title=panel.title, xlabel="context, tokens", xscale="log")
    contexts = sorted({p["context"] for p in points})
    axes.set_xticks(contexts, [tokens(context) for context in contexts])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yscale("log", base=panel.base)
    low, high = axes.get_ylim()
    few = panel.base == 10 and high < 300 * low
    subs = (1.0, 2.0, 5.0) if few else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(base=panel.base, subs=subs, numticks=9))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(panel.in_words))
    if missing:
        words = fill(f"out of memory: {', '.join(missing)}", 60)
        axes.text(0.01, 0.99, words, transform=axes.transAxes, va="top", color=GREY, fontsize=9)
    return lines


def _seconds(value: float, place: object = None) -> str:
    """
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
    _Panel("decode", "One decoded token", _time, _seconds),
    _Panel("decode", "Decode state of a sequence", _state, _bytes, base=2),
    _Panel("prefill", "Prefill: time to the first token", _time, _seconds),
    _Panel("train", "One training step", _time, _seconds),
)
