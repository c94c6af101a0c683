"""Results of checks as text for the terminal, and as JSON values."""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from attnlab.checks.result import Result
from attnlab.checks.targets import Checked, Target


class ResultsTable:
    """One line per mechanism, and a table of the properties that it violates.

    If there is one mechanism, the table has all its properties.
    """

    def __init__(self, checked: Sequence[Checked]) -> None:
        self.checked = checked

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        del console, options
        for one in self.checked:
            violated = [result for result in one.results if not result.holds]
            line = Text.assemble((one.target.name, "bold"), f"  {_settings(one.target)}  ")
            number = len(one.results)
            if violated:
                line.append(f"{len(violated)} of {number} properties violated", style="bold red")
            else:
                line.append(f"all {number} properties hold", style="green")
            yield line
            shown = violated if len(self.checked) > 1 else one.results
            if shown:
                yield _table(shown, with_causes=bool(violated))


def results_as_json(checked: Iterable[Checked]) -> dict[str, Any]:
    """Return JSON values; a deviation may be infinite."""
    return {
        "mechanisms": [
            {
                "name": one.target.name,
                "config": one.target.config.to_dict(),
                "d_model": one.target.d_model,
                "holds": one.holds,
                "properties": [_as_json(result) for result in one.results],
            }
            for one in checked
        ]
    }


def _as_json(result: Result) -> dict[str, Any]:
    return {
        "property": result.name,
        "verdict": result.verdict,
        "deviation": result.deviation,
        "how_much": result.how_much,
        "where": result.where,
        "cause": result.cause,
    }


def _table(results: Iterable[Result], *, with_causes: bool) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", title_justify="left")
    columns = ["property", "result", "deviation", *(["where", "usual cause"] * with_causes)]
    for column in columns:
        table.add_column(Text(column), overflow="fold", no_wrap=column == "result")
    for result in results:
        cells = [result.name, result.verdict, result.how_much]
        if with_causes:
            cells += ["" if result.holds else result.where, "" if result.holds else result.cause]
        table.add_row(*(Text(cell) for cell in cells), style="" if result.holds else "red")
    return table


def _settings(target: Target) -> str:
    """Return the settings that differ from the defaults, and the model width."""
    config, values = target.config, target.config.to_dict()
    changed = [f.name for f in fields(config) if getattr(config, f.name) != f.default]
    words = [f"{name}={values[name]}" for name in changed] + [f"d_model={target.d_model}"]
    return ", ".join(words if target.name.startswith(config.kind()) else [config.kind(), *words])
