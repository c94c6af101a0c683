"""Validation loss against the peak learning rate, from the runs that tuned it."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from attnlab.analysis.analysis import RateCurve
from attnlab.reporting.figures.panels.frame import say
from attnlab.reporting.figures.scale import Extent, window
from attnlab.reporting.figures.styles import Looks, mark


def rates(axes: Axes, curves: Mapping[str, RateCurve], looks: Looks) -> None:
    """One line a variant; a ring marks the rate that was chosen, a cross one that diverged."""
    losses = [loss for curve in curves.values() for loss in curve.losses if loss is not None]
    if not losses:
        say(axes, "no learning rate was tuned")
        return
    axes.set_xscale("log")
    low, high = window([Extent(loss, loss) for loss in losses])
    axes.set_ylim(low, high)
    for name, curve in curves.items():
        look = looks[name]
        finished = [
            (rate, loss)
            for rate, loss in zip(curve.rates, curve.losses, strict=True)
            if loss is not None
        ]
        (line,) = axes.plot(
            [rate for rate, _ in finished], [loss for _, loss in finished],
            color=look.colour, ls=look.line, marker=look.marker, ms=5, mec="white", mew=0.5, lw=1.6,
        )  # fmt: skip
        tips = [f"{name}, learning rate {rate:g}: {loss:.4f}" for rate, loss in finished]
        mark(line, look.group, tips=tips)
        chosen = dict(finished).get(curve.chosen)
        if chosen is not None:
            (ring,) = axes.plot(
                curve.chosen, chosen, "o", ms=11, mfc="none", mec=look.colour, mew=1.6
            )
            mark(ring, look.group, tips=[f"{name}: {curve.chosen:g} was chosen, {chosen:.4f}"])
        diverged = [r for r, loss in zip(curve.rates, curve.losses, strict=True) if loss is None]
        if diverged:
            (crosses,) = axes.plot(
                diverged, [0.97] * len(diverged), "x", color=look.colour, ms=7, mew=2,
                transform=axes.get_xaxis_transform(), clip_on=False,
            )  # fmt: skip
            mark(crosses, look.group, tips=[f"{name}, {rate:g}: diverged" for rate in diverged])
    tried = sorted({rate for curve in curves.values() for rate in curve.rates})
    every = -(-len(tried) // 6)
    axes.set_xticks(tried[::every])
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.2g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
