"""`attnlab doctor`: what runs on this machine, and what would make the rest run."""

import json
import sys
from pathlib import Path

import typer
from rich.markup import escape
from rich.table import Table as Grid

from attnlab.cli.app import FlaPathOption, JsonOption, app, console, told
from attnlab.data import Places
from attnlab.kernels.flash_linear_attention import use_fla
from attnlab.runner import doctor


@app.command("doctor")
@told
def doctor_(fla_path: FlaPathOption = None, as_json: JsonOption = False) -> None:
    """Look at devices, packages, kernels, data and disk. Exit code 1 if `quickstart` cannot run."""
    use_fla(fla_path)
    findings = doctor.examine(Places.from_environment(), Path("results"))
    if as_json:
        rows = [finding._asdict() for finding in findings]
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    else:
        grid = Grid("", "what", "found", "what to do")
        for finding in findings:
            mark = "[green]ok[/green]" if finding.well else "[yellow]no[/yellow]"
            if finding.needed and not finding.well:
                mark = "[bold red]no[/bold red]"
            grid.add_row(mark, *map(escape, (finding.what, finding.found, finding.remedy)))
        console.print(grid)
    can = doctor.can_run(findings)
    if not as_json:
        console.print(
            f"{doctor.DEFAULT_STUDY} can run here" if can else f"{doctor.DEFAULT_STUDY} cannot run"
        )
    raise typer.Exit(0 if can else 1)
