"""`attnlab doctor`: print what works on this machine, and remedies for what does not."""

import json

import typer
from rich.table import Table as Grid
from rich.text import Text

from attnlab.cli.app import FlaPathOption, JsonOption, app, reports_user_errors
from attnlab.cli.console import console, write


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
        write(json.dumps(rows, indent=2) + "\n")
        raise typer.Exit(0 if works else 1)
    grid = Grid(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("", "part", "found", "remedy"):
        grid.add_column(title, overflow="fold")
    for finding in findings:
        mark = Text("ok", "green") if finding.ok else Text("no", "yellow")
        if finding.required and not finding.ok:
            mark = Text("no", "bold red")
        grid.add_row(mark, finding.part, finding.found, finding.remedy)
    console.print(grid)
    console.print(f"{DEFAULT_STUDY} {'can' if works else 'cannot'} run here")
    raise typer.Exit(0 if works else 1)
