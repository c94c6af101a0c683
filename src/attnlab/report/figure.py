"""comparison.png: quality, its spread over seeds, cost, and how the runs got there.

Rows are in order of rank. A variant keeps one colour, marker and line in all panels, by its place
in the study. A variant far from the others is not drawn to scale in the upper row: an arrow at the
edge gives its value, so that the differences among the rest stay visible.
"""

import io
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from attnlab.analysis.table import Table, Variant
from attnlab.report.panels import GREY, Look, curves, dots, minus_reference, times

# Okabe and Ito 2008, told apart by the colour-blind; without yellow, too light for lines on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "<", ">", "p", "X", "P", "h")
DOTS_PER_INCH = 150
STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same picture everywhere
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "text.parse_math": False,  # a dollar sign in a variant's name is a dollar sign
}


def comparison_png(table: Table) -> bytes:
    """The figure as a PNG file, 1,800 pixels wide. The same table gives the same bytes."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        file = io.BytesIO()
        _figure(table).savefig(file, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return file.getvalue()


def _figure(table: Table) -> Figure:
    shown = table.ranked
    looks = {
        variant.name: Look(
            COLOURS[i % len(COLOURS)], LINES[i % len(LINES)], MARKERS[i % len(MARKERS)]
        )
        for i, variant in enumerate(table.variants)
    }
    rows = 0.27 * max(len(shown), 4) + 0.9
    figure = Figure(figsize=(12, rows + 4.6), layout="constrained")
    figure.suptitle(_title(table), x=0.01, ha="left", fontsize=10, color=GREY)
    parts: Any = figure.subfigures(2, 1, height_ratios=(rows, 4.2))
    above, below = parts
    loss, ppl, time = above.subplots(1, 3, sharey=True, width_ratios=(1.15, 1, 1))
    dots(loss, table, looks, "final_loss", digits=2)
    loss.set(title="Validation loss", xlabel="nats a token")
    dots(ppl, table, looks, "final_perplexity", digits=0)
    ppl.set(title="Validation perplexity", xlabel="exp of the loss")
    times(time, shown, looks)
    time.set(title="Time per training step", xlabel="milliseconds, median of a run")
    names = [_name(variant) for variant in shown]
    loss.set_yticks(range(len(shown)), names)
    loss.set_ylim(max(len(shown), 1) - 0.4, -0.6)
    for axes in (loss, ppl, time):
        axes.tick_params(axis="y", length=0)
        if axes.get_xticks().size:
            axes.locator_params(axis="x", nbins=5)

    whole, paired = below.subplots(1, 2, width_ratios=(1, 1.1))
    curves(whole, shown, looks)
    minus_reference(paired, table, looks)
    return figure


def _title(table: Table) -> str:
    count, of = len(table.ranked), len(table.variants)
    words = f"{table.study.name}: {count if count == of else f'{count} of {of}'} variants"
    if table.most_seeds < 2:
        return f"{words}, one seed: no error bars" if table.ranked else words
    words += f", {table.most_seeds} seeds (dots); marker and bar: mean ± standard deviation"
    baseline = table.study.baseline
    return words if baseline is None else f"{words}; dashed: {baseline}"


def _name(variant: Variant) -> str:
    name = variant.name if len(variant.name) <= 28 else f"{variant.name[:27]}…"
    some = len(variant.finished) < len(variant.runs)
    return f"{name} ({len(variant.finished)} of {len(variant.runs)})" if some else name
