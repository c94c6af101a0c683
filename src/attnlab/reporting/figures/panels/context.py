"""What serving and training take against context, as `attnlab bench` measured it, on log axes."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from attnlab.analysis import numbers
from attnlab.reporting.figures.panels.frame import say
from attnlab.reporting.figures.styles import Looks, mark

Point = Mapping[str, Any]  # one of bench.json


def against_context(axes: Axes, points: Sequence[Point], looks: Looks, key: str, unit: str) -> None:
    """One line a variant, from points of one kind and batch size. A line ends where memory does."""
    contexts: set[int] = set()
    for name, look in looks.items():
        own = sorted((p for p in points if p["variant"] == name), key=lambda p: p["context"])
        found: dict[int, float] = {p["context"]: p[key] for p in own if p.get(key)}
        if not found:
            continue
        contexts |= found.keys()
        (line,) = axes.plot(
            list(found), list(found.values()), color=look.colour, ls=look.line, marker=look.marker,
            ms=5, mec="white", mew=0.5, lw=1.6, zorder=2 if look.line == "-" else 2.5,
        )  # fmt: skip
        tips = [f"{name}, context {c:,}: {numbers.quantity(y, unit)}" for c, y in found.items()]
        mark(line, look.group, tips=tips)
    if not contexts:
        say(axes, "not measured")
        return

    def in_words(value: float, _: int) -> str:
        return numbers.quantity(value, unit)

    axes.set(xscale="log", yscale="log", xlabel="context, tokens")
    axes.set_xticks(sorted(contexts), [numbers.count(context) for context in sorted(contexts)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(in_words))
    axes.yaxis.set_minor_locator(NullLocator())
