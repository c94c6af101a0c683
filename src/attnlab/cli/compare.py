"""`attnlab compare`: compare studies, variants and single runs in one report."""

from pathlib import Path
from typing import Annotated

import typer

from attnlab.cli.app import JsonOption, app, command_line, folder, reports_user_errors, stored
from attnlab.cli.console import errors, verbatim
from attnlab.cli.report import show


@app.command()
@reports_user_errors
def compare(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR",
            help="Folders of studies, variants or runs (results/STUDY/VARIANT/seed-0).",
            show_default=False,
        ),
    ],
    out: Annotated[
        str, typer.Option(metavar="DIR", help="Write the report to this folder.")
    ] = "results/compare",
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Compare with this variant.",
            show_default="the first study's baseline, or the first variant",
        ),
    ] = None,
    anyway: Annotated[
        bool,
        typer.Option(
            "--anyway",
            help="Compare even if the runs are not comparable; the report carries a warning.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare studies, variants and single runs in one report. The folders are only read.

    Runs that read other tokens, took other numbers of steps or were evaluated on other splits are
    refused.
    """
    import attnlab
    from attnlab.reporting.sentences import unfair

    analysis = attnlab.compare(
        *map(stored, folders),
        out=folder(out) or out,
        baseline=baseline,
        anyway=anyway,
        command=command_line(),
    )
    if as_json:
        for line in unfair(analysis.table):
            verbatim(line, errors)
    show(analysis, as_json)
