"""`attnlab train`: train one run of a study, alone or as one of the processes of torchrun."""

from typing import TYPE_CHECKING, Annotated

import typer

from attnlab.cli.app import (
    DeviceOption,
    FlaPathOption,
    StepsOption,
    StudyArgument,
    app,
    command_line,
    folder,
    reports_user_errors,
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
            case Progress(step, steps, loss):
                value = "" if loss is None else f"  loss {loss:.4f}"
                verbatim(f"step {step} of {steps}{value}", console)
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
