"""`attnlab report`, `compare`, `pack` and `unpack`: the report of studies, and their one file."""

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnlab.cli.app import (
    JsonOption,
    app,
    command_line,
    decimal,
    folder,
    reports_user_errors,
    stored,
)
from attnlab.cli.console import console, errors, verbatim, write
from attnlab.record import WriteError

if TYPE_CHECKING:
    from attnlab.analysis.analysis import Analysis

StudiesArgument = Annotated[
    list[Path],
    typer.Argument(metavar="DIR", help="Folders of studies.", show_default=False),
]


@app.command()
@reports_user_errors
def report(
    study_dir: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="A study's folder, or its name.",
            show_default=False,
        ),
    ],
    target_loss: Annotated[
        float | None,
        typer.Option(
            help="Loss in nats/token: when did each variant reach it? Kept for later reports. By "
            "default that with which the baseline ends.",
            parser=decimal(0.0),
            metavar="NATS",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Rebuild the page, tables and figures of a study from its runs."""
    import attnlab

    with showing_unwritten(partial(show_verdict, as_json=as_json)):
        analysis = attnlab.report(stored(study_dir), target_loss)
    show(analysis, as_json)


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

    with showing_unwritten(partial(show_verdict, as_json=as_json)):
        analysis = attnlab.compare(
            *map(stored, folders),
            out=folder(out) or out,
            baseline=baseline,
            anyway=anyway,
            command=command_line(),
        )
    if as_json:
        for line in unfair(analysis.whole):
            verbatim(line, errors)
    show(analysis, as_json)


def show(analysis: "Analysis", as_json: bool) -> None:
    """Print the ranking and the verdict, or the results as JSON; exit with 2 if runs are damaged.

    The damaged files are named on the standard error stream.
    """
    from attnlab.reporting.files import PAGE

    show_verdict(analysis, as_json)
    if not as_json:
        verbatim(f"\nReport: {analysis.table.path / PAGE}")
    for line in analysis.whole.damage:
        verbatim(f"error: {line}", errors)
    if analysis.whole.damage:
        raise typer.Exit(2)


def show_verdict(analysis: "Analysis", as_json: bool) -> None:
    """Print the ranking and the verdict, or the results as JSON."""
    from attnlab.reporting.tables.data_files import results
    from attnlab.reporting.terminal import TerminalReport

    if as_json:
        write(json.dumps(results(analysis), indent=2) + "\n")
    else:
        console.print(TerminalReport(analysis), crop=console.is_terminal)


@contextmanager
def showing_unwritten(show: Callable[["Analysis"], None]) -> Generator[None]:
    """Call `show` with the analysis of a report that cannot be written inside; raise its error."""
    try:
        yield
    except WriteError as error:
        from attnlab.reporting.files import UnwrittenReportError

        if isinstance(error, UnwrittenReportError):
            show(error.analysis)
        raise


@app.command()
@reports_user_errors
def pack(
    studies: StudiesArgument,
    drop_checkpoints: Annotated[
        bool,
        typer.Option(
            "--drop-checkpoints",
            help="Delete the weights of the runs, which a packed study cannot hold.",
        ),
    ] = False,
) -> None:
    """Pack a study into one file, DIR/runs.jsonl.gz, and remove study.json and the run folders.

    It holds the record of the study, and the settings, environment, measurements and summary of
    every run, one line of JSON per run. All commands read a packed study like its folders, and
    attnlab unpack restores them byte for byte. Weights cannot be packed: without
    --drop-checkpoints, a study that has any is refused.
    """
    import attnlab

    for study in studies:
        done = attnlab.pack(study, drop_checkpoints=drop_checkpoints)
        for kept in done.changed:
            verbatim(f"{kept} was changed in the meantime and is kept", errors, style="yellow")
        verbatim(f"{done.path}: {_runs(done.runs)}, {done.n_bytes / 1000:,.0f} kB")


@app.command()
@reports_user_errors
def unpack(studies: StudiesArgument) -> None:
    """Restore study.json and the run folders, byte for byte, and remove DIR/runs.jsonl.gz."""
    import attnlab

    for study in studies:
        verbatim(f"{study}: {_runs(attnlab.unpack(study))} restored")


def _runs(number: int) -> str:
    return "1 run" if number == 1 else f"{number} runs"
