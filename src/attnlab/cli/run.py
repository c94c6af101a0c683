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

from attnlab.check.table import Verdicts
from attnlab.check.targets import of_study
from attnlab.cli.app import DeviceOption, JsonOption, app, console, errors, places, status, told
from attnlab.cli.check import check_all
from attnlab.cli.report import show
from attnlab.data import DataConfig, Places
from attnlab.launch import Planned, launch, plan, seats
from attnlab.progress import StudyProgress
from attnlab.record import StudyRecord
from attnlab.report.files import write_report, write_results
from attnlab.run import Ended
from attnlab.study import Study, load_study
from attnlab.version import __version__


@app.command()
@told
def run(  # noqa: PLR0913  one parameter an option
    study: Annotated[str, typer.Argument(help="A shipped study's name, or a Python file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings to change: train.steps=100 ...")
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
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Train without checking the mechanisms first.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train every variant of STUDY that is not trained yet, and compare them.

    The mechanisms are checked first; nothing is trained where one breaks a promise.
    """
    chosen = load_study(study)
    if only:
        chosen = chosen.only(name.strip() for name in only.split(","))
    if seeds is not None:
        chosen = dataclasses.replace(chosen, seeds=seeds)
    changes = list(overrides or [])
    if steps is not None:
        changes.insert(0, f"train.steps={steps}")
    chosen = chosen.override(changes)
    study_dir = out or Path("results") / chosen.name

    where = seats(device, len(chosen.runs()), workers)
    where_data_is = places()
    talk = errors if as_json else console
    planned = plan(chosen, study_dir, _fingerprints(chosen, where_data_is, talk))
    left = dict.fromkeys(p.run.variant for p in planned if not p.ended)
    if left and not no_check:
        _refuse_what_is_broken(chosen.only(left), talk)
    if left or not (study_dir / "study.json").is_file():  # else the record stays that of its runs
        _study_record(chosen, study_dir, checked=not no_check).write(study_dir)
    _announce(chosen, planned, study_dir, talk)
    events = launch(planned, study_dir, where_data_is, where)
    try:
        with closing(events), StudyProgress(planned, talk) as progress:
            for happened in events:
                progress.show(happened)
                if isinstance(happened.event, Ended):
                    write_results(study_dir)
    finally:  # an interrupted study has a report of what it did
        table = write_report(study_dir)
    show(table, as_json)
    raise typer.Exit(1 if table.failures else 0)


def _fingerprints(study: Study, places: Places, talk: Console) -> dict[str, str]:
    """Of each variant's data, which is read, tokenized and cached here, before any worker asks."""
    found: dict[DataConfig, str] = {}
    with status("reading the data", talk):
        for config in study.variants.values():
            if config.data not in found:
                found[config.data] = config.data.load(places).fingerprint
    return {name: found[config.data] for name, config in study.variants.items()}


def _refuse_what_is_broken(study: Study, talk: Console) -> None:
    """Exit code 1, with what is wrong, if a mechanism of the study breaks a promise."""
    checked = check_all(of_study(study), talk, quick=True)
    broken = [one for one in checked if not one.holds]
    if broken:
        talk.print(Verdicts(broken), highlight=False)
        talk.print("[bold red]nothing was trained[/bold red]; --no-check trains it as it is")
        raise typer.Exit(1)


def _study_record(study: Study, study_dir: Path, *, checked: bool) -> StudyRecord:
    """What the folder's study is now: this study, and any variant that the folder has besides."""
    names, seeds = list(study.variants), set(range(study.seeds))
    if (study_dir / "study.json").is_file():
        before = StudyRecord.read(study_dir)
        names = [*before.variants, *(name for name in names if name not in before.variants)]
        seeds |= set(before.seeds)
        checked = checked and before.checked
    assert study.baseline is not None
    return StudyRecord(
        name=study.name,
        question=study.question,
        baseline=study.baseline,
        variants=tuple(names),
        seeds=tuple(sorted(seeds)),
        command=shlex.join(["attnlab", *sys.argv[1:]]),
        attnlab_version=__version__,
        checked=checked,
    )


def _announce(study: Study, planned: list[Planned], study_dir: Path, talk: Console) -> None:
    left = sum(not p.ended for p in planned)
    done = f", {len(planned) - left} of them done" if left < len(planned) else ""
    talk.print(f"[bold]{escape(study.question.strip().splitlines()[0])}[/bold]")
    talk.print(
        f"{_count(len(study.variants), 'variant')} x {_count(study.seeds, 'seed')} = "
        f"{_count(len(planned), 'run')}{done}; "
        f"results in {study_dir}",
        highlight=False,
    )


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
