"""`attnlab export`: a run's weights, settings and tokenizer as a folder that stands alone."""

from pathlib import Path
from typing import Annotated

import typer

from attnlab.cli.app import BestOption, app, console, errors, told
from attnlab.trained import export_run


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
    done = export_run(run, folder, which="best" if best else "last")
    if done.note is not None:
        errors.print(done.note, style="yellow", markup=False, highlight=False, soft_wrap=True)
    files = ", ".join(sorted(path.name for path in done.folder.iterdir()))
    said = f"{done.folder}: {files}, of step {done.step}"
    console.print(said, markup=False, highlight=False, soft_wrap=True)
