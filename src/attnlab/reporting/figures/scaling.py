"""Figures of a ladder, and of training lengths: what a study of several sizes or lengths answers.

They come first in the picture and on the page; the comparison at one size and length follows.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from attnlab.analysis import numbers
from attnlab.analysis.analysis import Analysis
from attnlab.analysis.scaling import Along, Quantity, Scaling
from attnlab.analysis.statistics.power_law import Fit, Speedup
from attnlab.analysis.sweeps import SweptSetting
from attnlab.reporting.figures.axes import ZERO, Extent, Panel, name_ends, shortened, window
from attnlab.reporting.figures.loss_against import along_setting
from attnlab.reporting.figures.styles import GREY, Style, Styles, mark, scale
from attnlab.reporting.tables.scaling import QUANTITIES, tick

FEWEST_TICKS = 3
ENDS = (0.025, 0.975)  # of an interval of draws
RATIOS = (  # ticks of an axis of ratios; the first row with enough of them is taken
    (0.01, 0.1, 1, 10, 100),
    (0.1, 0.2, 0.5, 1, 2, 5, 10),
    (0.25, 0.5, 0.7, 1, 1.5, 2, 3, 4),
    (0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.5, 1.7, 2),
)
SPEEDUPS = (
    "Effective speedup: how many times more {baseline} takes to the lowest loss that both reach; "
    "right of 1 is better than {baseline}."
)
INTERVALS = (
    "Bars: 95 % intervals that hold for all families at once, of {errors}; filled where 1 lies "
    "outside."
)
PARTS = {"all": "all tokens", "recall": "recall tokens", "other": "other tokens"}


def first_panels(analysis: Analysis, styles: Styles) -> dict[str, Panel]:
    """Return the panels that answer a ladder or a study of lengths, by name; empty for others."""
    if analysis.scaling is not None:
        return _of_ladder(analysis.scaling, styles)
    return _of_lengths(analysis, styles) if analysis.training_lengths is not None else {}


def _of_ladder(found: Scaling, styles: Styles) -> dict[str, Panel]:
    quantity = main_quantity(found)
    if quantity is None:
        return {}
    along, (title, where) = found.along[quantity], QUANTITIES[quantity]
    text, baseline = partial(tick, quantity=quantity), found.baseline
    sure = any(fit.exponent for fit in along.fits.values())
    interval = " with 95 % intervals of the seeds" if sure else "; one seed gives no intervals"

    def laws(axes: Axes) -> None:
        scaling_laws(axes, along, styles, text)
        axes.set(title="Scaling", xlabel=title, ylabel="loss (nats/token)")

    def differences(axes: Axes) -> None:
        scaling_differences(axes, along, baseline, styles, text)
        than = shortened(baseline, 18)
        label = f"loss minus {than} (nats/token)"
        axes.set(title=f"Difference at equal {title.split()[-1]}", xlabel=title, ylabel=label)

    def gains(axes: Axes) -> None:
        speedups(axes, along, styles)
        axes.set(title="Effective speedup", xlabel=f"{title},\n{shortened(baseline, 18)} / family")

    every = {
        "scaling": Panel(
            laws, f"Points: means over seeds, filled {where}. Lines: power laws{interval}."
        )
    }
    if baseline in along.fits and len(along.fits) > 1:
        said = (
            f"Below 0 is better than {baseline} at equal {title}. Lines through the means of the "
        )
        every["scaling_differences"] = Panel(differences, f"{said}frontier{interval}.")
    if any(gain.ratio is not None for gain in along.speedups.values()):
        said = SPEEDUPS.format(baseline=baseline)
        every["speedup"] = Panel(
            gains, f"{said} {INTERVALS.format(errors=found.errors)}" if sure else said
        )
    return every


def main_quantity(found: Scaling) -> Quantity | None:
    """Return training FLOPs, or else the first quantity that families have laws along."""
    return next((quantity for quantity in QUANTITIES if quantity in found.along), None)


def _of_lengths(analysis: Analysis, styles: Styles) -> dict[str, Panel]:
    found, baseline = analysis.training_lengths, analysis.table.study.baseline or ""
    assert found is not None, "no panel of lengths without lengths"
    of = "seeds and tuning" if any(analysis.tuning.allowance.values()) else "seeds"
    every = dict[str, Panel]()
    for part, tokens in PARTS.items():
        setting = found.along_part(part)
        if not setting.lines:
            continue

        def draw(axes: Axes, setting: SweptSetting = setting, tokens: str = tokens) -> None:
            along_setting(axes, setting, styles)
            than = shortened(styles[baseline].label if baseline in styles else baseline, 18)
            at, label = f"training length ({setting.path})", f"loss minus {than} (nats/token)"
            axes.set(title=tokens.capitalize(), xlabel=at, ylabel=label)

        said = (
            f"Below 0 is better than {baseline} of the same training length. Bars: intervals of "
            f"each study, of {of}; on recall and on other tokens, of seeds alone."
        )
        every[f"lengths_{part}"] = Panel(draw, said)
    return every


def speedups(axes: Axes, along: Along, styles: Styles) -> None:
    """Draw the effective speedup of each family against the baseline, with its interval."""
    of_family = {fit.family: style for style, fit in _by_style(along, styles).values()}
    shown = {name: it for name, it in along.speedups.items() if it.ratio is not None}
    shown = dict(sorted(shown.items(), key=lambda of: -(of[1].ratio or 0.0)))
    ends = [1.0, *(end for it in shown.values() for end in _finite_ends(it))]
    low, high = min(ends) / 1.12, max(ends) * 1.12
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.axvline(1, color=GREY, lw=0.9, ls=(0, (3, 3)), zorder=1)
    for y, (name, it) in enumerate(shown.items()):
        assert it.ratio is not None, "only known ratios are drawn"
        style, said, sure = of_family[name], f"{it.ratio:.2f}", False
        if it.interval is not None:
            start, end = it.interval
            sure = start > 1 or end < 1
            said += f" {numbers.ends(it.interval, 2)}"
            (line,) = axes.plot(
                (max(start, low), min(end, high)), (y, y), "-", color=style.colour,
                lw=1.6 * scale(), solid_capstyle="butt",
            )  # fmt: skip
            mark(line, style.group, tips=[f"{name}: {said}"])
        (point,) = axes.plot(
            it.ratio, y, style.marker, ms=7.5 * scale(), mec=style.colour, mew=1.2,
            mfc=style.colour if sure else "white",
        )  # fmt: skip
        mark(point, style.group, tips=[f"{name}: {said}"])
        axes.annotate(
            said, (it.ratio, y), (0, 7), textcoords="offset points", ha="center", va="bottom",
            fontsize="small", bbox={"fc": "white", "ec": "none", "alpha": 0.7, "pad": 0.4},
        )  # fmt: skip
    axes.set_yticks(range(len(shown)), [shortened(name, 18) for name in shown])
    axes.set_ylim(max(len(shown), 1) - 0.5, -0.75)
    axes.tick_params(axis="y", length=0)
    for ticks in RATIOS:
        inside = [ratio for ratio in ticks if low <= ratio <= high]
        if len(inside) >= FEWEST_TICKS:
            break
    else:
        inside = [1.0]
    axes.set_xticks(inside, [f"{ratio:g}" for ratio in inside])
    axes.xaxis.set_minor_locator(NullLocator())


def _finite_ends(it: Speedup) -> list[float]:
    """Return the ratio and the ends of its interval that an axis can hold."""
    ends = (it.ratio, *(it.interval or ()))
    return [end for end in ends if end is not None and math.isfinite(end) and end > 0]


def scaling_laws(axes: Axes, along: Along, styles: Styles, text: Callable[[float], str]) -> None:
    """Draw the points and the law of each family, with its interval, on a log axis."""
    axes.set_xscale("log")
    ends, named = dict[str, tuple[float, float]](), dict[str, Style]()
    for name, (style, fit) in _by_style(along, styles).items():
        x_I = np.geomspace(*fit.range, 60)
        law_I, low_I, high_I = fit.band(x_I)
        band = axes.fill_between(x_I, low_I, high_I, color=style.colour, alpha=0.15, lw=0)
        (line,) = axes.plot(x_I, law_I, color=style.colour, ls=style.line, lw=1.4)
        for artist in (band, line):
            mark(artist, style.group, tips=[fit.family])
        for points, face in ((fit.others, "none"), (fit.points, style.colour)):
            (drawn,) = axes.plot(
                [p.x for p in points], [p.loss for p in points], style.marker,
                ms=5, mec=style.colour, mfc=face, mew=0.8,
            )  # fmt: skip
            said = [f"{p.variant}: {p.loss:.4f} at {text(p.x)}" for p in points]
            mark(drawn, style.group, tips=said)
        ends[name] = fit.points[-1].x, fit.points[-1].loss
        named[name] = style
    _ticks_in(axes, text)
    name_ends(axes, ends, named)


def scaling_differences(
    axes: Axes, along: Along, baseline: str, styles: Styles, text: Callable[[float], str]
) -> None:
    """Draw the measured loss of each family minus the baseline's at equal x, with its interval."""
    axes.set_xscale("log")
    axes.axhline(0, color=GREY, lw=0.9, ls=(0, (3, 3)), zorder=1)
    base, extents = along.fits[baseline], [ZERO]
    ends, named = dict[str, tuple[float, float]](), dict[str, Style]()
    for name, (style, fit) in _by_style(along, styles).items():
        low, high = max(fit.range[0], base.range[0]), min(fit.range[1], base.range[1])
        if fit.family == baseline or low >= high:
            continue
        log_I = np.linspace(math.log(low), math.log(high), 60)
        difference_IR = fit.measured(log_I) - base.measured(log_I)
        mean_I, (low_I, high_I) = difference_IR[:, 0], np.quantile(difference_IR, ENDS, axis=1)
        band = axes.fill_between(np.exp(log_I), low_I, high_I, color=style.colour, alpha=0.15, lw=0)
        (line,) = axes.plot(np.exp(log_I), mean_I, color=style.colour, ls=style.line, lw=1.4)
        for artist in (band, line):
            mark(artist, style.group, tips=[f"{fit.family} minus {baseline}"])
        extents.append(Extent(float(low_I.min()), float(high_I.max())))
        ends[name] = high, float(mean_I[-1])
        named[name] = style
    axes.set_ylim(*window(extents, ZERO))
    _ticks_in(axes, text)
    name_ends(axes, ends, named)


def _by_style(along: Along, styles: Styles) -> dict[str, tuple[Style, Fit]]:
    """Return the style and the fit of each family, by the variant whose style it has."""
    whose = {
        point.variant: fit for fit in along.fits.values() for point in (*fit.points, *fit.others)
    }
    of_family = {fit.family: fit for fit in along.fits.values()}
    found = {
        name: (style, whose.get(name) or of_family.get(style.label))
        for name, style in styles.items()
    }
    return {name: (style, fit) for name, (style, fit) in found.items() if fit is not None}


def _ticks_in(axes: Axes, text: Callable[[float], str]) -> None:
    """Set three to six ticks of a log axis, at the roundest multiples of powers of ten."""
    low, high = axes.get_xlim()
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for multiples in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        ticks = [m * 10.0**power for power in powers for m in multiples]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= FEWEST_TICKS:
            break
    axes.set_xticks(ticks, [text(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
