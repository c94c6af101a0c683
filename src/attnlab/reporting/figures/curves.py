"""Learning curves: a loss against steps, tokens or time, and minus a reference."""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from attnlab.analysis.curves import Curve
from attnlab.analysis.statistics.paired import Estimate
from attnlab.analysis.table import Variant
from attnlab.reporting.figures.axes import (
    ZERO,
    Extent,
    name_ends,
    scaled,
    show_message,
    tokens_on_top,
    tokens_per_step,
    window,
)
from attnlab.reporting.figures.styles import GREY, Style, Styles, mark, scale
from attnlab.reporting.figures.svg import Chart, SvgCharts
from attnlab.reporting.tables.rows import Row

Against = Literal["step", "tokens", "train_seconds"]
Key = Literal["eval_loss", "train_loss"]
TITLES: Mapping[Key, str] = {
    "eval_loss": "Validation loss in training",
    "train_loss": "Training loss",
}
MOST_BANDS = 6  # of standard deviations; more hide each other
MOST_POINTS = 40  # of a line; more are thinned, the last always stays


def curves(
    axes: Axes,
    rows: Sequence[Row],
    styles: Styles,
    against: Against = "step",
    *,
    key: Key = "eval_loss",
    seeds: bool = False,
) -> None:
    """Draw means over seeds of a loss. The first fifth may lie outside the panel.

    With `seeds`, a line per seed and, for few variants, a band of one standard deviation are added,
    in the classes "seed" and "mean".
    """
    found = {row.name: row.variant.curve(key) for row in rows}
    last = _last(found)
    if not last:
        show_message(axes, "not measured yet")
        return
    seen: list[float] = []
    for row in rows:
        curve, x = found[row.name], _x(row, against, key)
        _line(axes, curve, row.name, styles[row.name], x)
        if seeds:
            _each_seed(axes, curve, row.name, styles[row.name], x, band_too=len(rows) <= MOST_BANDS)
        seen += _from_step(curve, last / 5)
    axes.set_ylim(*window([Extent(min(seen), max(seen))]))
    name_ends(axes, _ends(found, {row.name: _x(row, against, key) for row in rows}), styles)


def minus_reference(
    axes: Axes, rows: Sequence[Row], styles: Styles, reference: Variant, *, seeds: bool = False
) -> None:
    """Draw the same curves minus those of another variant, paired by seed."""
    found = {row.name: row.variant.curve_minus(reference, "eval_loss") for row in rows}
    last = _last(found)
    if not last:
        show_message(axes, "no validation yet")
        return
    late: list[Extent] = []
    for row in rows:
        curve = found[row.name]
        x = {step: float(step) for step in curve.steps}
        _line(axes, curve, row.name, styles[row.name], x, minus=reference.name)
        if seeds:
            _each_seed(axes, curve, row.name, styles[row.name], x, band_too=len(rows) <= MOST_BANDS)
        values = _from_step(curve, last / 2)
        if values:
            late.append(Extent(min(values), max(values)))
    if late:
        axes.set_ylim(*window(late, ZERO))
        steps = {name: {step: float(step) for step in curve.steps} for name, curve in found.items()}
        name_ends(axes, _ends(found, steps), styles)


def curve_chart(
    charts: SvgCharts,
    rows: Sequence[Row],
    styles: Styles,
    key: Key,
    text: str,
    *,
    seeds: bool,
    target: float | None = None,
) -> Chart | None:
    """Return a chart of a loss with a form per axis and, with `seeds`, per scale; None: unknown.

    `target` is a loss to which a dashed line is drawn.
    """
    shown = [row for row in rows if row.variant.curve(key).steps]
    if not shown:
        return None
    title = f"{TITLES[key]} (nats/token)"
    if key == "train_loss":
        text = f"{text} Of the batches between two points, with the dropout of training."
    if target is not None:
        text = f"{text} Dashed: the target loss of the table below."
    unlike = len(set(tokens_per_step(shown).values())) > 1  # tokens are no second scale of steps
    axis: dict[str, tuple[Against, str]] = {"step": ("step", "training step")}
    axis |= {"tokens": ("tokens", "tokens")} if unlike else {}
    if any(row.variant.curve("train_seconds").steps for row in shown):
        axis["time"] = "train_seconds", "training time (s)"
    forms = dict[str, str]()
    for against, kind in product(axis, ("linear", "log") if seeds else ("linear",)):

        def draw(axes: Axes, against: str = against, kind: str = kind) -> None:
            of, label = axis[against]
            curves(axes, shown, styles, of, key=key, seeds=seeds)
            scaled(axes, kind, both=True)
            if target is not None:
                axes.axhline(target, color=GREY, lw=0.9, ls=(0, (3, 3)), zorder=1)
            axes.set_xlabel(label)
            if against == "step":
                tokens_on_top(axes, shown)
            elif against == "tokens":
                axes.xaxis.set_major_formatter(EngFormatter(sep=""))

        forms[f"{against} {kind}"] = charts.svg(draw, title, text)
    return Chart(title=title, text=text, forms=forms)


def minus_chart(
    charts: SvgCharts, rows: Sequence[Row], styles: Styles, reference: Variant, seeds: bool
) -> Chart:
    """Return a chart of the validation loss minus that of a reference."""
    title = f"Validation loss in training minus {reference.name} (nats/token)"
    text = "Paired by seed, which removes the noise that variants share. Below 0 is better."
    forms = dict[str, str]()
    for kind in ("linear", "log") if seeds else ("linear",):

        def draw(axes: Axes, kind: str = kind) -> None:
            minus_reference(axes, rows, styles, reference, seeds=seeds)
            scaled(axes, kind, both=False)
            axes.set_xlabel("training step")

        forms[kind] = charts.svg(draw, title, text)
    return Chart(title=title, text=text, forms=forms)


def _line(
    axes: Axes, curve: Curve, name: str, style: Style, x: Mapping[int, float], minus: str = ""
) -> None:
    points = [(step, y) for step, y in zip(curve.steps, curve.mean, strict=True) if step in x]
    points = _thinned([(step, y) for step, y in points if math.isfinite(y)])
    # broken lines over solid ones, so that two equal curves are both visible
    (line,) = axes.plot(
        [x[step] for step, _ in points], [y for _, y in points],
        color=style.colour, ls=style.line, marker=style.marker, ms=5 * scale(), mec="white",
        mew=0.5 * scale(), lw=1.6 * scale(),
        label=name, zorder=2 if style.line == "-" else 2.5,
        markevery=max(1, len(points) // 12) if len(points) > MOST_POINTS / 2 else 1,
    )  # fmt: skip
    shown = points[:: max(1, len(points) // 12) if len(points) > MOST_POINTS / 2 else 1]
    label = f"{name} minus {minus}" if minus else name
    sign = "+" if minus else ""
    spread = {step: _spread(curve, step) for step, _ in shown}
    mark(
        line, style.group, "mean",
        tips=[f"{label}, step {step:,}: {y:{sign}.4f}{spread[step]}" for step, y in shown],
    )  # fmt: skip


def _each_seed(
    axes: Axes,
    curve: Curve,
    name: str,
    style: Style,
    x: Mapping[int, float],
    *,
    band_too: bool,
) -> None:
    lines = {seed: dict(zip(*points, strict=True)) for seed, points in curve.by_seed.items()}
    for seed, values in lines.items():
        points = _thinned([(s, y) for s, y in values.items() if s in x and math.isfinite(y)])
        (line,) = axes.plot(
            [x[step] for step, _ in points], [y for _, y in points],
            color=style.colour, ls=style.line, lw=0.9, alpha=0.8, zorder=1.9,
        )  # fmt: skip
        mark(line, style.group, "seed", tips=[f"{name}, seed {seed}"])
    if len(lines) < 2 or not band_too:
        return
    band: list[tuple[float, float, float]] = []
    for step in (step for step, _ in _thinned([(s, 0.0) for s in curve.steps if s in x])):
        e = Estimate.of([values[step] for values in lines.values()])
        if e is not None and e.spread is not None and math.isfinite(e.spread):
            band.append((x[step], e.mean - e.spread, e.mean + e.spread))
    if band:
        area = axes.fill_between(
            [b[0] for b in band], [b[1] for b in band], [b[2] for b in band],
            color=style.colour, alpha=0.16, lw=0, zorder=1.5,
        )  # fmt: skip
        mark(area, style.group, "mean")


def _spread(curve: Curve, step: int) -> str:
    values = [dict(zip(*points, strict=True)).get(step) for points in curve.by_seed.values()]
    e = Estimate.of([value for value in values if value is not None])
    return "" if e is None or e.spread is None else f" ± {e.spread:.4f}"


def _x(row: Row, against: Against, key: Key) -> dict[int, float]:
    """Return the position of each step on the axis."""
    if against == "train_seconds":
        times = row.variant.curve("train_seconds")
        return dict(zip(times.steps, times.mean, strict=True))
    curve = row.variant.curve(key)
    per_step = 1.0 if against == "step" else tokens_per_step([row]).get(row.name, math.nan)
    return {step: step * per_step for points in curve.by_seed.values() for step in points[0]}


def _ends(
    found: Mapping[str, Curve], x: Mapping[str, Mapping[int, float]]
) -> dict[str, tuple[float, float]]:
    """Return the last point of each curve."""
    points = {
        name: [
            (x[name][step], y)
            for step, y in zip(curve.steps, curve.mean, strict=True)
            if step in x[name] and math.isfinite(y)
        ]
        for name, curve in found.items()
    }
    return {name: of[-1] for name, of in points.items() if of}


def _last(found: Mapping[str, Curve]) -> int:
    return max((curve.steps[-1] for curve in found.values() if curve.steps), default=0)


def _from_step(curve: Curve, first: float) -> list[float]:
    return [
        value
        for step, value in zip(curve.steps, curve.mean, strict=True)
        if step >= first and math.isfinite(value)
    ]


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    every = -(-len(points) // MOST_POINTS) or 1
    return points[::-1][::every][::-1]
