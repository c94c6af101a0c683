"""`attnlab report`: rebuild tables and figures of a study from its run folders."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from attnlab.analysis.table import Table
from attnlab.cli.app import JsonOption, app, console, told
from attnlab.report.files import results, write_report
from attnlab.report.terminal import TerminalReport


@app.command()
@told
def report(
    study_dir: Annotated[Path, typer.Argument(help="A study's folder.")],
    as_json: JsonOption = False,
) -> None:
    """Rebuild tables and figures of a study from its run folders."""
    show(write_report(study_dir), as_json)


def show(table: Table, as_json: bool) -> None:
    """Print the ranking, or the results as JSON."""
    if as_json:
        sys.stdout.write(json.dumps(results(table), indent=2) + "\n")
    else:
        console.print(TerminalReport(table))
        console.print(f"\nReport: {table.path / 'report.md'}", highlight=False, soft_wrap=True)
