"""The scales of learning curves: linear or logarithmic, and in tokens beside steps."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import (
    EngFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    StrMethodFormatter,
)

from attnlab.reporting.tables.rows import Row


def scaled(axes: Axes, scale: str, *, both: bool) -> None:
    """Linear, or logarithmic: the steps or times alone, or both axes."""
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


def tokens_a_step(shown: Sequence[Row]) -> dict[str, float]:
    """By variant, of those that say."""
    return {
        row.name: row.numbers["tokens"].mean / row.numbers["steps"].mean
        for row in shown
        if "tokens" in row.numbers and row.numbers.get("steps")
    }


def tokens_on_top(axes: Axes, shown: Sequence[Row]) -> None:
    """A second scale in tokens, where all variants read as many a step."""
    a_step = set(tokens_a_step(shown).values())
    if len(a_step) != 1:
        return
    (tokens,) = a_step

    def to_tokens(steps: Any) -> Any:
        return steps * tokens

    def to_steps(count: Any) -> Any:
        return count / tokens

    top = axes.secondary_xaxis("top", (to_tokens, to_steps))
    top.xaxis.set_major_formatter(EngFormatter(sep=""))
    top.xaxis.set_minor_formatter(NullFormatter())
    top.set_xlabel("tokens")
    top.tick_params(labelsize=9)
