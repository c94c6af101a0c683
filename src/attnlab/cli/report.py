"""`attnlab report`: rebuild the page, tables and figures of a study from its run folders."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from attnlab.analysis.analysis import Analysis
from attnlab.cli.app import JsonOption, app, console, told
from attnlab.reporting.files import PAGE, write_report
from attnlab.reporting.tables.data_files import results
from attnlab.reporting.terminal import TerminalReport


@app.command()
@told
def report(
    study_dir: Annotated[Path, typer.Argument(help="A study's folder.")],
    as_json: JsonOption = False,
) -> None:
    """Rebuild the page, tables and figures of a study from its run folders."""
    show(write_report(study_dir), as_json)


def show(analysis: Analysis, as_json: bool) -> None:
    """Print the ranking, or the results as JSON."""
    if as_json:
        sys.stdout.write(json.dumps(results(analysis), indent=2) + "\n")
    else:
        console.print(TerminalReport(analysis))
        console.print(f"\nReport: {analysis.table.path / PAGE}", highlight=False, soft_wrap=True)
