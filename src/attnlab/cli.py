"""The command line: `attnlab run`, `attnlab check`, `attnlab list`, `attnlab report`.

Exit codes: 0 all is well; 1 a run failed or diverged, or a mechanism breaks a promise; 2 the
command or its settings are wrong, and nothing was spent; 130 interrupted, and what was done is
kept.
"""

import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from attnlab.analysis.table import Table
from attnlab.check.table import Verdicts, verdicts_as_json
from attnlab.check.targets import Checked, Target, of_study, targets
from attnlab.config import Choice, ConfigError
from attnlab.data import DataConfig, Places
from attnlab.data.tokenizer import Tokenizer
from attnlab.feedforward import FeedForward
from attnlab.launch import Planned, launch, plan, seats
from attnlab.mechanism import MechanismConfig
from attnlab.progress import StudyProgress
from attnlab.record import StudyRecord, to_json
from attnlab.report.files import results, write_report, write_results
from attnlab.report.terminal import TerminalReport
from attnlab.run import Ended
from attnlab.study import Study, load_study, shipped
from attnlab.version import __version__

P = ParamSpec("P")
R = TypeVar("R")

app = typer.Typer(
    help="Which attention mechanism should my model use?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
errors = Console(stderr=True)

OutOption = Annotated[Path | None, typer.Option(help="The study's folder.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print results as JSON, nothing else.")]


def main() -> None:
    """What the `attnlab` command calls."""
    app()


def told(command: Callable[P, R]) -> Callable[P, R]:
    """A user's mistake becomes a message and exit code 2; Ctrl-C a word on how to go on and 130."""

    @wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except ConfigError as error:
            errors.print(f"[bold red]{len(error.problems)} wrong[/bold red]; nothing was started")
            for problem in error.problems:
                errors.print(f"  {escape(str(problem))}", highlight=False, soft_wrap=True)
            raise typer.Exit(2) from None
        except (ValueError, OSError) as error:
            errors.print(f"[bold red]error[/bold red]: {escape(str(error))}", soft_wrap=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            errors.print("interrupted; the same command goes on from the last checkpoints")
            raise typer.Exit(130) from None

    return wrapper


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
    out: OutOption = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
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
    places = _places()
    talk = errors if as_json else console
    planned = plan(chosen, study_dir, _fingerprints(chosen, places, talk))
    left = dict.fromkeys(p.run.variant for p in planned if not p.ended)
    if left and not no_check:
        _refuse_what_is_broken(chosen.only(left), talk)
    _study_record(chosen, study_dir, checked=not (left and no_check)).write(study_dir)
    _announce(chosen, planned, study_dir, talk)
    events = launch(planned, study_dir, places, where)
    try:
        with closing(events), StudyProgress(planned, talk) as progress:
            for happened in events:
                progress.show(happened)
                if isinstance(happened.event, Ended):
                    write_results(study_dir)
    finally:  # an interrupted study has a report of what it did
        table = write_report(study_dir)
    _show(table, as_json)
    raise typer.Exit(1 if table.failures else 0)


@app.command()
@told
def check(
    what: Annotated[
        list[str],
        typer.Argument(
            help="all, a kind, file.py:Class, a study or its path; then settings: window=64 ...",
            show_default=False,
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Hold mechanisms against every promise of the contract: causality, decoding, cost, ...

    A kind is checked at small sizes, the variants of a study at their own.
    """
    settings = [word for word in what if "=" in word]
    asked = targets([word for word in what if "=" not in word], settings)
    if not asked:
        raise ValueError("name what to check: all, a kind, file.py:Class or a study")
    checked = _check(asked, errors if as_json else console)
    if as_json:
        sys.stdout.write(to_json(verdicts_as_json(checked)).decode())
    else:
        console.print(Verdicts(checked), highlight=False)
    raise typer.Exit(0 if all(one.holds for one in checked) else 1)


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """Name what can be asked for: studies, mechanisms, data, tokenizers, feed-forward layers."""
    families: dict[str, type[Choice]] = {
        "mechanisms": MechanismConfig,
        "data": DataConfig,
        "tokenizers": Tokenizer,
        "feed-forward": FeedForward,
    }
    studies = shipped()
    if as_json:
        kinds = {
            name: {kind: _fields(cls) for kind, cls in family.kinds.items()}
            for name, family in families.items()
        }
        described = {
            name: {"question": study.question.strip(), "variants": list(study.variants)}
            for name, study in studies.items()
        }
        sys.stdout.write(json.dumps({"studies": described, **kinds}, indent=2) + "\n")
        return
    grid = Grid(
        "study", "question", "variants", title="Studies: attnlab run NAME", title_justify="left"
    )
    for name, study in studies.items():
        grid.add_row(name, study.question.strip().splitlines()[0], ", ".join(study.variants))
    console.print(grid)
    for name, family in families.items():
        grid = Grid("kind", "what", "settings", title=name.capitalize(), title_justify="left")
        for kind, cls in family.kinds.items():
            settings = ", ".join(f"{key}={value}" for key, value in _fields(cls).items())
            grid.add_row(kind, _summary(cls), escape(settings))
        console.print(grid)


@app.command()
@told
def report(
    study_dir: Annotated[Path, typer.Argument(help="A study's folder.")],
    as_json: JsonOption = False,
) -> None:
    """Rebuild tables and figures of a study from its run folders."""
    _show(write_report(study_dir), as_json)


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Which attention mechanism should my model use?"""
    if show:
        sys.stdout.write(f"attnlab {__version__}\n")
        raise typer.Exit


def _places() -> Places:
    """Folders of data and cache: the only place where the environment is read for them."""
    data = os.environ.get("ATTNLAB_DATA")
    cache = os.environ.get("ATTNLAB_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return Places(
        data=Path(data).expanduser() if data else None,
        cache=Path(cache).expanduser() if cache else home / "attnlab",
    )


def _fingerprints(study: Study, places: Places, talk: Console) -> dict[str, str]:
    """Of each variant's data, which is read, tokenized and cached here, before any worker asks."""
    found: dict[DataConfig, str] = {}
    with talk.status("reading the data") if talk.is_terminal else closing(_Quiet()):
        for config in study.variants.values():
            if config.data not in found:
                found[config.data] = config.data.load(places).fingerprint
    return {name: found[config.data] for name, config in study.variants.items()}


class _Quiet:
    def close(self) -> None:
        """Nothing was shown."""


def _check(asked: list[Target], talk: Console, *, quick: bool = False) -> list[Checked]:
    checked = list[Checked]()
    for target in asked:
        with talk.status(f"checking {target.name}") if talk.is_terminal else closing(_Quiet()):
            checked.append(target.check(quick=quick))
    return checked


def _refuse_what_is_broken(study: Study, talk: Console) -> None:
    """Exit code 1, with what is wrong, if a mechanism of the study breaks a promise."""
    checked = _check(of_study(study), talk, quick=True)
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
        f"{len(study.variants)} variants x {study.seeds} seeds = {len(planned)} runs{done}; "
        f"results in {study_dir}",
        highlight=False,
    )


def _show(table: Table, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(results(table), indent=2) + "\n")
    else:
        console.print(TerminalReport(table))
        console.print(f"\nReport: {table.path / 'report.md'}", highlight=False, soft_wrap=True)


def _fields(cls: type[Choice]) -> Mapping[str, Any]:
    """Settings of a kind and their defaults; "required" where there is none."""

    def default(field: "dataclasses.Field[Any]") -> Any:
        if field.default is not dataclasses.MISSING:
            return field.default
        if field.default_factory is not dataclasses.MISSING:
            made = field.default_factory()
            return made.to_dict() if isinstance(made, Choice) else made
        return "required"

    return {field.name: default(field) for field in dataclasses.fields(cls)}


def _summary(cls: type[Choice]) -> str:
    """The first sentence of the file that a kind has to itself, or of its class."""
    module = sys.modules[cls.__module__]
    own_file = module.__name__.rpartition(".")[2] == cls.name()
    text = (module.__doc__ if own_file else cls.__doc__) or ""
    return " ".join(text.split("\n\n")[0].split()).split(". ")[0].rstrip(".:")
