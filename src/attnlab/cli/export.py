"""`attnlab export`: a run's weights, settings and tokenizer as a folder that stands alone."""

from pathlib import Path
from typing import Annotated

import typer

from attnlab.cli.app import BestOption, app, errors, told, verbatim
from attnlab.inference import saved_model


@app.command()
@told
def export(
    run: Annotated[Path, typer.Argument(help="A run's folder: results/STUDY/VARIANT/seed-0.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    best: BestOption = False,
) -> None:
    """Write a run's weights (safetensors), settings and tokenizer into a new folder.

    attnlab.load_run(DIR) gives the model back, and attnlab generate DIR its text.
    """
    done = saved_model.export(run, folder, which="best" if best else "last")
    if done.note is not None:
        verbatim(done.note, errors, style="yellow")
    files = ", ".join(sorted(path.name for path in done.folder.iterdir()))
    said = f"{done.folder}: {files}, of step {done.step}"
    verbatim(said)
