"""comparison.png and .svg: losses, differences, time per step, learning curves.

Rows are in order of rank. A variant far from the others is not drawn to scale in the upper row: an
arrow at the edge gives its value, so that the differences among the rest stay visible.
"""

from typing import Any

from matplotlib.figure import Figure

from attnlab.analysis.analysis import Analysis
from attnlab.reporting.figures.axes import name_rows, shortened
from attnlab.reporting.figures.by_row import dots, forest, times
from attnlab.reporting.figures.curves import curves, minus_reference
from attnlab.reporting.figures.hues import families_of
from attnlab.reporting.figures.styles import GREY, matplotlib_style, png, styles_of
from attnlab.reporting.figures.svg import whole_svg
from attnlab.reporting.tables.rows import rows, split_name


def comparison(analysis: Analysis) -> tuple[bytes, bytes]:
    """Return a PNG file, 1,800 pixels wide, and an SVG file; the same analysis, the same bytes."""
    with matplotlib_style():
        figure = _figure(analysis)
        return png(figure), whole_svg(figure)


def _figure(analysis: Analysis) -> Figure:
    shown = rows(analysis)
    compared = [row for row in shown if row.compared]
    styles = styles_of(families_of(analysis.table))
    names = {row.name: row.variant for row in compared}
    reference = names.get(analysis.table.study.baseline or "", next(iter(names.values()), None))
    height = 0.27 * max(len(shown), 4) + 0.9
    figure = Figure(figsize=(12, height + 4.6), layout="constrained")
    figure.suptitle(_title(analysis), x=0.01, ha="left", fontsize=10, color=GREY)
    parts: Any = figure.subfigures(2, 1, height_ratios=(height, 4.2))
    above, below = parts
    loss, difference, time = above.subplots(1, 3, sharey=True, width_ratios=(1.1, 1.1, 1))
    dots(loss, shown, styles, analysis.metric, digits=2)
    loss.set(
        title=f"{split_name(analysis).capitalize()} loss", xlabel="nats/token (lower is better)"
    )
    if reference is not None:
        forest(difference, shown, styles, reference.name)
        difference.set(
            title=f"Difference to {shortened(reference.name, 18)}",
            xlabel="nats/token (left of 0 is better)",
        )
    times(time, shown, styles)
    time.set(title="Time per training step", xlabel=_time_label(analysis))
    name_rows(loss, shown)
    for axes in (loss, difference, time):
        axes.tick_params(axis="y", length=0)
        if axes.get_xticks().size:
            axes.locator_params(axis="x", nbins=5)

    whole, paired = below.subplots(1, 2, width_ratios=(1, 1.1))
    curves(whole, shown, styles)
    label = {"xlabel": "training step", "ylabel": "validation loss (nats/token)"}
    whole.set(title="Learning curves", **label)
    if reference is None:
        paired.set_axis_off()
        return figure
    minus_reference(paired, shown, styles, reference)
    label["ylabel"] = "difference (nats/token)"
    paired.set(title=f"Learning curves minus {shortened(reference.name, 28)}", **label)
    if shown:
        paired.legend(
            loc="center left", bbox_to_anchor=(1.01, 0.5), title="by rank", handlelength=3.2
        )
    return figure


def _time_label(analysis: Analysis) -> str:
    several = len(analysis.table.devices) > 1
    return f"ms ({'on different devices' if several else 'median of a run'})"


def _title(analysis: Analysis) -> str:
    table = analysis.table
    count, of = len(analysis.order), len(table.variants)
    name = f"{table.study.name} (not a fair one)" if table.unfair else table.study.name
    text = f"{name}: {count if count == of else f'{count} of {of}'} variants"
    seeds = len(analysis.seeds)
    if seeds < 2:
        return f"{text}, one seed: no error bars" if seeds else text
    text += f", {seeds} seeds (dots); marker and bar: mean ± standard deviation"
    if not analysis.judged:
        return text
    return f"{text}; differences: 95 % intervals, thin for all pairs, thick for this pair"
