"""`attnlab extend`: continue a finished run for more steps."""

from typing import TYPE_CHECKING, Annotated

import typer

from attnlab.cli.app import (
    DeviceOption,
    FlaPathOption,
    RunArgument,
    TrustOption,
    app,
    command_line,
    folder,
    reports_user_errors,
    stored,
    whole,
)
from attnlab.cli.console import console, verbatim

if TYPE_CHECKING:
    from attnlab.runner.events import Event


@app.command("extend")
@reports_user_errors
def extend_(  # noqa: PLR0913  one parameter per option
    run: RunArgument,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Train up to this many steps, the finished ones included.",
            parser=whole(),
            metavar="N",
            show_default=False,
        ),
    ] = None,
    by: Annotated[
        int | None,
        typer.Option(
            help="Train this many steps more.", parser=whole(), metavar="N", show_default=False
        ),
    ] = None,
    constant: Annotated[
        bool, typer.Option("--constant", help="Keep the learning rate of the last finished step.")
    ] = False,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Write the new run into this study folder.",
            show_default="results/STUDY_to_STEPS",
        ),
    ] = None,
    anyway: Annotated[
        bool,
        typer.Option(
            "--anyway",
            help="Extend even if the folder holds runs that the new one cannot be compared with; "
            "the report carries a warning.",
        ),
    ] = False,
    trust: TrustOption = False,
    device: DeviceOption = "auto",
    fla_path: FlaPathOption = None,
) -> None:
    """Continue a finished run to --steps, or by --by, as a new run; the old run is not changed.

    The learning rate follows the schedule of a run of that length, and therefore rises at first.
    With train.schedule=warmup-stable-decay the new run begins before the decay of the old one.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    import attnlab
    from attnlab.record import RunFolder
    from attnlab.reporting.files import PAGE
    from attnlab.runner.events import Progress as Step

    attnlab.use_fla(fla_path)
    run = stored(run)
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.animated,
    )
    bar = bars.add_task("reading the data", total=None)

    def watch(event: "Event") -> None:
        if not isinstance(event, Step):
            return
        loss = "" if event.loss is None else f"loss {event.loss:.3f}"
        bars.update(bar, completed=event.step, total=event.steps, description=loss)
        for style, text in (("bold red", event.alarm), ("yellow", event.note)):
            if text is not None:
                verbatim(text, style=style)

    with bars:
        new = attnlab.extend(
            run,
            steps=steps,
            by=by,
            trust=trust,
            anyway=anyway,
            schedule="constant" if constant else "rederived",
            out=folder(out),
            device=device,
            watch=watch,
            command=command_line(),
        )
    before, after = RunFolder.at(run).summary() or {}, new.summary() or {}
    name = f"{new.variant} seed {new.seed}"
    if new.status() == "finished":
        losses = [f"{s['final_loss']:.4f} after {s['steps']} steps" for s in (before, after)]
        verbatim(f"{name}: validation loss {', '.join(losses)}")
    else:
        verbatim(f"{name} {new.status()}: {after.get('reason')}")
    verbatim(f"Run: {new.path}")
    verbatim(f"Report: {new.path.parent.parent / PAGE}")
    raise typer.Exit(0 if new.status() == "finished" else 1)
