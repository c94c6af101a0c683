"""`attnlab run`: train every variant of a study that is not trained yet, and compare them."""

import dataclasses
import shlex
import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from attnlab.agenda import Agenda
from attnlab.check.table import Verdicts
from attnlab.check.targets import of_study
from attnlab.cli.app import DeviceOption, JsonOption, app, console, errors, places, told
from attnlab.cli.check import check_all
from attnlab.cli.plan import corpora, show_plan
from attnlab.cli.report import show
from attnlab.launch import launch, seats
from attnlab.plan import plan
from attnlab.progress import StudyProgress
from attnlab.record import StudyRecord
from attnlab.report.files import write_report, write_results
from attnlab.run import Ended
from attnlab.study import Study, load_study
from attnlab.tracking import Tracker


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
        bool, typer.Option("--plan", help="Say what it would take, and train nothing.")
    ] = False,
    spread: Annotated[
        float | None,
        typer.Option(help="For --plan: standard deviation of a run's loss.", show_default=False),
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(help="Mirror metrics to tensorboard or wandb; may be repeated."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train every variant of STUDY that is not trained yet, and compare them.

    The mechanisms are checked first; nothing is trained where one breaks a promise. Where the study
    tunes learning rates, each variant's is chosen next, on validation data and a seed of its own.
    """
    chosen = _asked(study, length, only, seeds, steps, overrides or [])
    if no_tune:
        chosen = dataclasses.replace(chosen, learning_rates=None)
    study_dir = out or Path("results") / chosen.name
    where_data_is, talk = places(), errors if as_json else console
    where = seats(device, chosen.fewest_runs(), workers)
    if only_plan:
        show_plan(chosen, study_dir, where_data_is, where, spread, as_json=as_json)
        return

    tracker = Tracker(track or [], study_dir, lambda text: talk.print(text, markup=False))
    read = corpora(chosen, where_data_is, talk)
    agenda = plan(chosen, study_dir, {name: corpus.fingerprint for name, corpus in read.items()})
    left = agenda.left()
    if left and not no_check:
        _refuse_what_is_broken(chosen.only(left), talk)
    _record(chosen, study_dir, checked=not no_check, trains=bool(left)).write(study_dir)
    _announce(agenda, talk)
    events = launch(agenda, study_dir, where_data_is, where)
    try:
        with closing(events), StudyProgress(agenda, talk) as progress, tracker:
            for happened in events:
                progress.show(happened)
                tracker.follow(happened.run.folder(study_dir))
                if isinstance(happened.event, Ended) and not happened.run.tunes:
                    write_results(study_dir)
    finally:  # an interrupted study has a report of what it did
        analysis = write_report(study_dir)
    show(analysis, as_json)
    raise typer.Exit(1 if analysis.table.failures else 0)


def _asked(
    name: str,
    length: str | None,
    only: str | None,
    seeds: int | None,
    steps: int | None,
    overrides: list[str],
) -> Study:
    """The study with what the command line changes."""
    study = load_study(name)
    if length:
        study = study.at_length(length)
    if only:
        study = study.only(variant.strip() for variant in only.split(","))
    if seeds is not None:
        study = dataclasses.replace(study, seeds=seeds)
    return study.override(overrides if steps is None else [f"train.steps={steps}", *overrides])


def _refuse_what_is_broken(study: Study, talk: Console) -> None:
    """Exit code 1, with what is wrong, if a mechanism of the study breaks a promise."""
    checked = check_all(of_study(study), talk, quick=True)
    broken = [one for one in checked if not one.holds]
    if broken:
        talk.print(Verdicts(broken), highlight=False)
        talk.print("[bold red]nothing was trained[/bold red]; --no-check trains it as it is")
        raise typer.Exit(1)


def _record(study: Study, study_dir: Path, *, checked: bool, trains: bool) -> StudyRecord:
    """What the folder's record says from now on. Where all runs have ended, how they came to be
    stays as it was written then.
    """
    command = shlex.join(["attnlab", *sys.argv[1:]])
    record = study.record(command=command, checked=checked).joined(study_dir)
    if trains or not (study_dir / "study.json").is_file():
        return record
    before = StudyRecord.read(study_dir)
    return dataclasses.replace(
        record,
        command=before.command,
        attnlab_version=before.attnlab_version,
        checked=before.checked,
    )


def _announce(agenda: Agenda, talk: Console) -> None:
    study, verdict, tuning = agenda.study, agenda.verdict_count(), agenda.tuning_count()
    done = f", {verdict.ended} of them done" if verdict.ended else ""
    talk.print(f"[bold]{escape(study.question.strip().splitlines()[0])}[/bold]")
    talk.print(
        f"{_count(len(study.variants), 'variant')} x {_count(study.seeds, 'seed')} = "
        f"{_count(verdict.at_least, 'run')}{done}; results in {agenda.study_dir}",
        highlight=False,
    )
    if tuning.at_most:
        done = f", {tuning.ended} of them done" if tuning.ended else ""
        bounds = f"{tuning.at_least}"
        if tuning.at_most > tuning.at_least:
            bounds += f" to {tuning.at_most}"
        talk.print(f"before them {bounds} runs to tune learning rates{done}", highlight=False)


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
