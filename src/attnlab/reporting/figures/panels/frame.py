"""What panels share: rows of names, values that are far off, words in place of data."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from attnlab.reporting.figures.styles import GREY, Look, mark
from attnlab.reporting.tables.rows import Row


def name_rows(axes: Axes, rows: Sequence[Row], longest: int = 28) -> None:
    """One row a variant, the first on top."""
    axes.set_yticks(range(len(rows)), [row_name(row, longest) for row in rows])
    axes.set_ylim(max(len(rows), 1) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)


def row_name(row: Row, longest: int) -> str:
    name = shortened(row.name, longest)
    done, planned = len(row.variant.finished), len(row.variant.runs)
    return name if done == planned else f"{name} ({done} of {planned})"


def shortened(name: str, longest: int) -> str:
    end = longest // 2 - 1  # names of one folder differ there
    return name if len(name) <= longest else f"{name[: longest - 1 - end]}…{name[-end:]}"


def off_scale(axes: Axes, row: int, text: str, look: Look, tip: str, *, right: bool) -> None:
    """An arrow at the edge, with the value."""
    edge, inward = (1.0, -1) if right else (0.0, 1)
    across = axes.get_yaxis_transform()  # x in parts of the axes, y in rows
    arrow: Any = axes.annotate(
        "", (edge, row), (edge + 0.12 * inward, row), xycoords=across, textcoords=across,
        arrowprops={
            "arrowstyle": "-|>", "color": look.colour, "lw": 1.6, "shrinkA": 0, "shrinkB": 0
        },
    )  # fmt: skip
    words = axes.text(
        edge + 0.14 * inward, row, text, transform=across, va="center",
        ha="right" if right else "left", fontweight="bold",
    )  # fmt: skip
    for artist in (arrow.arrow_patch, words):
        mark(artist, look.group, tips=[tip])


def say(axes: Axes, words: str) -> None:
    """Words where there is nothing to draw."""
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=GREY)
    axes.set(xticks=[], yticks=[])


def beyond(axes: Axes, low: float, high: float, ends: dict[str, float]) -> None:
    """Name the lines that end above or below the panel."""
    for y, va, where, out in (
        (0.99, "top", "above", [name for name, end in ends.items() if end > high]),
        (0.01, "bottom", "below", [name for name, end in ends.items() if end < low]),
    ):
        if out:
            words = f"{where} the panel: {', '.join(shortened(name, 16) for name in out)}"
            axes.text(0.01, y, words, transform=axes.transAxes, va=va, color=GREY, fontsize=9)
