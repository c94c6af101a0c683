"""`attnlab export`: write a run's model into a folder that stands alone."""

from pathlib import Path
from typing import Annotated

import typer

from attnlab.cli.app import BestOption, RunArgument, TrustOption, app, reports_user_errors, stored
from attnlab.cli.console import errors, verbatim


@app.command()
@reports_user_errors
def export(
    run: RunArgument,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A new folder.", show_default=False)
    ],
    best: BestOption = False,
    trust: TrustOption = False,
) -> None:
    """Write a run's weights (safetensors), settings, tokenizer and own code into a new folder.

    attnlab.load_run(DIR) loads the model, attnlab generate DIR generates text with it.
    """
    import attnlab

    exported = attnlab.export(stored(run), folder, which="best" if best else "last", trust=trust)
    if exported.note is not None:
        verbatim(exported.note, errors, style="yellow")
    files = ", ".join(sorted(path.name for path in exported.folder.iterdir()))
    verbatim(f"{exported.folder}: {files}, of step {exported.step}")
