"""Loss against the position in the sequence, the length of the window, the learning rate."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, NullLocator, StrMethodFormatter

from attnlab.analysis import numbers
from attnlab.analysis.analysis import RateCurve
from attnlab.analysis.lengths import AtLengths
from attnlab.analysis.statistics.paired import Estimate
from attnlab.analysis.table import Run, Variant
from attnlab.reporting.figures.axes import Extent, name_ends, show_message, window
from attnlab.reporting.figures.styles import GREY, Styles, mark
from attnlab.reporting.tables.rows import Row


def by_position(
    variant: Variant, read: Callable[[Run], Any], minus: Variant | None = None
) -> dict[int, Estimate]:
    """Return `{first position of the bin: loss}` over finished seeds, or minus another by seed.

    `read` returns {"first": [0, 1, ...], "loss": [...]} of a run, or None.
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
    styles: Styles,
    read: Callable[[Run], Any],
    minus: Variant | None = None,
) -> None:
    """Draw the loss against the position, counted from 1, on a log axis; or minus a reference."""
    found = {row.name: by_position(row.variant, read, minus) for row in rows}
    found = {name: line for name, line in found.items() if line}
    if not found:
        show_message(axes, "not measured")
        return
    axes.set_xscale("log", base=2)
    ends: list[Extent] = []
    for name, line in found.items():
        style, means = styles[name], [e.mean for e in line.values()]
        (drawn,) = axes.plot(
            [at + 1 for at in line], means, color=style.colour, ls=style.line, marker=style.marker,
            ms=5, mec="white", mew=0.5, lw=1.6, zorder=2 if style.line == "-" else 2.5,
        )  # fmt: skip
        sign = "+" if minus else ""
        tips = [f"{name}, from position {at + 1}: {e.mean:{sign}.4f}" for at, e in line.items()]
        mark(drawn, style.group, tips=tips)
        ends.append(Extent(min(means), max(means)))
    axes.set_ylim(*window(ends))
    last = {name: [*line.items()][-1] for name, line in found.items()}
    name_ends(axes, {name: (at + 1, e.mean) for name, (at, e) in last.items()}, styles)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _line(value: Any) -> dict[int, float]:
    if not value:
        return {}
    return {at: loss for at, loss in zip(value["first"], value["loss"], strict=True) if loss}


def against_length(
    axes: Axes, rows: Sequence[Row], styles: Styles, found: Mapping[str, AtLengths]
) -> None:
    """Draw one line per variant, mean ± standard deviation over seeds, on a log axis."""
    shown = {row.name: found[row.name] for row in rows if row.name in found}
    for name, each in shown.items():
        style, means = styles[name], [e.mean for e in each.loss.values()]
        bar = axes.errorbar(
            list(each.loss), means, yerr=[e.spread or 0 for e in each.loss.values()],
            color=style.colour, ls=style.line, marker=style.marker, ms=6, mec="white", mew=0.5,
            lw=1.6, elinewidth=1.2, capsize=2, zorder=2 if style.line == "-" else 2.5,
        )  # fmt: skip
        tips = [f"{name}, {at:,} tokens: {numbers.estimate(e)}" for at, e in each.loss.items()]
        for artist in bar.get_children():
            mark(artist, style.group, tips=tips if artist is bar.lines[0] else [name])
    axes.set_ylim(*window([_extent(e) for each in shown.values() for e in each.loss.values()]))
    last = {name: [*each.loss.items()][-1] for name, each in shown.items()}
    lengths = sorted({length for each in shown.values() for length in each.loss})
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [numbers.tokens(length) for length in lengths])
    axes.xaxis.set_minor_locator(NullLocator())
    name_ends(axes, {name: (at, e.mean) for name, (at, e) in last.items()}, styles)
    mark_training(axes, shown)


def mark_training(axes: Axes, found: Mapping[str, AtLengths]) -> None:
    """Draw a line at the training length, where all variants share it."""
    trained = {each.trained for each in found.values()}
    if len(trained) == 1:
        axes.axvline(trained.pop(), color=GREY, lw=0.9, ls=(0, (3, 3)), zorder=1)


def _extent(e: Estimate) -> Extent:
    return Extent(e.mean - (e.spread or 0), e.mean + (e.spread or 0))


def rates(axes: Axes, curves: Mapping[str, RateCurve], styles: Styles) -> None:
    """Draw one line per variant; a ring marks the chosen rate, a cross a diverged one."""
    losses = [loss for curve in curves.values() for loss in curve.losses if loss is not None]
    if not losses:
        show_message(axes, "no learning rate was tuned")
        return
    axes.set_xscale("log")
    low, high = window([Extent(loss, loss) for loss in losses])
    axes.set_ylim(low, high)
    for name, curve in curves.items():
        style = styles[name]
        finished = [
            (rate, loss)
            for rate, loss in zip(curve.rates, curve.losses, strict=True)
            if loss is not None
        ]
        (line,) = axes.plot(
            [rate for rate, _ in finished], [loss for _, loss in finished],
            color=style.colour, ls=style.line, marker=style.marker,
            ms=5, mec="white", mew=0.5, lw=1.6,
        )  # fmt: skip
        tips = [f"{name}, learning rate {rate:g}: {loss:.4f}" for rate, loss in finished]
        mark(line, style.group, tips=tips)
        chosen = dict(finished).get(curve.chosen)
        if chosen is not None:
            (ring,) = axes.plot(
                curve.chosen, chosen, "o", ms=11, mfc="none", mec=style.colour, mew=1.6
            )
            mark(ring, style.group, tips=[f"{name}: {curve.chosen:g} was chosen, {chosen:.4f}"])
        diverged = [r for r, loss in zip(curve.rates, curve.losses, strict=True) if loss is None]
        if diverged:
            (crosses,) = axes.plot(
                diverged, [0.97] * len(diverged), "x", color=style.colour, ms=7, mew=2,
                transform=axes.get_xaxis_transform(), clip_on=False,
            )  # fmt: skip
            mark(crosses, style.group, tips=[f"{name}, {rate:g}: diverged" for rate in diverged])
    last = {
        name: next((rate, loss) for rate, loss in reversed(points) if loss is not None)
        for name, curve in curves.items()
        if any(loss is not None for loss in curve.losses)
        and (points := list(zip(curve.rates, curve.losses, strict=True)))
    }
    name_ends(axes, last, styles)
    tried = sorted({rate for curve in curves.values() for rate in curve.rates})
    every = -(-len(tried) // 6)
    axes.set_xticks(tried[::every])
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.2g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
