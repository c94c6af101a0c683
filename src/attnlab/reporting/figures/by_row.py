"""Panels with a row per variant: loss of each seed, difference to the baseline, time per step."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from attnlab.analysis import numbers
from attnlab.analysis.analysis import Comparison
from attnlab.analysis.statistics.letters import first_of
from attnlab.analysis.statistics.paired import Estimate
from attnlab.reporting.figures.axes import Extent, filled, off_scale, show_message, window
from attnlab.reporting.figures.styles import GREY, Style, Styles, mark, scale
from attnlab.reporting.tables.rows import Row

MOST_ROWS = 30  # of a panel


def most(rows: Sequence[Row], reference: str | None = None, at_most: int = MOST_ROWS) -> list[Row]:
    """Return the first rows, as many as a panel shows; the reference is always one of them."""
    first = list(rows[:at_most])
    named = [row for row in rows if row.name == reference or (reference is None and row.baseline)]
    return first if not named or named[0] in first else [*first[:-1], named[0]]


def dots(axes: Axes, rows: Sequence[Row], styles: Styles, key: str, digits: int = 3) -> None:
    """Draw each seed, and mean ± standard deviation. A dashed line marks the baseline's mean."""
    points = _points(rows, key)
    if not points:
        show_message(axes, "no run has finished yet")
        return
    low, high = window([_extent(list(seeds.values()), e) for seeds, e in points.values()])
    axes.set_xlim(low, high)
    for y, row in enumerate(rows):
        if row.name not in points:
            continue
        (seeds, e), style = points[row.name], styles[row.name]
        tip = f"{row.name}: {numbers.estimate(e)}"
        if not low <= e.mean <= high:
            off_scale(axes, y, f"{e.mean:.{digits}f}", style, tip, right=e.mean > high)
            continue
        if len(seeds) > 1:
            (each,) = axes.plot(
                list(seeds.values()), [y + 0.3] * len(seeds), "o",
                color=style.colour, alpha=0.6, ms=3.5 * scale(), mew=0,
            )  # fmt: skip
            mark(
                each, style.group, tips=[f"{row.name}, seed {s}: {v:.4f}" for s, v in seeds.items()]
            )
        bar = axes.errorbar(
            e.mean, y, xerr=e.spread, color=style.colour, marker=style.marker,
            ms=7.5 * scale(), mec="white", mew=0.6, elinewidth=1.6, capsize=3,
        )  # fmt: skip
        for artist in bar.get_children():
            mark(artist, style.group, tips=[tip])
    for row in rows:
        if row.baseline and row.name in points and low <= points[row.name][1].mean <= high:
            mean = points[row.name][1].mean
            axes.axvline(mean, color=GREY, lw=0.9, ls=(0, (3, 3)), zorder=1)


def forest(
    axes: Axes,
    rows: Sequence[Row],
    styles: Styles,
    reference: str,
    pairs: Mapping[str, Comparison] | None = None,
) -> None:
    """Draw differences to a variant: those given, or else those of the verdict with its letters.

    The thick inner bar is the error of the seeds, the thin outer bar that of seeds and tuning; both
    hold for all differences at once. A filled marker is a difference whose outer interval excludes
    0; the band is the margin of equivalence.
    """
    if pairs is None:
        shown = {row.name: difference(row, reference) for row in rows}
        found = {name: pair for name, pair in shown.items() if pair is not None}
        for y, row in enumerate(rows):
            if row.letters:
                text, across = first_of(row.letters), axes.get_yaxis_transform()
                axes.text(1.02, y, text, transform=across, va="center")
    else:
        found = {row.name: pairs[row.name] for row in rows if row.name in pairs}
    if not found:
        show_message(axes, "nothing to compare yet")
        return
    margin = max(pair.margin for pair in found.values())
    low, high = window([*map(_ends, found.values())], Extent(-margin, margin))
    axes.set_xlim(low, high)
    axes.locator_params(axis="x", nbins=5)
    if margin:
        axes.axvspan(-margin, margin, color=GREY, alpha=0.16, lw=0, zorder=0.5)
    axes.axvline(0, color=GREY, lw=0.9, ls=(0, (3, 3)), zorder=1)
    for y, row in enumerate(rows):
        style = styles[row.name]
        if row.name == reference:
            (point,) = axes.plot(
                0, y, style.marker, color=style.colour, ms=7.5 * scale(), mec="white", mew=0.6
            )
            mark(point, style.group, tips=[f"{row.name}: differences are to it"])
        elif row.name in found:
            tip = f"{row.name} minus {reference}: {numbers.comparison(found[row.name])}"
            _interval(axes, y, found[row.name], style, tip)


def _interval(axes: Axes, y: int, pair: Comparison, style: Style, tip: str) -> None:
    """Draw a difference with its bars, or an arrow to where it is."""
    low, high = axes.get_xlim()
    if not low <= pair.mean <= high:
        off_scale(axes, y, f"{pair.mean:+.3f}", style, tip, right=pair.mean > high)
        return
    half = pair.half_width
    inner = (None, None) if half is None else (pair.mean - half, pair.mean + half)
    for (start, end), width in (((pair.low, pair.high), 1.3 * scale()), (inner, 4.2 * scale())):
        if start is not None and end is not None:
            capped = width < 2 and math.isfinite(end - start)
            (line,) = axes.plot(
                (max(start, low), min(end, high)), (y, y), "-", color=style.colour, lw=width,
                marker="|" if capped else "", solid_capstyle="butt",
            )  # fmt: skip
            mark(line, style.group, tips=[tip])
    (point,) = axes.plot(pair.mean, y, style.marker, ms=7.5 * scale(), **filled(style, pair))
    mark(point, style.group, tips=[tip])


def difference(row: Row, reference: str) -> Comparison | None:
    """Return the variant minus the reference: Dunnett's interval if that is the baseline."""
    return row.to_baseline or row.analysis.pairs.get((row.name, reference))


def _ends(pair: Comparison) -> Extent:
    """Return the interval as far as it is finite: a search may have found no bound."""
    half = pair.half_width or 0.0
    low = pair.low if pair.low is not None and math.isfinite(pair.low) else pair.mean - half
    high = pair.high if pair.high is not None and math.isfinite(pair.high) else pair.mean + half
    return Extent(low, high)


def times(axes: Axes, rows: Sequence[Row], styles: Styles) -> None:
    """Draw the time per training step as bars from zero."""
    longest = 0.0
    for y, row in enumerate(rows):
        if "step_time" not in row.numbers:
            continue
        e, style = row.numbers["step_time"], styles[row.name]
        axes.barh(y, 1000 * e.mean, height=0.62, color=style.colour, alpha=0.85)
        end = 1000 * (e.mean + (e.spread or 0))
        axes.errorbar(1000 * e.mean, y, xerr=1000 * (e.spread or 0), color="black", elinewidth=1)
        axes.annotate(
            numbers.milliseconds(e.mean), (end, y), (4, 0), textcoords="offset points", va="center"
        )
        longest = max(longest, end)
    axes.grid(visible=False, axis="y")
    if longest:
        axes.set_xlim(0, 1.16 * longest)
    else:
        show_message(axes, "no time was measured yet")


def _points(rows: Sequence[Row], key: str) -> dict[str, tuple[dict[int, float], Estimate]]:
    points: dict[str, tuple[dict[int, float], Estimate]] = {}
    for row in rows:
        of_seed = {s: v for s, v in row.variant.by_seed(key).items() if math.isfinite(v)}
        estimate = row.numbers.get(key) or Estimate.of(list(of_seed.values()))
        if of_seed and estimate is not None and math.isfinite(estimate.mean):
            points[row.name] = of_seed, estimate
    return points


def _extent(seeds: list[float], e: Estimate) -> Extent:
    spread = e.spread or 0
    return Extent(min([*seeds, e.mean - spread]), max([*seeds, e.mean + spread]))
