"""Loss against the length of the window: does a model read further than in training?"""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from attnlab.analysis import numbers
from attnlab.analysis.lengths import AtLengths
from attnlab.analysis.statistics.paired import Estimate
from attnlab.reporting.figures.panels.frame import beyond
from attnlab.reporting.figures.scale import Extent, window
from attnlab.reporting.figures.styles import GREY, Looks, mark
from attnlab.reporting.tables.rows import Row


def against_length(
    axes: Axes, rows: Sequence[Row], looks: Looks, found: Mapping[str, AtLengths]
) -> None:
    """One line a variant, mean ± standard deviation over seeds, lengths by powers of two."""
    shown = {row.name: found[row.name] for row in rows if row.name in found}
    for name, each in shown.items():
        look, means = looks[name], [e.mean for e in each.loss.values()]
        bar = axes.errorbar(
            list(each.loss), means, yerr=[e.spread or 0 for e in each.loss.values()],
            color=look.colour, ls=look.line, marker=look.marker, ms=6, mec="white", mew=0.5,
            lw=1.6, elinewidth=1.2, capsize=2, zorder=2 if look.line == "-" else 2.5,
        )  # fmt: skip
        tips = [f"{name}, {at:,} tokens: {numbers.estimate(e)}" for at, e in each.loss.items()]
        for artist in bar.get_children():
            mark(artist, look.group, tips=tips if artist is bar.lines[0] else [name])
    low, high = window([_extent(e) for each in shown.values() for e in each.loss.values()])
    axes.set_ylim(low, high)
    beyond(axes, low, high, {name: [*each.loss.values()][-1].mean for name, each in shown.items()})
    lengths = sorted({length for each in shown.values() for length in each.loss})
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [numbers.tokens(length) for length in lengths])
    axes.xaxis.set_minor_locator(NullLocator())
    mark_training(axes, shown)


def mark_training(axes: Axes, found: Mapping[str, AtLengths]) -> None:
    """A line at the length of training, where all share it."""
    trained = {each.trained for each in found.values()}
    if len(trained) == 1:
        axes.axvline(trained.pop(), color=GREY, lw=0.9, ls=(0, (3, 3)), zorder=1)


def _extent(e: Estimate) -> Extent:
    return Extent(e.mean - (e.spread or 0), e.mean + (e.spread or 0))
