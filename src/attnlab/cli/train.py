"""`attnlab train` and `attnlab extend`: one run, and more steps of a finished one.

A run is trained alone, or as one of the processes of torchrun.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from attnlab.cli.app import (
    DeviceOption,
    FlaPathOption,
    RunArgument,
    StepsOption,
    StudyArgument,
    TrustOption,
    app,
    command_line,
    folder,
    reports_user_errors,
    stored,
    whole,
)
from attnlab.cli.console import console, errors, verbatim

if TYPE_CHECKING:
    from attnlab.runner.events import Event


@app.command()
@reports_user_errors
def train(  # noqa: PLR0913  one parameter per option
    study: StudyArgument,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SETTING",
            help="A setting to change, such as train.micro_batch_size=8.",
            show_default=False,
        ),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Train this variant.", show_default="baseline"),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Train with this seed.", parser=whole(0), metavar="N")
    ] = 0,
    length: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Train at one of the study's named lengths."),
    ] = None,
    steps: StepsOption = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Write the run to this folder.", show_default="results/STUDY"
        ),
    ] = None,
    device: DeviceOption = "auto",
    fla_path: FlaPathOption = None,
) -> None:
    """Train one run of STUDY at its own recipe; `attnlab run` takes it for done afterwards.

    Under torchrun the run is shared by its processes, one per GPU:
    `torchrun --standalone --nproc-per-node 4 -m attnlab train STUDY`.
    """
    import attnlab
    from attnlab.runner.events import Ended, Held, Progress

    def watch(event: "Event") -> None:
        match event:
            case Progress(step, steps, loss, alarm=alarm, note=None):
                value = "" if loss is None else f"  loss {loss:.4f}"
                verbatim(f"step {step} of {steps}{value}", console)
                if alarm is not None:
                    verbatim(alarm, errors, style="bold red")
            case Progress(note=str(note)):
                verbatim(note, errors, style="yellow")
            case Ended(status, reason):
                verbatim(status if reason is None else f"{status}: {reason}", console)
            case Held(by):
                advice = "this process writes nothing more of the run"
                verbatim(f"the run was taken over by {by}; {advice}", errors)
            case _:
                verbatim(str(event), console)

    end = attnlab.train(
        study,
        variant=variant,
        seed=seed,
        overrides=overrides or [],
        length=length,
        steps=steps,
        out=folder(out),
        device=device,
        fla_path=fla_path,
        watch=watch,
        command=command_line(),
    )
    raise typer.Exit(0 if isinstance(end, Ended) and end.status == "finished" else 1)


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
    import attnlab
    from attnlab.cli.progress import run_watched
    from attnlab.record import RunFolder
    from attnlab.reporting.files import PAGE

    attnlab.use_fla(fla_path)
    run = stored(run)
    old = RunFolder.at(run)
    name = f"{old.variant} seed {old.seed}"
    with run_watched(name, console) as watch:
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
    before, after = old.summary() or {}, new.summary() or {}
    if new.status() == "finished":
        losses = [f"{s['final_loss']:.4f} after {s['steps']} steps" for s in (before, after)]
        verbatim(f"{name}: validation loss {', '.join(losses)}")
    else:
        verbatim(f"{name} {new.status()}: {after.get('reason')}")
    verbatim(f"Run: {new.path}")
    verbatim(f"Report: {new.path.parent.parent / PAGE}")
    raise typer.Exit(0 if new.status() == "finished" else 1)
