"""The profile of mechanisms on tasks: a table per study, and accuracy against the decode state.

In a study's folder: profile.png, a figure with a panel per task, and profile.csv with a row per
task, mechanism, length and group of answers.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

from attnlab.analysis import numbers
from attnlab.analysis.analysis import Analysis
from attnlab.analysis.profile import WIDE, Accuracy, OnTask, harness_of, profile_of
from attnlab.config.problem import with_types
from attnlab.reporting.tables.rows import split_name, split_of
from attnlab.reporting.tables.text_tables import TextTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import Console, ConsoleOptions, RenderResult

    from attnlab.reporting.figures.styles import Styles

NOTE = (
    "Accuracy: right answers / answers, of sequences that no training split has; mean over all "
    "finished seeds with the 95 % interval of each, one at a time: a t interval over seeds, and "
    "never narrower than Wilson's over the answers of one seed. In place of an interval wider than "
    f"{WIDE:g}, which says little, each seed is shown. Guessing: a constant answer."
)
COLUMNS = (
    *("task", "mechanism", "variant", "split", "length", "answers"),
    *("accuracy", "low", "high", "seeds", "guessing", "state_bytes"),
)
GUESSING = "guessing"
PANEL = 3.4  # inches
MOST_BESIDE = 4  # panels


@with_types
def profile(analysis: Analysis) -> tuple[OnTask, ...]:
    """Return what each mechanism does on each task; empty for a study of texts."""
    tables = {analysis.text: analysis.table, **{n: of.table for n, of in analysis.texts.items()}}
    return profile_of(tables, split_of(analysis))


def profile_tables(analysis: Analysis) -> tuple[TextTable, ...]:
    """Return the accuracy of each mechanism on each task, then its parts; empty for texts."""
    found = profile(analysis)
    if not found:
        return ()
    return (_totals(found, analysis), *_parts(found))


def harness_tables(analysis: Analysis) -> tuple[TextTable, ...]:
    """Return the table of results of lm-evaluation-harness; empty where none is recorded."""
    found, outdated = harness_of(analysis.whole)
    left_out = f" Left out, since the runs were trained anew: {'; '.join(outdated)}."
    if not found and not outdated:
        return ()
    return (
        TextTable(
            caption="Tasks of lm-evaluation-harness (attnlab eval)",
            heading=("variant", "task", "measured", "metric", "mean", "standard error", "runs"),
            lines=[
                (
                    *(of.variant, of.task, of.measured, of.metric, numbers.number(of.mean)),
                    numbers.UNKNOWN
                    if of.standard_error is None
                    else f"{of.standard_error:.4f} ({of.error_over})",
                    str(of.runs),
                )
                for of in found
            ],
            n_text_columns=4,
            note="Mean over runs. Standard error (seeds): standard deviation over runs / "
            "sqrt(runs). Standard error (questions): of one run, the harness's own, for the sample "
            f"of questions; it holds no error of the seed.{left_out if outdated else ''}",
        ),
    )


class ProfileTable:
    """A rich renderable of the accuracy of each mechanism on each task."""

    def __init__(self, analysis: Analysis) -> None:
        self.tables = profile_tables(analysis)[:1]

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.table import Table
        from rich.text import Text

        del console, options
        for of in self.tables:
            yield Text(of.caption, style="bold")
            table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
            for place, heading in enumerate(of.heading):
                table.add_column(Text(heading), justify="right" if place else "left")
            for line in of.lines:
                table.add_row(*map(Text, line), style="dim" if line[0] == GUESSING else "")
            yield table
            yield Text(of.note, style="dim")


def profile_json(analysis: Analysis) -> list[dict[str, Any]]:
    """Return the rows of profile.csv by column, as JSON values."""
    return [dict(zip(COLUMNS, line, strict=True)) for line in _lines(analysis)]


def profile_csv(analysis: Analysis) -> str:
    """Return profile.csv; lengths in tokens, the state in bytes."""
    file = io.StringIO()
    write = csv.writer(file, lineterminator="\n").writerow
    write(COLUMNS)
    for line in _lines(analysis):
        write(["" if value is None else value for value in line])
    return file.getvalue()


def _lines(analysis: Analysis) -> Iterator[list[Any]]:
    for of in profile(analysis):
        parts: list[tuple[str, int, str, Accuracy]] = [
            (split_name(analysis), of.length, "all", of.accuracy),
            *(("validation", length, "all", each) for length, each in of.lengths.items()),
            *(("validation", *where, each) for where, each in of.parts.items()),
        ]
        for split, length, group, each in parts:
            place = [of.task, of.mechanism, of.variant, split, length, group]
            known = [each.mean, each.low, each.high, len(each.by_seed), of.chance, of.state_bytes]
            yield [*place, *known]


def profile_png(analysis: Analysis) -> bytes:
    """Return the figure as a PNG file: a panel per task."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from attnlab.reporting.figures.styles import GREY, families_of, matplotlib_style, png, styles_of

    found = profile(analysis)
    styles = styles_of(families_of(analysis.table), analysis.table.study.labels)
    tasks = tasks_of(found)
    shared = styles_on(found, styles)
    beside = min(MOST_BESIDE, len(tasks))
    down = -(-len(tasks) // beside)
    with matplotlib_style():
        size = (max(2, beside) * PANEL, 0.9 + down * PANEL)
        figure = Figure(figsize=size, layout="constrained")
        grid: Any = figure.subplots(down, beside, squeeze=False, sharey=True)
        for axes, (task, of_task) in zip(grid.flat, tasks.items(), strict=False):
            axes.set_title(task)
            against_state(axes, of_task, shared)
        for axes in grid.flat[len(tasks) :]:
            axes.set_axis_off()
        figure.legend(
            handles=[
                Line2D([], [], color=style.colour, marker=style.marker, ls="", label=style.label)
                for style in {style.label: style for style in shared.values()}.values()
            ],
            loc="outside right upper",
            frameon=False,
        )
        caption = fill(CAPTION, round(17 * size[0]))
        figure.supxlabel(caption, x=0.01, ha="left", fontsize=8, color=GREY)
        return png(figure)


CAPTION = (
    "Filled: at the length of training. Hollow: at the longest length. Bars: 95 % interval of "
    "each, over seeds; dashes in their place: seeds. Dashed: guessing. Upper left is better."
)


def tasks_of(found: Sequence[OnTask]) -> dict[str, list[OnTask]]:
    """Return the mechanisms of each task, by task, in order."""
    tasks = dict[str, list[OnTask]]()
    for of in found:
        tasks.setdefault(of.task, []).append(of)
    return tasks


def styles_on(found: Sequence[OnTask], styles: "Styles") -> "Styles":
    """Return the style of each variant: that of its mechanism on the first task."""
    first = dict[str, str]()
    for of in found:
        if of.variant in styles:
            first.setdefault(of.mechanism, of.variant)
    fallback = next(iter(styles.values()))
    return {
        of.variant: styles.get(first.get(of.mechanism, ""), fallback)._replace(label=of.mechanism)
        for of in found
    }


def against_state(
    axes: "Axes", found: Sequence[OnTask], styles: "Styles", *, named: bool = False
) -> None:
    """Draw the accuracy of each mechanism on one task against its decode state.

    The points are `named` at the right where no legend does.
    """
    from attnlab.reporting.figures.axes import name_ends, show_message
    from attnlab.reporting.figures.cost import cost_axis
    from attnlab.reporting.figures.styles import GREY, mark

    known = [(of, of.state_bytes) for of in found if of.state_bytes is not None]
    if not known:
        show_message(axes, "no mechanism states its decode state")
        return
    axes.set_ylim(-0.04, 1.06)
    axes.set_ylabel("accuracy of answers")
    cost_axis(axes, [state for _, state in known], "decode state", "bytes")
    for of, _ in known[:1]:
        if of.chance is not None:
            axes.axhline(of.chance, color=GREY, lw=1, ls=(0, (4, 3)), zorder=1)
    for of, state in known:
        style = styles[of.variant]
        longest = max(of.lengths, default=of.length)
        places: list[tuple[Accuracy, str]] = [(of.accuracy, style.colour)]
        if longest > of.length:
            places.append((of.lengths[longest], "none"))
        for accuracy, face in places:
            if accuracy.low is not None and accuracy.high is not None:
                ends = accuracy.by_seed if accuracy.wide else (accuracy.low, accuracy.high)
                line = "_" if accuracy.wide else "-"
                (bar,) = axes.plot([state] * len(ends), ends, line, color=style.colour)
                mark(bar, style.group)
            (point,) = axes.plot(
                [state], [accuracy.mean], style.marker, ms=6, mec=style.colour, mfc=face, mew=1.1
            )
            mark(point, style.group, tips=[f"{of.mechanism}: {accuracy}"])
    if named:
        name_ends(axes, {of.variant: (state, of.accuracy.mean) for of, state in known}, styles)


def _totals(found: Sequence[OnTask], analysis: Analysis) -> TextTable:
    tasks = tasks_of(found)
    by_place = {(of.task, of.mechanism): of for of in found}
    lines = list[tuple[str, ...]]()
    for mechanism in dict.fromkeys(of.mechanism for of in found):
        here = [by_place.get((task, mechanism)) for task in tasks]
        states = [of.state_bytes for of in here if of is not None and of.state_bytes is not None]
        state = " to ".join(dict.fromkeys(numbers.size(end) for end in _ends(states)))
        cells = (numbers.UNKNOWN if of is None else _marked(str(of.accuracy), of) for of in here)
        lines.append((mechanism, *cells, state or numbers.UNKNOWN))
    guessing = (_chance(of_task) for of_task in tasks.values())
    return TextTable(
        caption=f"Accuracy of answers on the {split_name(analysis)} split, at the training length",
        heading=("mechanism", *tasks, "decode state"),
        lines=[*lines, (GUESSING, *guessing, numbers.UNKNOWN)],
        note=" ".join(filter(None, (NOTE, _lost(found)))),
    )


def _marked(text: str, of: OnTask) -> str:
    """Return a text with a mark if it is about some seeds of a mechanism alone."""
    return f"{text} *" if of.lost else text


def _lost(found: Sequence[OnTask]) -> str:
    """Return what the mark means; empty if nothing is marked."""
    lost = [f"{of.mechanism} on {of.task}: {of.lost}" for of in found if of.lost]
    return f"*: of the finished seeds alone; {'; '.join(lost)}." if lost else ""


def _chance(found: Sequence[OnTask]) -> str:
    chance = next((of.chance for of in found if of.chance is not None), None)
    return numbers.UNKNOWN if chance is None else f"{chance:.3f}"


def _ends(states: Sequence[float]) -> Sequence[float]:
    return [min(states), max(states)] if states else []


def _parts(found: Sequence[OnTask]) -> Iterator[TextTable]:
    """Yield a table per task that has several lengths or groups of answers."""
    for task, of_task in tasks_of(found).items():
        columns: Mapping[tuple[int, str], None] = dict.fromkeys(
            where for of in of_task for where in of.parts
        )
        if len(columns) < 2:
            continue
        alone = len({group for _, group in columns}) == 1
        lines = [
            (
                f"{numbers.tokens(length)} tokens" + ("" if alone else f", {group}"),
                *(str(of.parts.get((length, group), numbers.UNKNOWN)) for of in of_task),
            )
            for length, group in columns
        ]
        yield TextTable(
            caption=f"{task}: accuracy on the validation split by length and group of answers",
            heading=("answers", *(_marked(of.mechanism, of) for of in of_task)),
            lines=lines,
            note=_lost(of_task),
        )
