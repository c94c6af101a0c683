"""The panels of comparison.png, each drawn on axes that it is given."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes

from attnlab.analysis.curves import Curve
from attnlab.analysis.table import Table, Variant
from attnlab.report import units
from attnlab.report.scale import Extent, window

GREY = "#666666"


class Look(NamedTuple):
    """What tells a variant from the others, in every panel."""

    colour: str
    line: Any
    marker: str


def dots(axes: Axes, table: Table, looks: Mapping[str, Look], key: str, digits: int) -> None:
    """A row a variant: its seeds, and their mean ± standard deviation."""
    points = {
        variant.name: (list(variant.by_seed(key).values()), variant.numbers[key])
        for variant in table.ranked
        if key in variant.numbers and math.isfinite(variant.numbers[key].mean)
    }
    if not points:
        _say(axes, "no run has finished yet")
        return
    extents = [
        Extent(min([*seeds, e.mean - (e.spread or 0)]), max([*seeds, e.mean + (e.spread or 0)]))
        for seeds, e in points.values()
    ]
    low, high = window(extents)
    axes.set_xlim(low, high)
    for row, variant in enumerate(table.ranked):
        if variant.name not in points:
            continue
        (seeds, e), look = points[variant.name], looks[variant.name]
        if not low <= e.mean <= high:
            _off_scale(axes, row, f"{e.mean:.{digits}f}", look.colour, right=e.mean > high)
            continue
        if len(seeds) > 1:
            beside = [row + 0.3] * len(seeds)
            axes.plot(seeds, beside, "o", color=look.colour, alpha=0.6, ms=3.5, mew=0)
        axes.errorbar(
            e.mean, row, xerr=e.spread, color=look.colour, marker=look.marker,
            ms=7.5, mec="white", mew=0.6, elinewidth=1.6, capsize=3,
        )  # fmt: skip
    baseline = points.get(table.study.baseline or "")
    if baseline is not None and low <= baseline[1].mean <= high:
        axes.axvline(baseline[1].mean, color=GREY, lw=0.9, ls=(0, (3, 3)), zorder=1)


def _off_scale(axes: Axes, row: int, text: str, colour: str, *, right: bool) -> None:
    edge, inward = (1.0, -1) if right else (0.0, 1)
    across = axes.get_yaxis_transform()  # x in parts of the axes, y in rows
    axes.annotate(
        "", (edge, row), (edge + 0.12 * inward, row), xycoords=across, textcoords=across,
        arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.6, "shrinkA": 0, "shrinkB": 0},
    )  # fmt: skip
    axes.text(
        edge + 0.14 * inward, row, text, transform=across, color=colour, va="center",
        ha="right" if right else "left", fontweight="bold",
    )  # fmt: skip


def times(axes: Axes, shown: Sequence[Variant], looks: Mapping[str, Look]) -> None:
    """From zero, because a time is read by its length."""
    longest = 0.0
    for row, variant in enumerate(shown):
        if "step_time" not in variant.numbers:
            continue
        e, look = variant.numbers["step_time"], looks[variant.name]
        axes.barh(row, 1000 * e.mean, height=0.62, color=look.colour, alpha=0.85)
        end = 1000 * (e.mean + (e.spread or 0))
        axes.errorbar(1000 * e.mean, row, xerr=1000 * (e.spread or 0), color="black", elinewidth=1)
        axes.annotate(
            units.milliseconds(e.mean), (end, row), (4, 0), textcoords="offset points", va="center"
        )
        longest = max(longest, end)
    axes.grid(visible=False, axis="y")
    if longest:
        axes.set_xlim(0, 1.16 * longest)
    else:
        _say(axes, "no time measured yet")


def curves(axes: Axes, shown: Sequence[Variant], looks: Mapping[str, Look]) -> None:
    """Validation loss against the step, mean over seeds. The first tenth may leave the panel."""
    axes.set(
        title="Learning curves", xlabel="training step", ylabel="validation loss, nats a token"
    )
    curves = {variant.name: variant.curve("eval_loss") for variant in shown}
    last = max((curve.steps[-1] for curve in curves.values() if curve.steps), default=0)
    if not last:
        _say(axes, "no validation yet")
        return
    seen: list[float] = []
    for name, curve in curves.items():
        _line(axes, curve, name, looks[name])
        seen += _from_step(curve, last / 10)
    axes.set_ylim(*window([Extent(min(seen), max(seen))]))


def minus_reference(axes: Axes, table: Table, looks: Mapping[str, Look]) -> None:
    """The same curves minus the baseline's, seed by seed, which brings out the differences."""
    by_name = {variant.name: variant for variant in table.ranked}
    reference = by_name.get(table.study.baseline or "", next(iter(table.ranked), None))
    if reference is None:
        axes.set_axis_off()
        return
    axes.set(
        title=f"Learning curves minus {reference.name}",
        xlabel="training step",
        ylabel="difference, nats a token",
    )
    curves = {variant.name: variant.curve_minus(reference, "eval_loss") for variant in table.ranked}
    last = max((curve.steps[-1] for curve in curves.values() if curve.steps), default=0)
    late: list[Extent] = []
    for name, curve in curves.items():
        _line(axes, curve, name, looks[name])
        values = _from_step(curve, last / 2)
        if values:
            late.append(Extent(min(values), max(values)))
    if late:
        low, high = window(late)
        axes.set_ylim(low, high)
        for beyond, y, va in ((high, 0.99, "top"), (low, 0.01, "bottom")):
            out = [n for n, c in curves.items() if c.mean and (c.mean[-1] - beyond) * (y - 0.5) > 0]
            if out:
                words = f"{'above' if va == 'top' else 'below'} the panel: {', '.join(out)}"
                axes.text(0.01, y, words, transform=axes.transAxes, va=va, color=GREY, fontsize=9)
    axes.legend(
        loc="center left", bbox_to_anchor=(1.01, 0.5), title="in order of rank", handlelength=3.2
    )


def _line(axes: Axes, curve: Curve, name: str, look: Look) -> None:
    # broken lines over solid ones, so that of two equal curves both are seen
    axes.plot(
        curve.steps, curve.mean, color=look.colour, ls=look.line, marker=look.marker, ms=5,
        mec="white", mew=0.5, lw=1.6, label=name, zorder=2 if look.line == "-" else 2.5,
        markevery=max(1, len(curve.steps) // 12),
    )  # fmt: skip


def _from_step(curve: Curve, first: float) -> list[float]:
    return [v for step, v in zip(curve.steps, curve.mean, strict=True) if step >= first]


def _say(axes: Axes, words: str) -> None:
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=GREY)
    axes.set(xticks=[], yticks=[])
