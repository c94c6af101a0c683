"""comparison.png and .svg: differences, losses, time per step, learning curves; and each as a PDF.

Rows are in order of mean loss. A variant far from the others is not drawn to scale in the upper
row: an arrow at the edge gives its value, so that the differences among the rest stay visible. The
picture has its caption in it; the PDFs, one column of a paper wide, are for papers, which have
captions of their own.
"""

from collections.abc import Mapping
from textwrap import wrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attnlab.analysis.analysis import Analysis
from attnlab.analysis.table import Variant
from attnlab.reporting.figures.axes import name_rows, shortened
from attnlab.reporting.figures.by_row import dots, forest, most, times
from attnlab.reporting.figures.curves import curves, minus_reference
from attnlab.reporting.figures.hues import families_of
from attnlab.reporting.figures.styles import GREY, Styles, matplotlib_style, pdf, png, styles_of
from attnlab.reporting.figures.svg import whole_svg
from attnlab.reporting.sentences import at_recipe, forest_caption
from attnlab.reporting.tables.rows import Row, rows, split_name

COLUMN_WIDTH = 3.4  # inches
CAPTION_LETTERS = 165  # of a line
PLAIN = ("loss", "time", "curves")  # panels without a reference


def comparison(analysis: Analysis) -> tuple[bytes, bytes]:
    """Return a PNG file, 1,800 pixels wide, and an SVG file; the same analysis, the same bytes."""
    with matplotlib_style():
        figure = _Panels(analysis).together()
        picture = png(figure)
        figure.set_layout_engine("none")  # that of the PNG holds
        return picture, whole_svg(figure)


def panel_pdfs(analysis: Analysis) -> Mapping[str, bytes]:
    """Return a PDF file per panel that has something to show, by the name of the panel."""
    panels, found = _Panels(analysis), dict[str, bytes]()
    by_row = 0.16 * max(len(panels.shown), 4) + 0.6
    for name, (draw, height) in {
        "differences": (panels.differences, by_row),
        "loss": (panels.losses, by_row),
        "time": (panels.times, by_row),
        "curves": (panels.curves, 2.4),
        "curves_minus_reference": (panels.curves_minus_reference, 2.4),
    }.items():
        if not panels.shown or (panels.reference is None and name not in PLAIN):
            continue
        with matplotlib_style(paper=True):
            figure = Figure(figsize=(COLUMN_WIDTH, height), layout="constrained")
            axes = figure.subplots()
            draw(axes)
            axes.set_title("")
            if height == by_row:
                name_rows(axes, panels.shown, panels.styles, 18)
                _few_ticks(axes)
            found[name] = pdf(figure)
    return found


class _Panels:
    """Draws each panel of an analysis into given axes."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        every = rows(analysis)
        self.shown: list[Row] = most(every)
        self.styles: Styles = styles_of(families_of(analysis.table), analysis.table.study.labels)
        compared = {row.name: row.variant for row in every if row.compared}
        best = next(iter(compared.values()), None)
        self.reference: Variant | None = compared.get(analysis.table.study.baseline or "", best)

    def together(self) -> Figure:
        """Draw every panel and the caption."""
        height = 0.27 * max(len(self.shown), 4) + 0.9
        caption = _caption(self.analysis, self.reference)
        lines = wrap(caption, CAPTION_LETTERS)
        figure = Figure(figsize=(12, height + 4.3 + 0.17 * len(lines)), layout="constrained")
        figure.suptitle(_title(self.analysis), x=0.01, ha="left", fontsize=11)
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=9.5, color=GREY)
        parts: Any = figure.subfigures(2, 1, height_ratios=(height, 4.0))
        above, below = parts
        difference, loss, time = above.subplots(1, 3, sharey=True, width_ratios=(1.25, 1.1, 0.9))
        whole, paired = below.subplots(1, 2)
        for axes, draw in (
            (difference, self.differences),
            (loss, self.losses),
            (time, self.times),
            (whole, self.curves),
            (paired, self.curves_minus_reference),
        ):
            draw(axes)
        name_rows(difference, self.shown, self.styles)
        for axes in (difference, loss, time):
            axes.tick_params(axis="y", length=0)
            _few_ticks(axes)
        return figure

    def differences(self, axes: Axes) -> None:
        """Draw the differences to the baseline, or to the best variant."""
        if self.reference is None:
            axes.set_axis_off()
            return
        forest(axes, self.shown, self.styles, self.reference.name)
        than = shortened(self.styles[self.reference.name].label, 18)
        axes.set(title=f"Difference to {than}", xlabel=f"loss minus that of {than} (nats/token)")

    def losses(self, axes: Axes) -> None:
        """Draw the loss of every seed, and mean ± standard deviation."""
        dots(axes, self.shown, self.styles, self.analysis.metric, digits=2)
        title = f"{split_name(self.analysis).capitalize()} loss"
        axes.set(title=title, xlabel=f"{title.lower()} (nats/token)")

    def times(self, axes: Axes) -> None:
        """Draw the time per training step."""
        times(axes, self.shown, self.styles)
        where = " (different devices)" if len(self.analysis.table.devices) > 1 else ""
        axes.set(title=f"Time per training step{where}", xlabel="time per step (ms)")

    def curves(self, axes: Axes) -> None:
        """Draw the validation loss in training."""
        curves(axes, self.shown, self.styles)
        label = "validation loss (nats/token)"
        axes.set(title="Validation loss in training", xlabel="training step", ylabel=label)

    def curves_minus_reference(self, axes: Axes) -> None:
        """Draw the same minus the reference, paired by seed."""
        if self.reference is None:
            axes.set_axis_off()
            return
        minus_reference(axes, self.shown, self.styles, self.reference)
        than = shortened(self.styles[self.reference.name].label, 18)
        label = f"loss minus {than} (nats/token)"
        axes.set(title=f"The same minus {than}", xlabel="training step", ylabel=label)


def _few_ticks(axes: Axes) -> None:
    if axes.get_xticks().size:
        axes.locator_params(axis="x", nbins=5)


def _title(analysis: Analysis) -> str:
    table = analysis.table
    count, of = len(analysis.order), len(table.variants)
    name = f"{table.study.name} (not a fair comparison)" if table.unfair else table.study.name
    text = f"{name}: {count if count == of else f'{count} of {of}'} variants"
    seeds = len(analysis.seeds)
    if seeds < 2:
        return f"{text}, one seed: no error bars" if seeds else text
    return f"{text}, {seeds} seeds{at_recipe(analysis).replace(' at', ', at')}"


def _caption(analysis: Analysis, reference: Variant | None) -> str:
    """Return what every mark of the picture means."""
    said = ["Lower is better in every panel."]
    if reference is not None and len(analysis.order) > 1:
        said.append(f"Differences: {forest_caption(analysis, reference.name)}")
    if len(analysis.seeds) > 1:
        said.append("Loss: small dots are seeds, marker and bar mean ± standard deviation.")
    said.append("Time: median of a run.")
    said.append("A hue is a family of variants; dark grey is the baseline, light grey a model")
    said.append("without attention. An arrow gives a value beyond the axis.")
    if (every := len(rows(analysis))) > (few := len(most(rows(analysis)))):
        said.append(f"The best {few} of {every} variants are shown.")
    return " ".join(said)
