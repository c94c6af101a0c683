"""The application that all commands share: its options, how numbers are read, and errors.

Numbers are read as settings are: `--steps 10k` is 10,240 steps.

Command files import what they need inside the command, so that `attnlab --help` and the commands
that only read files do without torch.
"""

import math
import shlex
import signal
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar, get_args, get_type_hints

import typer
import typer.core
from typer.models import OptionInfo

from attnlab.cli.console import (
    console,
    error,
    errors,
    results_alone,
    verbatim,
    write,
)
from attnlab.cli.early_end import (
    UsageError,
    exit_code,
    in_words,
    of_limits,
    of_links,
    of_names,
    of_system,
    require_options_once,
)
from attnlab.config import ConfigError, own_error, whole_number
from attnlab.config.values import MOST_DIGITS
from attnlab.record import PUBLISHED
from attnlab.version import __version__

P = ParamSpec("P")
R = TypeVar("R")
N = TypeVar("N", int, float)


class _Commands(typer.core.TyperGroup):
    """The commands, in the order in which a user needs them; an error of usage is one line."""

    ORDER = (
        *(
            "list",
            "doctor",
            "run",
            "train",
            "extend",
            "report",
            "compare",
            "check",
            "bench",
            "probe",
            "reproduce",
        ),
        *("generate", "eval", "export", "pack", "unpack"),
    )

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=self.ORDER.index)

    def main(self, args: Any = None, *rest: Any, **options: Any) -> Any:
        given, code = sys.argv[1:] if args is None else list(args), 0
        try:
            require_options_once(self.commands, given)
            code = super().main(given, *rest, **{**options, "standalone_mode": False})
            if code == 128 + signal.SIGINT:  # typer takes any signal for Ctrl-C
                code = exit_code()
        except UsageError as problem:
            if given:  # without arguments the help has been printed
                command = ["attnlab", *[word for word in given if word in self.commands][:1]]
                error(f"{in_words(problem)} ({' '.join(command)} --help lists what it takes)")
            code = 2
        except OSError as problem:  # of the help, which typer prints
            console.refused = problem
        if console.refused is not None:
            error(f"the standard output is incomplete: {of_system(console.refused)}")
            code = code or 2
        sys.exit(code or 0)  # commands return None


app = typer.Typer(
    cls=_Commands,
    rich_markup_mode="markdown",
    help="Find out which attention mechanism your model should use.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
)


def whole(low: int | None = None, high: int | None = None) -> Callable[[str], int]:
    """Return the parser of an option whose value is a whole number from `low` to `high`."""

    def parse(text: str) -> int:
        value = whole_number(str(text))  # a default is a number already
        if value is None:
            raise _unfit("a whole number, such as 500 or 10k", text)
        if abs(value) >= 10**MOST_DIGITS:
            raise typer.BadParameter(f"must have at most {MOST_DIGITS} digits")
        return _bounded(value, low, high)

    return parse


def decimal(low: float | None = None) -> Callable[[str], float]:
    """Return the parser of an option whose value is a finite number, at least `low`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise _unfit("a number, such as 0.5", text) from None
        if not math.isfinite(value):
            raise _unfit("a finite number", text)
        return _bounded(value, low, None)

    return parse


def _bounded(value: N, low: N | None, high: N | None) -> N:
    if low is not None and value < low:
        raise typer.BadParameter(f"must be at least {low:,}, got {value:,}")
    if high is not None and value > high:
        raise typer.BadParameter(f"must be at most {high:,}, got {value:,}")
    return value


def _unfit(expected: str, text: str) -> typer.BadParameter:
    return typer.BadParameter(f"expected {expected}; got {text!r}")


StudyArgument = Annotated[
    str,
    typer.Argument(
        metavar="STUDY", help="A shipped study's name, or a Python file.", show_default=False
    ),
]
StepsOption = Annotated[
    int | None,
    typer.Option(help="Train for this number of steps.", parser=whole(), metavar="N"),
]
SeedsOption = Annotated[
    int | None,
    typer.Option(help="Train this number of seeds per variant.", parser=whole(), metavar="N"),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        help="Train this number of runs at the same time.",
        parser=whole(),
        metavar="N",
        show_default="one per GPU or CPU core",
    ),
]


def size_option(what: str, default: str) -> Any:
    """Return an option for one size of the model that a mechanism is put into."""
    text = f"Set the {what} of a mechanism's model."
    return typer.Option(help=text, parser=whole(1), metavar="N", show_default=default)


JsonOption = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]
FlaPathOption = Annotated[
    Path | None,
    typer.Option(
        "--fla-path",
        metavar="DIR",
        help="Use this local clone of flash-linear-attention instead of the installed package.",
        show_default="ATTNLAB_FLA_PATH",
    ),
]
DeviceOption = Annotated[
    str, typer.Option(metavar="DEVICE", help="Use this device: auto, cpu, cuda or cuda:1.")
]
BestOption = Annotated[
    bool, typer.Option("--best", help="Use the weights with the lowest validation loss.")
]
TrustOption = Annotated[
    bool,
    typer.Option("--trust", help="Execute the code that the folder carries in sources/."),
]


def stored(given: Path) -> Path:
    """Return a folder of results: the path, or one of this name in results/ or published/."""
    if given.is_absolute() or given.exists():
        return given
    for home in (Path("results"), Path(PUBLISHED)):
        if (home / given).exists():
            verbatim(f"{given}: {home / given}", errors)
            return home / given
    return given


RunArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="A run's folder, results/STUDY/VARIANT/seed-0.",
        show_default=False,
    ),
]


def _as_typed(message: str, command: Callable[..., Any]) -> str:
    """Return a message about an argument with the option in its place: `--most-seeds: ...`."""
    name, colon, rest = message.partition(":")
    for argument, hint in get_type_hints(command, include_extras=True).items():
        for option in (it for it in get_args(hint) if isinstance(it, OptionInfo)):
            declared = (option.default, *(option.param_decls or ()))  # the first, in Annotated
            named = [it for it in declared if isinstance(it, str) and it.startswith("--")]
            typed = named[0] if named else f"--{argument.replace('_', '-')}"
            if colon and name in (argument, typed.lstrip("-")):
                return f"{typed}:{rest}"
    return message


def reports_user_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Print a user's error as a message, with exit code 2; an interrupt has that of its signal."""

    @wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with results_alone():
                return command(*args, **kwargs)
        except ConfigError as problem:
            number = len(problem.problems)
            settings = "setting" if number == 1 else "settings"
            lines = (_as_typed(str(each), command) for each in problem.problems)
            error(f"{number} invalid {settings}; nothing was run", *lines)
            raise typer.Exit(2) from None
        except OSError as problem:
            error(of_system(problem))
            raise typer.Exit(2) from None
        except UnicodeEncodeError as problem:
            error(of_names(problem))
            raise typer.Exit(2) from None
        except ValueError as problem:
            error(_as_typed(str(problem), command))
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            verbatim("interrupted; run the same command again to continue", errors)
            raise typer.Exit(exit_code()) from None
        except BaseException as problem:
            if isinstance(problem, typer.Exit | typer.Abort):
                raise
            said = own_error(problem) or of_links(problem) or of_limits(problem)
            if said is None:
                raise
            error(said)
            raise typer.Exit(2) from None

    return wrapper


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Find out which attention mechanism your model should use."""
    if show:
        write(f"attnlab {__version__}\n")
        raise typer.Exit


def folder(given: str | None) -> Path | None:
    """Return the folder that --out names. Raises ValueError if it names none."""
    if given is not None and not given.strip():
        raise ValueError("--out: no folder is named; . is the current one")
    return None if given is None else Path(given)


def command_line() -> str:
    """Return the command as it was typed, for records."""
    return shlex.join(["attnlab", *sys.argv[1:]])
