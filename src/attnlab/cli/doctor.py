"""`attnlab doctor`: print what works on this machine, and remedies for what does not."""

import json
import sys

import typer
from rich.markup import escape
from rich.table import Table as Grid

from attnlab.cli.app import FlaPathOption, JsonOption, app, console, reports_user_errors


@app.command("doctor")
@reports_user_errors
def doctor_(fla_path: FlaPathOption = None, as_json: JsonOption = False) -> None:
    """Examine devices, packages, kernels, data and disk.

    The exit code is 1 if the study quickstart cannot run.
    """
    import attnlab
    from attnlab.runner.doctor import DEFAULT_STUDY, can_run

    findings = attnlab.doctor(fla_path=fla_path)
    works = can_run(findings)
    if as_json:
        rows = [finding._asdict() for finding in findings]
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        raise typer.Exit(0 if works else 1)
    grid = Grid(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("", "part", "found", "remedy"):
        grid.add_column(title, overflow="fold")
    for finding in findings:
        mark = "[green]ok[/green]" if finding.ok else "[yellow]no[/yellow]"
        if finding.required and not finding.ok:
            mark = "[bold red]no[/bold red]"
        grid.add_row(mark, *map(escape, (finding.part, finding.found, finding.remedy)))
    console.print(grid)
    console.print(f"{DEFAULT_STUDY} {'can' if works else 'cannot'} run here")
    raise typer.Exit(0 if works else 1)
