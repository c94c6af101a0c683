"""The ranking and the verdict in the terminal and in a notebook.

Columns that do not fit are dropped and named. In a terminal, long names of variants are folded; in
a file or a pipe, lines of the table are whole (print with `crop=False`).
"""

import base64
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from markupsafe import Markup
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from attnlab.analysis.analysis import Analysis
from attnlab.config import visible
from attnlab.reporting import sentences
from attnlab.reporting.tables.columns import VARIANT, Column, costs, known, ranking
from attnlab.reporting.tables.rows import Row, rows

WIDE = 10_000  # more characters than any line of a table has
NAME_WIDTH = 24  # characters; where columns would be dropped, longer names are folded


class Droppable(Protocol):
    """A column that a narrow terminal may drop."""

    @property
    def title(self) -> str: ...

    @property
    def priority(self) -> int: ...  # the largest is dropped first, 0 never


C = TypeVar("C", bound=Droppable)


class TerminalReport:
    """A rich renderable of a study: `console.print(TerminalReport(analysis))`."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        analysis, shown = self.analysis, rows(self.analysis)
        columns = _columns(analysis, shown)
        dropped = drop_to_fit(
            columns, lambda few, most: _table(shown, few, most), console, options.max_width
        )
        if shown:
            table, wide = _table(shown, columns), options.update(width=WIDE)
            whole = max(options.max_width, Measurement.get(console, wide, table).maximum)
            yield from console.render(
                table, options if console.is_terminal else options.update(width=whole)
            )
            for line in _notes(analysis, columns, dropped):
                yield _indented(line, "dim")
            if devices := sentences.devices(analysis.whole):
                yield _indented(devices, "yellow")
            yield Text()
        yield from _verdict(analysis)
        yield Text(sentences.how_sure(analysis), style="dim")
        left_out = [f"{names}: {why}" for names, why in sentences.left_out(analysis).items()]
        missing = [*sentences.alarms(analysis.whole), *sentences.unfinished(analysis)]
        for title, lines in (("Left out of the comparison", left_out), ("Not finished", missing)):
            if lines:
                yield Text()
                yield Text(title, style="bold")
            for line in lines:
                yield _indented(line, "red" if ": diverged" in line or ": failed" in line else "")


def drop_to_fit(
    columns: list[C],
    table_of: Callable[[Sequence[C], int | None], RichTable],
    console: Console,
    width: int,
) -> list[str]:
    """Drop columns of the highest priority until a table has the width; return their titles.

    `table_of` makes the table of some columns, with names of variants of at most so many characters
    per line. Columns of priority 0 stay.
    """
    dropped = list[str]()
    wide = console.options.update(width=WIDE)
    while Measurement.get(console, wide, table_of(columns, NAME_WIDTH)).maximum > width:
        least = max(reversed(columns), key=lambda column: column.priority)
        if not least.priority:
            break
        columns.remove(least)
        dropped.append(least.title)
    return dropped


def for_notebook(analysis: Analysis) -> str:
    """Return HTML without scripts: the headline, the ranking, its notes and the figure."""
    from attnlab.reporting.figures.comparison import comparison  # matplotlib takes a second

    shown = rows(analysis)
    columns = _columns(analysis, shown)
    first, second = analysis.headline
    heads = (Markup("<th>{}</th>").format(column.heading) for column in columns)
    lines = [Markup("").join(heads)]
    for row in shown:
        cells = (Markup("<td>{}</td>").format(column.text(row)) for column in columns)
        lines.append(Markup("").join(cells))
    table = Markup("").join(Markup("<tr>{}</tr>").format(line) for line in lines)
    parts = [
        *(
            Markup("<p><strong>{}</strong></p>").format(line)
            for line in sentences.unfair(analysis.whole)
        ),
        Markup("<p><strong>{}</strong></p>").format(first),
        *(Markup("<p>{}</p>").format(line) for line in second.splitlines()),
        Markup("<table>{}</table>").format(table) if shown else "",
        *(
            Markup("<p><small>{}</small></p>").format(line)
            for line in _notes(analysis, columns, [])
        ),
    ]
    if shown:
        picture = base64.b64encode(comparison(analysis)[0]).decode()
        source = f"data:image/png;base64,{picture}"
        parts.append(Markup('<img src="{}" alt="{}" width="900">').format(source, first))
    return str(Markup("\n").join(parts))


def _verdict(analysis: Analysis) -> RenderResult:
    unfair = sentences.unfair(analysis.whole)
    if unfair:
        yield Text(unfair[0], style="bold red")
        yield from (_indented(line, "red") for line in unfair[1:])
    first, second = analysis.headline
    yield Text(first, style="bold")
    if second:
        yield Text(second)


def _columns(analysis: Analysis, shown: Sequence[Row]) -> list[Column]:
    columns = known([*ranking(analysis), *costs(shown)], shown)
    if all(row.seeds == f"{len(row.variant.runs)}/{len(row.variant.runs)}" for row in shown):
        columns = [column for column in columns if column.title != "seeds"]
    return columns


def _table(shown: Sequence[Row], columns: Sequence[Column], most: int | None = None) -> RichTable:
    table = RichTable(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for column in columns:
        heading = f"{column.title}\n({column.unit})" if column.unit else column.title
        named = column is VARIANT  # the one column that may be narrower than its cells
        table.add_column(
            Text(heading),
            justify="right" if column.value else "left",
            no_wrap=not named,
            overflow="fold",
            max_width=most if named else None,
        )
    for row in shown:
        style = "dim" if row.left_out else "bold" if row.place == 1 else ""
        table.add_row(*(Text(visible(column.text(row))) for column in columns), style=style)
    return table


def _notes(analysis: Analysis, columns: Sequence[Column], dropped: Sequence[str]) -> list[str]:
    several = len(analysis.seeds) > 1
    notes = ["loss: mean ± standard deviation over seeds"] if several else list[str]()
    for column in columns:
        if column.title.startswith("Δ"):
            notes.append(f"{column.title}: {column.about}")
    if any(column.title == "vs baseline" for column in columns):
        notes.append("n.s.: not distinguishable")
    if analysis.judged:
        notes.append("letters: variants that share one are not distinguishable")
    lines = ["; ".join(notes)] if notes else []
    return lines + ([f"not shown at this width: {', '.join(dropped)}"] if dropped else [])


def _indented(text: str, style: str) -> Padding:
    return Padding(Text(text, style=style), (0, 0, 0, 2))
