"""`attnlab compare`: studies, variants and single runs side by side."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from attnlab.analysis.analysis import analysis_of
from attnlab.analysis.compare_folders import read_folders
from attnlab.cli.app import JsonOption, app, errors, told, verbatim
from attnlab.cli.report import show
from attnlab.reporting.files import write_comparison
from attnlab.reporting.sentences import unfair


@app.command()
@told
def compare(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR",
            help="Of studies, of variants or of runs: results/STUDY/VARIANT/seed-0.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("results/compare"),
    baseline: Annotated[
        str | None,
        typer.Option(help="A variant.", show_default="of the first study, or the first variant"),
    ] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Even where it is not fair; the report says so.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Set studies, variants or single runs side by side, in one report.

    The folders are only read.

    Refused where runs read other tokens, took other steps, or were measured on other splits.
    """
    command = shlex.join(["attnlab", *sys.argv[1:]])
    table = read_folders(folders, out=out, command=command, baseline=baseline)
    if table.unfair and not anyway:
        differ = "\n".join(f"  {line}" for line in table.unfair)
        raise ValueError(
            f"not a fair comparison\n{differ}\n--anyway makes it all the same, and says so in it"
        )
    analysis = analysis_of(table)
    write_comparison(analysis)
    if as_json:
        for line in unfair(table):
            verbatim(line, errors)
    show(analysis, as_json)
