"""The verdicts as a person reads them, and as JSON values."""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table as Grid
from rich.text import Text

from attnlab.checks.result import Result
from attnlab.checks.targets import Checked, Target


class Verdicts:
    """A line for each mechanism that keeps all promises, a table of what is broken for the others.

    One mechanism alone gets the table of all its properties.
    """

    def __init__(self, checked: Sequence[Checked]) -> None:
        self.checked = checked

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        del console, options
        for one in self.checked:
            broken = [result for result in one.results if not result.holds]
            head = Text.assemble((one.target.name, "bold"), f"  {_settings(one.target)}  ")
            number = len(one.results)
            if broken:
                head.append(f"{len(broken)} of {number} properties broken", style="bold red")
            else:
                head.append(f"all {number} properties hold", style="green")
            yield head
            shown = broken if len(self.checked) > 1 else one.results
            if shown:
                yield _grid(shown, with_causes=bool(broken))


def verdicts_as_json(checked: Iterable[Checked]) -> dict[str, Any]:
    """JSON values; a deviation may be infinite."""
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


def _grid(results: Iterable[Result], *, with_causes: bool) -> Grid:
    grid = Grid(box=None, padding=(0, 2, 0, 0), header_style="bold", title_justify="left")
    columns = ["property", "verdict", "how much", *(["where", "usual cause"] * with_causes)]
    for column in columns:
        grid.add_column(Text(column), overflow="fold", no_wrap=column == "verdict")
    for result in results:
        cells = [result.name, result.verdict, result.how_much]
        if with_causes:
            cells += ["" if result.holds else result.where, "" if result.holds else result.cause]
        grid.add_row(*(Text(cell) for cell in cells), style="" if result.holds else "red")
    return grid


def _settings(target: Target) -> str:
    """Return the settings that differ from the defaults, and the model width."""
    config, values = target.config, target.config.to_dict()
    changed = [f.name for f in fields(config) if getattr(config, f.name) != f.default]
    words = [f"{name}={values[name]}" for name in changed] + [f"d_model={target.d_model}"]
    return ", ".join(words if target.name.startswith(config.kind()) else [config.kind(), *words])
