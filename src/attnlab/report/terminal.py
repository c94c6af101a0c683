"""The ranking in the terminal. What does not fit its width is left out, and said to be."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from attnlab.analysis.table import Table, Variant
from attnlab.report import units
from attnlab.report.verdict import headline, mechanism_of, seeds_of, unfinished, verdict


class TerminalReport:
    """A rich renderable of a study: `console.print(TerminalReport(table))`."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = self.table
        columns, left_out = _columns(table), list[str]()
        while _width(console, options, _grid(table, columns)) > options.max_width:
            least = max(columns, key=lambda column: column.expendable)
            if not least.expendable:
                break
            columns.remove(least)
            left_out.append(least.title)
        if table.ranked:
            yield _grid(table, columns)
            if left_out:
                yield _indented(f"too narrow for: {', '.join(left_out)}", "dim")
            yield _indented(_legend(table), "dim")
            yield Text()
        yield Text(headline(table))
        if verdict(table):
            yield Text(verdict(table))
        lines = unfinished(table)
        if lines:
            yield Text()
            yield Text("Not finished", style="bold")
        for line in lines:
            yield _indented(line, "" if line.startswith("still") else "red")


@dataclass(frozen=True)
class _Column:
    title: str
    cell: Callable[[Variant], str]
    expendable: int = 0  # the largest goes first where the terminal is narrow; 0 stays
    justify: Literal["left", "right"] = "right"


def _columns(table: Table) -> list[_Column]:
    baseline = table.study.baseline

    def mean(key: str, variant: Variant) -> float | None:
        return variant.numbers[key].mean if key in variant.numbers else None

    def to_baseline(variant: Variant) -> str:
        return "baseline" if variant.name == baseline else units.difference(variant.to_baseline)

    columns = [
        _Column("#", lambda v: str(v.rank)),
        _Column("variant", lambda v: v.name, justify="left"),
        _Column("mechanism", mechanism_of, 8, "left"),
        _Column("seeds", seeds_of, 4),
        _Column("val loss", lambda v: units.estimate(v.numbers["final_loss"])),
        _Column("perplexity", lambda v: units.number(mean("final_perplexity", v), 2), 1),
        _Column(f"Δ {baseline}", to_baseline),
        _Column("ms/step", lambda v: units.milliseconds(mean("step_time", v)), 2),
        _Column("tokens/s", lambda v: units.count(mean("tokens_per_second", v)), 7),
        _Column("params", lambda v: units.count(v.parameters.get("total")), 3),
        _Column("memory", lambda v: units.size(mean("peak_memory_bytes", v)), 6),
        _Column("decode state", lambda v: units.size(mean("state_bytes", v)), 5),
    ]
    dull = {"seeds"} if all(len(v.finished) == len(v.runs) for v in table.ranked) else set[str]()
    if baseline is None:
        dull.add(f"Δ {baseline}")
    if all(mean("peak_memory_bytes", v) is None for v in table.ranked):
        dull.add("memory")
    return [column for column in columns if column.title not in dull]


def _grid(table: Table, columns: list[_Column]) -> Grid:
    grid = Grid(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(Text(column.title), justify=column.justify, no_wrap=True)
    for variant in table.ranked:
        style = "bold" if variant.rank == 1 else ""
        grid.add_row(*(Text(column.cell(variant)) for column in columns), style=style)
    return grid


def _width(console: Console, options: ConsoleOptions, grid: Grid) -> int:
    return Measurement.get(console, options.update(width=1000), grid).maximum


def _legend(table: Table) -> str:
    words = ["val loss in nats a token"]
    if table.most_seeds > 1:
        words[0] += ", mean ± standard deviation over seeds"
    if table.study.baseline is not None:
        words.append(f"Δ {table.study.baseline}: difference paired by seed")
        if table.most_seeds > 1:
            words[-1] += " ± half of its 95 % interval"
    return "; ".join(words)


def _indented(words: str, style: str) -> Padding:
    return Padding(Text(words, style=style), (0, 0, 0, 2))
