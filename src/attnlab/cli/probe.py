"""`attnlab probe`: what mechanisms recall, copy and track, on small tasks."""

import json
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from attnlab.cli.app import (
    DeviceOption,
    FlaPathOption,
    JsonOption,
    StepsOption,
    WorkersOption,
    app,
    command_line,
    folder,
    reports_user_errors,
    size_option,
    whole,
)
from attnlab.cli.console import console, errors, verbatim, write
from attnlab.cli.report import showing_unwritten

if TYPE_CHECKING:
    from attnlab.analysis.analysis import Analysis


@app.command("probe")
@reports_user_errors
def probe_(  # noqa: PLR0913  one parameter per option
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="KIND",
            help="All, kinds (mla), classes (file.py:Class), layers (fla:Layer) or studies (name "
            "or path), each perhaps with settings of its own (mla:kv_lora_rank=8); then settings "
            "of all: window=16, train.learning_rate=1e-3 ...",
            show_default=False,
        ),
    ],
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Probe these, separated by commas: recall, copying, parity, s3, s5, needle, "
            "variables, common_words, fuzzy, depo, mano.",
            show_default="the first five, the first four if quick",
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Shorter sequences, smaller models, fewer steps: minutes on a CPU."
        ),
    ] = False,
    seeds: Annotated[
        int, typer.Option(help="Seeds per mechanism and task.", parser=whole(1), metavar="N")
    ] = 3,
    steps: StepsOption = None,
    d_model: Annotated[int | None, size_option("width", "128; 32 if quick")] = None,
    n_layers: Annotated[int | None, size_option("number of layers", "2")] = None,
    n_heads: Annotated[int | None, size_option("number of heads", "2; 1 if quick")] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="First search the learning rate of each, on each task.")
    ] = False,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Write results to this folder.", show_default="results/probe"
        ),
    ] = None,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    fla_path: FlaPathOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train small models on tasks, and tell what each mechanism recalls, copies and tracks.

    The results are a study's, with its report, and continue with the same command; profile.png has
    the accuracy of each mechanism on each task against its decode state.
    """
    import attnlab
    from attnlab.cli.progress import watched
    from attnlab.study.targets import split_assignments

    names, assignments = split_assignments(what)
    show = partial(_show, as_json=as_json)
    with showing_unwritten(show), watched(errors if as_json else console) as watch:
        analysis = attnlab.probe(
            *names,
            tasks=tasks,
            overrides=assignments,
            quick=quick,
            seeds=seeds,
            steps=steps,
            d_model=d_model,
            n_layers=n_layers,
            n_heads=n_heads,
            tune=tune,
            out=folder(out),
            device=device,
            workers=workers,
            fla_path=fla_path,
            watch=watch,
            command=command_line(),
        )
    show(analysis)
    if not as_json:
        verbatim(
            f"\nProfile: {analysis.table.path / 'profile.png'}; report.html beside it", console
        )
    raise typer.Exit(1 if analysis.whole.failures else 0)


def _show(analysis: "Analysis", as_json: bool) -> None:
    from attnlab.reporting.profile import ProfileTable, profile_json

    if as_json:
        write(json.dumps(profile_json(analysis), indent=2) + "\n")
    else:
        console.print_table(ProfileTable(analysis))
