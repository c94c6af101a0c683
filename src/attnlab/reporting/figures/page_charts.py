"""The charts of the page, as inline SVG.

All have one width that fits a phone. What a switch on the page chooses between (steps, tokens or
time; linear or logarithmic axes) is drawn in each form, and the page's CSS shows one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from attnlab.analysis import numbers
from attnlab.analysis.analysis import Analysis, Comparison, Front
from attnlab.analysis.costs import measured_points
from attnlab.analysis.lengths import longest, read_at
from attnlab.analysis.parts import octaves, of_run
from attnlab.analysis.sweeps import SweptSetting
from attnlab.analysis.table import Run, Variant
from attnlab.reporting.figures.axes import name_rows
from attnlab.reporting.figures.bench import PANELS, Panel, Point, against_context, of_workload
from attnlab.reporting.figures.by_row import dots, forest, most
from attnlab.reporting.figures.cost import pareto
from attnlab.reporting.figures.curves import TITLES, curve_chart, minus_chart
from attnlab.reporting.figures.loss_against import (
    against_length,
    along_setting,
    mark_training,
    positions,
    positions_minus,
    rates,
)
from attnlab.reporting.figures.styles import Styles, styles_in
from attnlab.reporting.figures.svg import WIDTH, Chart, SvgCharts, samples
from attnlab.reporting.sentences import RECALL, at_recipe, forest_caption, intervals, parts_caption
from attnlab.reporting.tables.rows import Row, rows, split_name, split_of

LONGEST_NAME = 18
MOST_AT_FIRST = 22  # rows of the picture on the first screen
FOREST_WIDTH = 640  # SVG units
MOST_WITH_SEEDS = 30  # variants with a line per seed and logarithmic forms


class Charts:
    """Draws the charts of an analysis; None or empty where it has no data for one."""

    def __init__(self, analysis: Analysis, prefix: str = "") -> None:
        """`prefix` begins the ids of the charts, where a page has several analyses."""
        self.analysis = analysis
        self.rows = rows(analysis)
        self.styles: Styles = styles_in(analysis)
        self.split = split_of(analysis)
        self.svg_charts = SvgCharts(self.styles, prefix)

    def all(self) -> dict[str, Any]:
        """Every chart by the name that the template uses, and what the curves can be against."""
        charts: dict[str, Any] = {
            "loss": self.loss(),
            "forest": self.forest(),
            "curves": self.curves(),
            "positions": self.positions(),
            "recall": self.recall(),
            "lengths": self.lengths(),
            "sweep": self.sweep(),
            "pareto": self.pareto(),
            "rates": self.rates(),
            "bench": self.bench(),
        }
        return {**charts, "samples": samples(self.styles), "against": _against(charts["curves"])}

    def loss(self) -> Chart | None:
        return self._rows_of(
            self.analysis.metric,
            f"{split_name(self.analysis).capitalize()} loss by variant (nats/token)",
            "Small dots: seeds; marker and bar: mean ± standard deviation."
            if self.analysis.judged
            else "One seed: no error bars.",
        )

    def recall(self) -> tuple[Chart, ...]:
        charts = list[Chart | None]()
        for kind, tokens in (("recall", "recall tokens"), ("other", "all other tokens")):
            found = {name: getattr(of, kind) for name, of in self.analysis.parts.items()}
            pairs = {name: pair for name, pair in found.items() if pair}
            if pairs:
                title = f"Difference to {self.analysis.baseline} on {tokens} (nats/token)"
                charts.append(self._differences(title, RECALL, pairs))
            else:
                key, title = f"{self.split}_{kind}_loss", f"Loss on {tokens} (nats/token)"
                charts.append(self._rows_of(key, title, RECALL))
        return tuple(chart for chart in charts if chart is not None)

    def _differences(self, title: str, text: str, pairs: Mapping[str, Comparison]) -> Chart:
        baseline = self.analysis.baseline or ""
        shown = most([row for row in self.rows if row.name in pairs or row.baseline], baseline)
        text = f"{text} {parts_caption(self.analysis)}{self._of_all(shown)}"

        def draw(axes: Axes) -> None:
            forest(axes, shown, self.styles, baseline, pairs)
            name_rows(axes, shown, self.styles, LONGEST_NAME)
            axes.set_xlabel("nats/token")

        svg = self.svg_charts.svg(draw, title, text, (WIDTH, 70 + 25 * max(len(shown), 3)))
        return Chart(title=title, text=text, forms={"": svg})

    def forest(self) -> Chart | None:
        reference = self.reference
        if reference is None or len(self.analysis.order) < 2:
            return None
        compared = [row for row in self.rows if row.compared]
        shown = most(compared, reference.name, MOST_AT_FIRST)
        title = f"Difference to {reference.name}{at_recipe(self.analysis)} (nats/token)"
        text = forest_caption(self.analysis, reference.name) + self._of_all(shown)

        def draw(axes: Axes) -> None:
            forest(axes, shown, self.styles, reference.name)
            name_rows(axes, shown, self.styles, LONGEST_NAME)
            axes.set_xlabel("nats/token")

        rows = max(len(shown), 3)
        wide = self.svg_charts.svg(draw, title, text, (FOREST_WIDTH, 50 + 21 * rows))
        narrow = self.svg_charts.svg(draw, title, text, (WIDTH, 70 + 25 * rows))
        return Chart(title=title, text=text, forms={"wide": wide, "narrow": narrow})

    def curves(self) -> tuple[Chart, ...]:
        shown = most([row for row in self.rows if row.variant.curve("eval_loss").steps])
        if not shown:
            return ()
        text = f"Mean over seeds, or a line per seed.{self._of_all(shown)}"
        times = any(row.variant.curve("train_seconds").steps for row in shown)
        if times and len(self.analysis.whole.devices) > 1:
            text += " Times were measured on different devices and are not comparable."
        each = len(self.rows) <= MOST_WITH_SEEDS
        efficiency = self.analysis.efficiency
        target = {"eval_loss": efficiency.target} if efficiency else {}
        charts = [
            curve_chart(
                self.svg_charts, shown, self.styles, key, text, seeds=each, target=target.get(key)
            )
            for key in TITLES
        ]
        reference = self.reference
        if reference is not None and len(shown) > 1 and reference.curve("eval_loss").steps:
            charts.append(minus_chart(self.svg_charts, shown, self.styles, reference, each))
        return tuple(chart for chart in charts if chart is not None)

    def pareto(self) -> tuple[Chart, ...]:
        charts: list[Chart] = []
        for front in self.analysis.fronts:
            if not front.points:
                continue
            title = f"Loss against {front.label}{at_recipe(self.analysis)}"
            on_front = ", ".join(front.front)
            text = f"Pareto front: {on_front}." if on_front else "No front without a verdict."
            if self.analysis.to_baseline and self.analysis.judged:
                interval = f"{numbers.confidence(self.analysis.level)} interval of the difference"
                text += f" Bars: {interval} to {self.analysis.baseline}."

            def draw(axes: Axes, front: Front = front) -> None:
                pareto(axes, self.rows, self.styles, front)

            charts.append(self.svg_charts.chart(draw, title, text))
        return tuple(charts)

    def rates(self) -> Chart | None:
        names = {row.name for row in most(self.rows)}
        tuned = {name: curve for name, curve in self.analysis.rates.items() if name in names}
        if not tuned:
            return None
        title = "Validation loss against the peak learning rate"
        text = "Ring: the chosen rate. Cross: training diverged at this rate."
        return self.svg_charts.chart(lambda axes: rates(axes, tuned, self.styles), title, text)

    def positions(self) -> tuple[Chart, ...]:
        def read(run: Run) -> dict[int, float]:
            return of_run(run, self.split)

        shown = most([row for row in self.rows if any(map(read, row.variant.finished))])
        if not shown:
            return ()
        title = "Loss by position in the sequence (nats/token)"
        text = (
            "Mean ± standard deviation over seeds, in ranges of positions that double. Where the "
            f"loss falls, more context helps.{self._of_all(shown)}"
        )

        def draw(axes: Axes) -> None:
            positions(axes, shown, self.styles, read)
            axes.set_xlabel("position (from 1)")

        charts = [self.svg_charts.chart(draw, title, text)]
        parts = self.analysis.parts
        if any(of.position for of in parts.values()):

            def minus(axes: Axes) -> None:
                positions_minus(axes, shown, self.styles, parts)
                axes.set_xlabel("position (from 1)")

            title = f"Loss by position minus {self.analysis.baseline} (nats/token)"
            text = f"Below 0 is better. {parts_caption(self.analysis)}{self._of_all(shown)}"
            charts.append(self.svg_charts.chart(minus, title, text))
        return tuple(charts)

    def lengths(self) -> tuple[Chart, ...]:
        found = self.analysis.lengths
        shown = most([row for row in self.rows if row.name in found])
        if not shown:
            return ()
        length = longest(found)

        def against(axes: Axes) -> None:
            against_length(axes, shown, self.styles, found)
            axes.set_xlabel("window length (tokens)")

        def at_longest(axes: Axes) -> None:
            def read(run: Run) -> dict[int, float]:
                return octaves(read_at(run, length, "loss_by_position"), length)

            positions(axes, shown, self.styles, read)
            mark_training(axes, found)
            axes.set_xlabel("position (from 1)")

        return (
            self.svg_charts.chart(
                against,
                "Validation loss against the length of the window (nats/token)",
                "Mean ± standard deviation over seeds; dashed: the training length. More context "
                "lowers the loss of a model that can use it.",
            ),
            self.svg_charts.chart(
                at_longest,
                f"Loss by position in windows of {numbers.tokens(length)} tokens (nats/token)",
                "Mean ± standard deviation over seeds; dashed: the training length. Beyond it, a "
                "rising loss shows a limit.",
            ),
        )

    def sweep(self) -> tuple[Chart, ...]:
        return tuple(map(self._along, self.analysis.swept))

    def _along(self, setting: SweptSetting) -> Chart:
        def draw(axes: Axes) -> None:
            along_setting(axes, setting, self.styles)
            axes.set_xlabel(setting.path)

        return self.svg_charts.chart(
            draw,
            f"Difference to {self.analysis.baseline} against {setting.path} (nats/token)",
            f"Lower is better. Bars: {intervals(self.analysis)}.",
        )

    def bench(self) -> tuple[Chart, ...]:
        points, charts = measured_points(self.analysis.table.path), list[Chart]()
        for panel in PANELS:
            batch, found = of_workload(points, panel)
            if not found:
                continue

            def draw(axes: Axes, found: list[Point] = found, panel: Panel = panel) -> None:
                against_context(axes, found, self.styles, panel)

            text = f"Batch {batch}; lower is better. A line ends where memory does."
            charts.append(self.svg_charts.chart(draw, f"{panel.title} against context", text))
        return tuple(charts)

    def _of_all(self, shown: Sequence[Row]) -> str:
        """Return a sentence on the variants that are not drawn; empty where all are."""
        if len(shown) == len(self.rows) or len(shown) < MOST_AT_FIRST:
            return ""
        return f" The best {len(shown)} of {len(self.rows)} variants; the tables have all."

    @property
    def reference(self) -> Variant | None:
        """The baseline if it is compared, else the best variant."""
        by_name = {row.name: row.variant for row in self.rows if row.compared}
        return by_name.get(
            self.analysis.table.study.baseline or "", next(iter(by_name.values()), None)
        )

    def _rows_of(self, key: str, title: str, text: str) -> Chart | None:
        shown = most([row for row in self.rows if row.variant.by_seed(key)])
        if not shown:
            return None

        def draw(axes: Axes) -> None:
            dots(axes, shown, self.styles, key)
            name_rows(axes, shown, self.styles, LONGEST_NAME)
            axes.set_xlabel("nats/token")
            axes.locator_params(axis="x", nbins=5)

        svg = self.svg_charts.svg(draw, title, text, (WIDTH, 70 + 25 * max(len(shown), 3)))
        return Chart(title=title, text=text, forms={"": svg})


def _against(curves: Sequence[Chart]) -> dict[str, str]:
    """The choices of the horizontal axis of the curves, with their labels."""
    drawn = {form.split()[0] for chart in curves for form in chart.forms}
    steps = "steps" if "tokens" in drawn else "steps and tokens"
    labels = {"step": steps, "tokens": "tokens", "time": "time"}
    return {against: label for against, label in labels.items() if against in drawn}
