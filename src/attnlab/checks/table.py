"""Results of checks as text for the terminal, and as JSON values."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from attnlab.checks.result import Result
from attnlab.checks.suite import PROPERTIES
from attnlab.checks.targets import Checked, Target


class ResultsTable:
    """One line per mechanism: how many properties hold, and which were not judged and why.

    Above it are the violated properties of the mechanism: which, by how much, where, where not, and
    the usual cause.
    """

    def __init__(self, checked: Sequence[Checked]) -> None:
        self.checked = checked

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        del console, options
        for one in sorted(self.checked, key=lambda one: one.holds):
            violated = [result for result in one.results if not result.holds]
            line = Text.assemble((one.target.name, "bold"), f"  {_settings(one.target)}  ")
            if violated:
                line.append(f"{len(violated)} of {len(PROPERTIES)} properties violated", "bold red")
                yield line
                yield from map(_paragraph, _merged(violated))
                line = Text("  ")
            yield line.append_text(_of_the_rest(one))


def _paragraph(result: Result) -> Text:
    """Return a violated property: its name, its size and its place, and the usual cause."""
    text = Text.assemble((f"  {result.verdict} {result.name}: ", "red"), result.how_much)
    if result.where:
        text.append(f"; {result.where}")
    if result.holds_at:
        text.append(f"\n    {result.holds_at}")
    if result.cause:
        text.append(f"\n    usual cause: {result.cause}", style="dim")
    return text


def _merged(violated: Sequence[Result]) -> Iterator[Result]:
    """Yield the violated properties; of those with the same exception only the first."""
    seen = dict[str, list[Result]]()
    for result in violated:
        key = result.how_much if result.how_much.startswith("raised ") else result.name
        seen.setdefault(key, []).append(result)
    for first, *others in seen.values():
        more = f"{len(others)} more properties raised the same" if others else first.holds_at
        yield replace(first, holds_at=more, cause="" if others else first.cause)


def _of_the_rest(one: Checked) -> Text:
    """Return one line on what holds and what was not judged."""
    passed = [result for result in one.results if result.verdict == "pass"]
    skipped = [result for result in one.results if result.verdict == "skipped"]
    unjudged = len(PROPERTIES) - len(one.results)
    everything = len(passed) == len(PROPERTIES)
    text = Text(
        f"all {len(passed)} properties hold" if everything else f"{len(passed)} properties hold",
        style="green" if one.holds else "",
    )
    if unjudged:
        text.append(f"; {unjudged} were not judged", style="yellow")
    notes = dict[str, int]()
    for result in skipped:
        notes[result.how_much] = notes.get(result.how_much, 0) + 1
    for reason, number in notes.items():
        text.append(f"; {number} skipped: {reason}", style="yellow")
    for note in dict.fromkeys(result.note for result in one.results if result.note):
        text.append(f"; {note}", style="yellow")
    return text


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
        "holds_at": result.holds_at,
        "note": result.note,
        "cause": result.cause,
    }


def _settings(target: Target) -> str:
    """Return the settings that differ from the defaults, and the model width."""
    config, values = target.config, target.config.to_dict()
    changed = [f.name for f in fields(config) if getattr(config, f.name) != f.default]
    words = [f"{name}={values[name]}" for name in changed] + [f"d_model={target.d_model}"]
    kind = config.kind()
    is_named = target.name.startswith(kind) or target.name.endswith(Path(kind).name)
    return ", ".join(words if is_named else [kind, *words])
