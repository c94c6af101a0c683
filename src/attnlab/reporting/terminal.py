"""The ranking and the verdict in the terminal. What does not fit is left out, and said to be."""

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from attnlab.analysis.analysis import Analysis
from attnlab.reporting import sentences
from attnlab.reporting.tables.columns import Column, costs, known, ranking
from attnlab.reporting.tables.rows import Row, rows


class TerminalReport:
    """A rich renderable of a study: `console.print(TerminalReport(analysis))`."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        analysis, shown = self.analysis, rows(self.analysis)
        columns, left_out = _columns(analysis, shown), list[str]()
        while _width(console, options, _table(shown, columns)) > options.max_width:
            least = max(columns, key=lambda column: column.expendable)
            if not least.expendable:
                break
            columns.remove(least)
            left_out.append(least.title)
        if shown:
            yield _table(shown, columns)
            if left_out:
                yield _indented(f"too narrow for: {', '.join(left_out)}", "dim")
            yield _indented(_legend(analysis, columns), "dim")
            if sentences.devices(analysis.table):
                yield _indented(sentences.devices(analysis.table), "yellow")
            yield Text()
        yield from _verdict(analysis)
        yield Text(f"How sure? {sentences.how_sure(analysis)}", style="dim")
        left = [f"{name}: {why}" for name, why in analysis.left_out.items()]
        missing = [*sentences.alarms(analysis.table), *sentences.unfinished(analysis.table)]
        for title, lines in (("Left out of the comparison", left), ("Not finished", missing)):
            if lines:
                yield Text()
                yield Text(title, style="bold")
            for line in lines:
                yield _indented(line, "red" if ": diverged" in line or ": failed" in line else "")


def _verdict(analysis: Analysis) -> RenderResult:
    unfair = sentences.unfair(analysis.table)
    if unfair:
        yield Text(unfair[0], style="bold red")
        yield from (_indented(line, "red") for line in unfair[1:])
    first, second = analysis.headline
    yield Text(first, style="bold")
    if second:
        yield Text(second)


def _columns(analysis: Analysis, shown: tuple[Row, ...]) -> list[Column]:
    quality = ranking(analysis)
    dull = {"which is"}
    if all(len(row.variant.finished) == len(row.variant.runs) for row in shown):
        dull.add("seeds")
    return [column for column in known([*quality, *costs()], shown) if column.title not in dull]


def _table(shown: tuple[Row, ...], columns: list[Column]) -> RichTable:
    grid = RichTable(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(
            Text(column.title), justify="right" if column.value else "left", no_wrap=True
        )
    for row in shown:
        style = "dim" if row.left_out else "bold" if row.place == 1 else ""
        grid.add_row(*(Text(column.text(row)) for column in columns), style=style)
    return grid


def _width(console: Console, options: ConsoleOptions, grid: RichTable) -> int:
    return Measurement.get(console, options.update(width=1000), grid).maximum


def _legend(analysis: Analysis, columns: list[Column]) -> str:
    loss = next(c for c in columns if c.title.endswith(" loss") and c.title != "val loss")
    said = [f"{loss.title} in {loss.about}"]
    said += [f"{c.title}: {c.about}" for c in columns if c.title.startswith("Δ")]
    if analysis.tiers:
        said.append("one tier: not told apart from the first of it")
    return "; ".join(said)


def _indented(words: str, style: str) -> Padding:
    return Padding(Text(words, style=style), (0, 0, 0, 2))
