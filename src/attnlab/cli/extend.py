"""`attnlab extend`: more steps of a finished run."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from attnlab.cli.app import DeviceOption, FlaPathOption, app, console, told, verbatim
from attnlab.kernels.flash_linear_attention import use_fla
from attnlab.record import RunFolder
from attnlab.reporting.files import PAGE
from attnlab.runner.events import Ended, Event
from attnlab.runner.extend import extend


@app.command("extend")
@told
def extend_(
    run: Annotated[Path, typer.Argument(help="A run's folder: results/STUDY/VARIANT/seed-0.")],
    steps: Annotated[int, typer.Option(help="In all, those that the run has among them.")],
    constant: Annotated[
        bool, typer.Option("--constant", help="Leave the learning rate what it was at the end.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="The new run's study.", show_default="results/STUDY_to_STEPS"),
    ] = None,
    device: DeviceOption = "auto",
    fla_path: FlaPathOption = None,
) -> None:
    """Continue a finished run to STEPS steps, as a new run; the old one stays as it is.

    The learning rate goes on where it would be in a run of STEPS from the start, and so rises again
    at first.
    """
    use_fla(fla_path)
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    bar = bars.add_task("reading the data", total=None)

    def tell(event: Event) -> None:
        if isinstance(event, Ended):
            return
        loss = "" if event.loss is None else f"loss {event.loss:.3f}"
        bars.update(bar, completed=event.step, total=event.steps, description=loss)
        for style, said in (("bold red", event.alarm), ("yellow", event.note)):
            if said is not None:
                verbatim(said, style=style)

    with bars:
        command = shlex.join(["attnlab", *sys.argv[1:]])
        new = extend(
            run,
            steps=steps,
            schedule="constant" if constant else "rederived",
            out=out,
            device=device,
            watch=tell,
            command=command,
        )
    before, after = RunFolder.at(run).summary() or {}, new.summary() or {}
    name = f"{new.variant} seed {new.seed}"
    if new.status() == "finished":
        losses = [f"{s['final_loss']:.4f} after {s['steps']} steps" for s in (before, after)]
        said = f"{name}: validation loss {', '.join(losses)}"
    else:
        said = f"{name} {new.status()}: {after.get('reason')}"
    verbatim(said)
    verbatim(f"Run: {new.path}")
    page = new.path.parent.parent / PAGE
    verbatim(f"Report: {page}")
    raise typer.Exit(0 if new.status() == "finished" else 1)
