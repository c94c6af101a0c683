"""`attnlab run`: train every variant of a study that is not trained yet, and compare them."""

import shlex
import sys
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import typer
from rich.console import Console
from rich.markup import escape

from attnlab.checks.table import ResultsTable
from attnlab.cli.app import (
    DeviceOption,
    FlaPathOption,
    JsonOption,
    app,
    console,
    errors,
    status,
    told,
)
from attnlab.cli.plan import show_plan
from attnlab.cli.progress import StudyProgress
from attnlab.cli.report import show
from attnlab.runner.events import Activity, Notice, RunEvent, Started
from attnlab.runner.plan import plan
from attnlab.runner.run import ViolatedPropertyError
from attnlab.runner.run import run as run_study
from attnlab.runner.schedule import StudySchedule


@app.command()
@told
def run(  # noqa: PLR0913  one parameter an option
    study: Annotated[str, typer.Argument(help="A shipped study's name, or a Python file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings to change: train.steps=100 ...")
    ] = None,
    length: Annotated[
        str | None, typer.Option(help="One of the study's named lengths.", show_default=False)
    ] = None,
    only: Annotated[str | None, typer.Option(help="Variants, separated by commas.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Seeds a variant.", show_default=False)] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps.", show_default=False)] = None,
    out: Annotated[
        Path | None, typer.Option(help="The study's folder.", show_default="results/STUDY")
    ] = None,
    device: DeviceOption = "auto",
    workers: Annotated[
        int | None, typer.Option(help="Runs at a time.", show_default="one a CUDA device or core")
    ] = None,
    no_tune: Annotated[
        bool, typer.Option("--no-tune", help="Train at the learning rates that the variants name.")
    ] = False,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Train without checking the mechanisms first.")
    ] = False,
    only_plan: Annotated[
        bool, typer.Option("--plan", help="Print runs, time, disk and power; train nothing.")
    ] = False,
    residual_sd: Annotated[
        float | None,
        typer.Option(
            help="For --plan: residual standard deviation per run, nats/token.", show_default=False
        ),
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(help="Mirror metrics to tensorboard or wandb; may be repeated."),
    ] = None,
    fla_path: FlaPathOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train every variant of STUDY that is not trained yet, and compare them.

    The mechanisms are checked first; nothing is trained where one breaks a promise. Where the study
    tunes learning rates, each variant's is chosen next, on validation data and a seed of its own.
    """
    options: dict[str, Any] = {
        "length": length,
        "only": only or None,
        "seeds": seeds,
        "steps": steps,
        "overrides": overrides or [],
        "tune": not no_tune,
        "out": out,
        "device": device,
        "workers": workers,
        "fla_path": fla_path,
    }
    talk = errors if as_json else console
    if only_plan:
        with _Shown(talk) as shown:
            found = plan(study, **options, residual_sd=residual_sd, watch=shown.tell)
        show_plan(found, as_json=as_json)
        return
    try:
        with _Shown(talk) as shown:
            analysis = run_study(
                study,
                **options,
                check=not no_check,
                track=track or [],
                watch=shown.tell,
                command=shlex.join(["attnlab", *sys.argv[1:]]),
            )
    except ViolatedPropertyError as error:
        talk.print(ResultsTable(error.checked), highlight=False)
        talk.print("[bold red]nothing was run[/bold red]; --no-check trains it as it is")
        raise typer.Exit(1) from None
    show(analysis, as_json)
    raise typer.Exit(1 if analysis.table.failures else 0)


class _Shown:
    """What happens, on a console: one thing at a time that lasts."""

    def __init__(self, talk: Console) -> None:
        self.talk = talk
        self.lasting = ExitStack()
        self.progress: StudyProgress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.lasting.close()

    def tell(self, said: Activity | Started | RunEvent | Notice) -> None:
        match said:
            case Activity(what):
                self.lasting.close()
                self.lasting.enter_context(status(escape(what), self.talk))
            case Started(schedule):
                self.lasting.close()
                _announce(schedule, self.talk)
                self.progress = self.lasting.enter_context(StudyProgress(schedule, self.talk))
            case RunEvent():
                assert self.progress is not None
                self.progress.show(said)
            case Notice(text):
                self.talk.print(text, markup=False)


def _announce(schedule: StudySchedule, talk: Console) -> None:
    study, verdict, tuning = schedule.study, schedule.verdict_count(), schedule.tuning_count()
    done = f", {verdict.done} of them done" if verdict.done else ""
    talk.print(f"[bold]{escape(study.question.strip().splitlines()[0])}[/bold]")
    talk.print(
        f"{_count(len(study.variants), 'variant')} x {_count(study.seeds, 'seed')} = "
        f"{_count(verdict.at_least, 'run')}{done}; results in {schedule.study_dir}",
        highlight=False,
    )
    if tuning.at_most:
        done = f", {tuning.done} of them done" if tuning.done else ""
        bounds = f"{tuning.at_least}"
        if tuning.at_most > tuning.at_least:
            bounds += f" to {tuning.at_most}"
        talk.print(f"before them {bounds} runs to tune learning rates{done}", highlight=False)


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
