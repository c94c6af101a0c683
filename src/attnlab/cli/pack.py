"""`attnlab pack` and `attnlab unpack`: pack a study into one file, and restore its folders."""

from pathlib import Path
from typing import Annotated

import typer

from attnlab.cli.app import app, reports_user_errors
from attnlab.cli.console import errors, verbatim

StudiesArgument = Annotated[
    list[Path],
    typer.Argument(metavar="DIR", help="Folders of studies.", show_default=False),
]


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
        for folder in done.changed:
            verbatim(f"{folder} was changed in the meantime and is kept", errors, style="yellow")
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
