"""comparison.png and .svg: differences, losses, times, learning curves; and each as a PDF.

A ladder, and a study of lengths, begin with what they answer (`figures.scaling`). Parts of the loss
follow where they were recorded. Rows are in order of mean loss. A variant far from the others is
not drawn to scale: an arrow at the edge gives its value. The picture has its caption in it, and so
has each PDF, one column of a paper wide.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from textwrap import wrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attnlab.analysis.analysis import Analysis
from attnlab.analysis.table import Variant
from attnlab.reporting.figures.axes import Panel, name_rows, shortened
from attnlab.reporting.figures.by_row import dots, forest, most, times
from attnlab.reporting.figures.curves import Key, curves, minus_reference
from attnlab.reporting.figures.loss_against import MOST_BARS, positions_minus
from attnlab.reporting.figures.scaling import first_panels
from attnlab.reporting.figures.styles import (
    GREY,
    Styles,
    matplotlib_style,
    pdf,
    place,
    png,
    styles_in,
)
from attnlab.reporting.figures.svg import whole_svg
from attnlab.reporting.sentences import RECALL, at_recipe, forest_caption, parts_caption
from attnlab.reporting.tables.rows import Row, rows, split_name

COLUMN_WIDTH = 3.4  # inches
CAPTION_LETTERS = 165  # of a line
COLUMN_LETTERS = 70  # of a line in that width
SPREAD = "Small dots are seeds, marker and bar mean ± standard deviation."
MOST_TEXTS = 6  # with panels of their own
_PanelRow = tuple[Sequence[str], float]  # names of panels, and the height in inches


def comparison(analysis: Analysis) -> tuple[bytes, bytes]:
    """Return a PNG file, 1,800 pixels wide, and an SVG file; the same analysis, the same bytes."""
    with matplotlib_style():
        figure = _Panels(analysis).together()
        _lay_out(figure)
        return png(figure), whole_svg(figure)


def _lay_out(figure: Figure) -> None:
    """Place everything once, without the solver's last digits, which differ between calls."""
    place(figure)
    parts: Any = figure.subfigs
    for part in parts:
        part.bbox_relative.set_points(part.bbox_relative.get_points().round(6))
        for axes in part.axes:
            axes.set_position([round(end, 6) for end in axes.get_position().bounds])


def panel_pdfs(analysis: Analysis) -> Mapping[str, bytes]:
    """Return a PDF file per panel that has something to show, by the name of the panel.

    Each is one column of a paper wide, and has its caption below it.
    """
    panels, found = _Panels(analysis), dict[str, bytes]()
    for name, panel in panels.every().items():
        with matplotlib_style(paper=True):
            lines = wrap(" ".join(panel.caption.split()), COLUMN_LETTERS)
            height = (0.16 * max(len(panels.shown), 4) + 0.6) if panel.by_row else 2.4
            figure = Figure(
                figsize=(COLUMN_WIDTH, height + 0.12 * len(lines)), layout="constrained"
            )
            figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=6.5, color=GREY)
            axes = figure.subplots()
            panel.draw(axes)
            axes.set_title("")
            if panel.by_row:
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
        self.styles: Styles = styles_in(analysis)
        compared = {row.name: row.variant for row in every if row.compared}
        best = next(iter(compared.values()), None)
        self.reference: Variant | None = compared.get(analysis.table.study.baseline or "", best)

    def every(self) -> dict[str, Panel]:
        """Return the panels that have something to show, by name."""
        first = first_panels(self.analysis, self.styles)
        if not self.shown:
            return first
        analysis, reference = self.analysis, self.reference
        more = _more(analysis)
        spread = f" {SPREAD}" if len(analysis.seeds) > 1 else ""
        found = {"loss": Panel(self.losses, f"Lower is better.{spread} {more}", True)}
        if any("step_time" in row.numbers for row in self.shown):
            found["time"] = Panel(self.times, f"Lower is better. Median of a run. {more}", True)
        if self._recorded("eval_loss"):
            found["curves"] = Panel(self.curves, f"Lower is better. Mean over seeds. {more}")
        if self._recorded("train_loss"):
            batches = "Mean over seeds, of the batches since the point before."
            draw = partial(self.curves, key="train_loss")
            found["training"] = Panel(draw, f"Lower is better. {batches} {more}")
        if reference is not None:
            than = self.styles[reference.name].label
            said = f"{forest_caption(analysis, than)} {more}"
            found["differences"] = Panel(self.differences, said, True)
            if {reference.name} < self._recorded("eval_loss"):
                said = f"Below 0 is better than {than}. Paired by seed. {more}"
                found["curves_minus_reference"] = Panel(self.curves_minus_reference, said)
        said = f"is better than {analysis.baseline}. {parts_caption(analysis)} {more}"
        by_position = sum(bool(of.position) for of in analysis.parts.values())
        if by_position:
            hidden = f"No bars are drawn for more than {MOST_BARS} variants."
            note = hidden if by_position > MOST_BARS else ""
            found["positions"] = Panel(self.positions, f"Below 0 {said} {note}")
        for kind in ("recall", "other"):
            if any(getattr(of, kind) for of in analysis.parts.values()):
                draw = partial(self.on_tokens, kind=kind)
                found[kind] = Panel(draw, f"Left of 0 {said} {RECALL}", True)
        return first | found

    def _recorded(self, curve: str) -> set[str]:
        """Return the variants with points of a curve, which packed runs need not have."""
        return {row.name for row in self.shown if row.variant.curve(curve).steps}

    def _in_rows(self, panels: Mapping[str, Panel], texts: Sequence[str]) -> Iterator[_PanelRow]:
        """Yield rows of at most three panels, and their heights in inches."""
        height = 0.27 * max(len(self.shown), 4) + 0.9
        first = (*first_panels(self.analysis, self.styles),)
        every: list[_PanelRow] = [
            (first, 4.0),
            (("differences", "loss", "time"), height),
            *((texts[start : start + 3], height) for start in range(0, len(texts), 3)),
            (("training", "curves", "curves_minus_reference"), 4.0),
        ]
        if "recall" in panels and "positions" in panels:
            every.append((("recall", "other", "positions"), max(height, 3.2)))
        for names, tall in every:
            if shown := [name for name in names if name in panels]:
                yield shown, tall

    def together(self) -> Figure:
        """Draw every panel and the caption."""
        texts = dict(list(_on_texts(self.analysis).items())[:MOST_TEXTS])
        panels = self.every() | texts
        rows = [*self._in_rows(panels, list(texts))] or [(["nothing"], 1.2)]
        heights = [height for _, height in rows]
        lines = wrap(_caption(self.analysis, self.reference), CAPTION_LETTERS)
        size = (12, sum(heights) + 0.3 + 0.17 * len(lines))
        figure = Figure(figsize=size, layout="constrained")
        figure.suptitle(_title(self.analysis), x=0.01, ha="left", fontsize=11)
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=9.5, color=GREY)
        parts: Any = figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)
        for (names, _), part in zip(rows, parts[:, 0], strict=True):
            by_row = [name for name in names if name in panels and panels[name].by_row]
            wide = "differences" in names
            grid = part.subplots(1, 3, width_ratios=(1.25, 1.1, 0.9) if wide else None)
            for name, axes in zip_longest(names, grid):
                if name not in panels:
                    axes.set_axis_off()
                    continue
                panels[name].draw(axes)
                if name in ("recall", "other"):  # beside each other, under titles
                    axes.set_xlabel("difference (nats/token)")
                if name == "positions":
                    axes.set_ylabel("difference (nats/token)")
                if name in by_row and name not in texts:  # which name their own rows
                    name_rows(axes, self.shown, self.styles)
                    axes.tick_params(axis="y", length=0, labelleft=name == by_row[0])
                    _few_ticks(axes)
        return figure

    def differences(self, axes: Axes) -> None:
        """Draw the differences to the baseline, or to the best variant."""
        assert self.reference is not None, "no panel without a reference"
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
        where = ", different devices" if len(self.analysis.whole.devices) > 1 else ""
        axes.set(title="Time per training step", xlabel=f"time per step (ms){where}")

    def curves(self, axes: Axes, key: Key = "eval_loss") -> None:
        """Draw the validation loss, or the training loss, in training."""
        curves(axes, self.shown, self.styles, key=key)
        title = "Validation loss" if key == "eval_loss" else "Training loss"
        axes.set(title=title, xlabel="training step", ylabel=f"{title.lower()} (nats/token)")

    def positions(self, axes: Axes) -> None:
        """Draw the differences to the baseline by position."""
        positions_minus(axes, self.shown, self.styles, self.analysis.parts)
        than = shortened(self._baseline, 18)
        label = f"loss minus {than} (nats/token)"
        axes.set(title="Difference by position", xlabel="position (from 1)", ylabel=label)

    def on_tokens(self, axes: Axes, kind: str) -> None:
        """Draw the differences to the baseline on "recall" tokens, or on all "other" tokens."""
        found = {name: getattr(of, kind) for name, of in self.analysis.parts.items()}
        pairs = {name: pair for name, pair in found.items() if pair is not None}
        forest(axes, self.shown, self.styles, self.analysis.baseline or "", pairs)
        title = f"Difference on {kind} tokens"
        axes.set(title=title, xlabel=f"{title.lower()} (nats/token)")

    @property
    def _baseline(self) -> str:
        return self.styles[self.analysis.baseline or ""].label

    def curves_minus_reference(self, axes: Axes) -> None:
        """Draw the validation loss minus that of the reference, paired by seed."""
        assert self.reference is not None, "no panel without a reference"
        minus_reference(axes, self.shown, self.styles, self.reference)
        than = shortened(self.styles[self.reference.name].label, 18)
        label = f"loss minus {than} (nats/token)"
        axes.set(title="Difference in training", xlabel="training step", ylabel=label)


def _on_texts(analysis: Analysis) -> dict[str, Panel]:
    """Return a panel of differences for each other text of the study, by the text's name."""

    def panel(text: str, of: Analysis) -> Panel:
        shown, reference = most(rows(of)), of.baseline or ""
        styles = styles_in(of)

        def draw(axes: Axes) -> None:
            forest(axes, shown, styles, reference)
            name_rows(axes, shown, styles, 18)
            axes.locator_params(axis="x", nbins=4)
            axes.set(title=f"On {shortened(text, 24)}", xlabel="difference (nats/token)")

        return Panel(draw, f"Left of 0 {forest_caption(of, reference)}", True)

    return {text: panel(text, of) for text, of in analysis.texts.items() if rows(of)}


def _few_ticks(axes: Axes) -> None:
    if axes.get_xticks().size:
        axes.locator_params(axis="x", nbins=5)


def _title(analysis: Analysis) -> str:
    table = analysis.table
    count, of = len(analysis.order), len(table.variants)
    name = f"{table.study.name}{analysis.scope}"
    if (found := analysis.scaling) is not None:
        every = f"{len(found.families)} families at {len(found.cells)} sizes and lengths"
        name = f"{table.study.name}: {every}; below,{analysis.scope}"
    name += " (not a fair comparison)" if analysis.whole.unfair else ""
    text = f"{name}: {count if count == of else f'{count} of {of}'} variants"
    seeds = len(analysis.seeds)
    if seeds < 2:
        return f"{text}, one seed: no error bars" if seeds else text
    return f"{text}, {seeds} seeds{at_recipe(analysis).replace(' at', ', at')}"


def _caption(analysis: Analysis, reference: Variant | None) -> str:
    """Return what every mark of the picture means."""
    if not rows(analysis):
        return "No run has finished yet."
    panels = first_panels(analysis, styles_in(analysis)).values()
    first = list(dict.fromkeys(panel.caption for panel in panels))
    said, at = first or ["Lower is better in every panel."], analysis.scope if first else ""
    if reference is not None and len(analysis.order) > 1:
        said.append(f"Differences{at}: {forest_caption(analysis, reference.name)}")
    if len(analysis.seeds) > 1:
        said.append(f"Loss: {SPREAD[0].lower()}{SPREAD[1:]}")
    said.append("Time: median of a run.")
    if any(of.recall or of.position for of in analysis.parts.values()):
        said.append(f"By position and on tokens: bars of the seeds alone. {RECALL}")
    said.append("A hue is a family of variants; dark grey is the baseline, light grey a model")
    said.append("without attention. An arrow gives a value beyond the axis.")
    return " ".join([*said, _more(analysis)]).strip()


def _more(analysis: Analysis) -> str:
    """Return a sentence on variants that are not drawn; empty where all are."""
    every, few = len(rows(analysis)), len(most(rows(analysis)))
    return f"The best {few} of {every} variants are shown." if every > few else ""
