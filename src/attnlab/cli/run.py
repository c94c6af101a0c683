"""`attnlab run`: train the variants of a study and compare them."""

from functools import partial
from typing import Annotated, Any

import typer

from attnlab.cli.app import (
    DeviceOption,
    FlaPathOption,
    JsonOption,
    SeedsOption,
    StepsOption,
    StudyArgument,
    WorkersOption,
    app,
    command_line,
    decimal,
    folder,
    reports_user_errors,
    whole,
)
from attnlab.cli.console import console, errors
from attnlab.cli.report import show, show_verdict, showing_unwritten


@app.command()
@reports_user_errors
def run(  # noqa: PLR0913  one parameter per option
    study: StudyArgument,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SETTING",
            help="A setting to change in every variant, such as train.steps=100.",
            show_default=False,
        ),
    ] = None,
    length: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Run one of the study's named lengths."),
    ] = None,
    add: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=MECHANISM",
            help="Add a variant: the baseline with this mechanism, such as mine=file.py:Class or "
            "low=mla:kv_lora_rank=8; may be repeated.",
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Train only these variants and those of --add, separated by commas.",
        ),
    ] = None,
    seeds: SeedsOption = None,
    until: Annotated[
        str | None,
        typer.Option(
            metavar="decided",
            help="Add seeds to variants while their comparison with the best or with the baseline "
            "is open.",
        ),
    ] = None,
    most_seeds: Annotated[
        int | None,
        typer.Option(
            help="With --until decided, train at most this number of seeds per variant.",
            parser=whole(),
            metavar="N",
            show_default="10",
        ),
    ] = None,
    steps: StepsOption = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Write the results to this folder.", show_default="results/STUDY"
        ),
    ] = None,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SETTING=VALUES",
            help="Give a setting several values, such as train.seq_len=1k,2k,4k; may be repeated "
            "for all combinations.",
        ),
    ] = None,
    gpus_per_run: Annotated[
        int,
        typer.Option(
            help="Train each run on this number of GPUs, or of processes on CPUs.",
            parser=whole(1),
            metavar="N",
        ),
    ] = 1,
    tune: Annotated[
        bool | None,
        typer.Option(
            "--tune/--no-tune",
            help="Search each variant's recipe, or keep its own.",
            show_default="as the study says",
        ),
    ] = None,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Train without checking the mechanisms first.")
    ] = False,
    anyway: Annotated[
        bool,
        typer.Option(
            "--anyway",
            help="Train even if the folder holds runs that the new ones cannot be compared with; "
            "the report carries a warning.",
        ),
    ] = False,
    only_plan: Annotated[
        bool,
        typer.Option("--plan", help="Estimate time, disk space and power; train nothing."),
    ] = False,
    trial_seconds: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="Read data, time steps and check for so long, for --plan.",
            parser=decimal(),
        ),
    ] = 4.0,
    residual_sd: Annotated[
        float | None,
        typer.Option(
            metavar="SD",
            help="Assume this residual standard deviation per run, for --plan.",
            parser=decimal(),
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            metavar="ENGINE",
            help="Train in processes of this machine (local) or on a Ray cluster (ray).",
        ),
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Connect to the Ray cluster at this address.",
            show_default="RAY_ADDRESS, the cluster of this machine, or a new one",
        ),
    ] = None,
    cpus_per_run: Annotated[
        int | None,
        typer.Option(
            help="Give a run this number of CPUs, with Ray.",
            show_default="1",
            parser=whole(1),
            metavar="N",
        ),
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TOOL", help="Mirror metrics to tensorboard or wandb; may be repeated."
        ),
    ] = None,
    fla_path: FlaPathOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train every variant of STUDY that is not trained yet, and compare them.

    The mechanisms are checked first; if one violates a property, nothing is trained. If the study
    tunes learning rates, that of each variant is chosen next, on validation data and with a seed
    that is used for nothing else.
    """
    import attnlab
    from attnlab.cli.plan import show_plan
    from attnlab.cli.progress import watched
    from attnlab.runner.plan import Plan

    options: dict[str, Any] = {
        "length": length,
        "add": add or [],
        "only": only,
        "seeds": seeds,
        "until": until,
        "most_seeds": most_seeds,
        "steps": steps,
        "overrides": overrides or [],
        "sweep": sweep or [],
        "tune": tune,
        "out": folder(out),
        "device": device,
        "workers": workers,
        "gpus_per_run": gpus_per_run,
        "fla_path": fla_path,
        "engine": engine,
        "address": address,
        "cpus_per_run": cpus_per_run,
        "anyway": anyway,
        "check": not no_check,
        "track": track or [],
    }
    output, remedy = errors if as_json else console, " (use --no-check to train regardless)"
    shown = partial(show_verdict, as_json=as_json)
    with showing_unwritten(shown), watched(output, remedy=remedy) as watch:
        if only_plan:
            found = attnlab.plan(
                study,
                **options,
                residual_sd=residual_sd,
                trial_seconds=trial_seconds,
                watch=watch,
            )
        else:
            found = attnlab.run(
                study,
                **options,
                watch=watch,
                command=command_line(),
            )
    if isinstance(found, Plan):
        show_plan(found, as_json=as_json)
        raise typer.Exit(1 if found.problems else 0)
    show(found, as_json)
    raise typer.Exit(1 if found.whole.failures else 0)
