"""Loss against the position in the window, the length of the window, a rate, a swept setting."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, NullLocator, StrMethodFormatter

from attnlab.analysis import numbers
from attnlab.analysis.analysis import RateCurve
from attnlab.analysis.lengths import AtLengths
from attnlab.analysis.parts import AgainstBaseline
from attnlab.analysis.statistics.paired import Estimate
from attnlab.analysis.sweeps import SweptPoint, SweptSetting
from attnlab.analysis.table import Run, Variant
from attnlab.reporting.figures.axes import ZERO, Extent, filled, name_ends, show_message, window
from attnlab.reporting.figures.styles import GREY, Styles, mark, scale
from attnlab.reporting.tables.rows import Row

FIRST = 4  # position from which differences set the axis
MOST_BARS = 12  # variants with an interval in each range of positions; more hide each other


Read = Callable[[Run], Mapping[int, float]]  # loss by first position of an octave, of a run


def by_position(variant: Variant, read: Read) -> dict[int, Estimate]:
    """Return the loss by first position of an octave, over finished seeds."""
    lines = [read(run) for run in variant.finished]
    every = sorted({at for line in lines for at in line})
    found = {at: Estimate.of([line[at] for line in lines if at in line]) for at in every}
    return {at: estimate for at, estimate in found.items() if estimate is not None}


def positions(axes: Axes, rows: Sequence[Row], styles: Styles, read: Read) -> None:
    """Draw the loss against the position, from 1, on a log axis: mean ± standard deviation."""
    found = {row.name: by_position(row.variant, read) for row in rows}
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
        tips = [f"{name}, from position {at + 1}: {numbers.estimate(e)}" for at, e in line.items()]
        mark(drawn, style.group, tips=tips)
        bars = axes.errorbar(
            [at + 1 for at in line], means, yerr=[e.spread or 0 for e in line.values()],
            fmt="none", ecolor=style.colour, elinewidth=1.1 * scale(), alpha=0.55, zorder=1.9,
        )  # fmt: skip
        for artist in bars.get_children():
            mark(artist, style.group, tips=[name])
        ends.append(Extent(min(means), max(means)))
    axes.set_ylim(*window(ends))
    last = {name: [*line.items()][-1] for name, line in found.items()}
    name_ends(axes, {name: (at + 1, e.mean) for name, (at, e) in last.items()}, styles)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def positions_minus(
    axes: Axes, rows: Sequence[Row], styles: Styles, parts: Mapping[str, AgainstBaseline]
) -> None:
    """Draw differences to the baseline in octaves of the position, with simultaneous intervals.

    A filled marker is a difference whose interval excludes 0. More than `MOST_BARS` variants have
    no bars. The first positions, of few tokens per window, do not set the axis.
    """
    shown = {row.name: parts[row.name].position for row in rows if row.name in parts}
    shown = {name: at for name, at in shown.items() if at}
    if not shown:
        show_message(axes, "not measured")
        return
    axes.set_xscale("log", base=2)
    axes.axhline(0, color=GREY, lw=0.9, ls=(0, (3, 3)), zorder=1)
    bars, ends = len(shown) <= MOST_BARS, dict[str, tuple[float, float]]()
    late = {
        name: [pair for start, pair in at.items() if start >= FIRST] or [*at.values()]
        for name, at in shown.items()
    }
    halves = sorted(p.half_width or 0.0 for of in late.values() for p in of)
    means = [0.0, *(pair.mean for of in late.values() for pair in of)]
    # wide intervals leave the panel rather than flatten the differences
    most = min(2 * halves[len(halves) // 2], max(means) - min(means)) if bars else 0.0
    extents = list[Extent]()
    for of in late.values():
        around = [(pair.mean, min(pair.half_width or 0.0, most)) for pair in of]
        extents.append(Extent(min(m - h for m, h in around), max(m + h for m, h in around)))
    low, high = window(extents, ZERO)
    axes.set_ylim(low, high)
    for i, (name, at) in enumerate(shown.items()):
        style, aside = styles[name], 2 ** (0.6 * ((i + 0.5) / len(shown) - 0.5))
        line = [((start + 1) * aside, start, pair) for start, pair in at.items()]
        (joined,) = axes.plot(
            [x for x, _, _ in line], [pair.mean for _, _, pair in line],
            color=style.colour, ls=style.line, lw=1.2 * scale(), alpha=0.8,
        )  # fmt: skip
        mark(joined, style.group, tips=[name])
        tips = [f"{name}, from position {at + 1}: {numbers.comparison(p)}" for _, at, p in line]
        if bars and all(pair.low is not None and pair.high is not None for _, _, pair in line):
            bar = axes.vlines(
                [x for x, _, _ in line],
                [max(pair.low or 0.0, low) for _, _, pair in line],
                [min(pair.high or 0.0, high) for _, _, pair in line],
                color=style.colour, lw=1.1 * scale(), alpha=0.55,
            )  # fmt: skip
            mark(bar, style.group, tips=tips)
        for shown_as in (True, False):
            some = [(x, p, tip) for (x, _, p), tip in zip(line, tips, strict=True)
                    if p.separable == shown_as]  # fmt: skip
            if some:
                (point,) = axes.plot(
                    [x for x, _, _ in some], [pair.mean for _, pair, _ in some], style.marker,
                    ms=5 * scale(), **filled(style, some[0][1]),
                )  # fmt: skip
                mark(point, style.group, tips=[tip for _, _, tip in some])
        ends[name] = line[-1][0], line[-1][2].mean
    name_ends(axes, ends, styles)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


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


def along_setting(axes: Axes, setting: SweptSetting, styles: Styles) -> None:
    """Draw the difference to the baseline along a swept setting, with published intervals.

    Numbers have a log axis; other values have equal distances. There is a line per combination of
    the other settings.
    """
    place, count = float if setting.numeric else setting.values.index, len(setting.lines)
    found = {fixed: [_ends(point) for point in line] for fixed, line in setting.lines.items()}
    finite = [
        Extent(*(end if math.isfinite(end) else mean for end in (low, high)))
        for line in found.values()
        for low, mean, high in line
    ]
    bottom, top = window(finite, ZERO)
    axes.set_ylim(bottom, top)
    axes.axhline(0, color=GREY, lw=0.9, ls=(0, (3, 3)), zorder=1)
    for i, (fixed, line) in enumerate(setting.lines.items()):
        aside = 0.2 * ((i + 0.5) / count - 0.5)  # so that intervals do not hide each other
        places = [place(point.value) for point in line]
        places = [x * 2**aside if setting.numeric else x + aside for x in places]
        style, ends = styles[line[0].variant], found[fixed]
        means = [mean for _, mean, _ in ends]
        out = 2 * (top - bottom)  # an unbounded interval leaves the panel
        below = [mean - low if math.isfinite(low) else out for low, mean, _ in ends]
        above = [high - mean if math.isfinite(high) else out for _, mean, high in ends]
        bar = axes.errorbar(
            places, means, yerr=[below, above],
            color=style.colour, ls=style.line, marker=style.marker, ms=6, mec="white", mew=0.5,
            lw=1.6, elinewidth=1.2, capsize=2, label=fixed,
        )  # fmt: skip
        tips = [
            f"{point.variant}: {numbers.comparison(point.difference)}"
            if point.difference
            else f"{point.variant}: the baseline"
            for point in line
        ]
        for artist in bar.get_children():
            mark(artist, style.group, tips=tips if artist is bar.lines[0] else [fixed])
    if setting.numeric:
        axes.set_xscale("log")
    axes.set_xticks([place(value) for value in setting.values], list(map(_value, setting.values)))
    axes.xaxis.set_minor_locator(NullLocator())
    if count > 1:
        last = {f: (place(line[-1].value), found[f][-1][1]) for f, line in setting.lines.items()}
        of_line = {f: styles[line[0].variant] for f, line in setting.lines.items()}
        name_ends(axes, last, {f: style._replace(label=f) for f, style in of_line.items()})


def _value(value: Any) -> str:
    """Return a value of a setting for an axis: 16K, 3e-4 as 0.0003, a kind."""
    if isinstance(value, int) and not isinstance(value, bool):
        return numbers.tokens(value) if value >= 1024 else f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _ends(point: SweptPoint) -> tuple[float, float, float]:
    """Return the lower end, the difference and the upper end; three zeros for the baseline."""
    found = point.difference
    if found is None:
        return 0.0, 0.0, 0.0
    if found.low is None or found.high is None:
        return found.mean, found.mean, found.mean
    return found.low, found.mean, found.high
