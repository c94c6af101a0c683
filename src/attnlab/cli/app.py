"""The application that all commands share: its options, its output, its treatment of errors.

Command files import what they need inside the command, so that `attnlab --help` and the commands
that only read files do without torch.
"""

import shlex
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
import typer.core
from rich.console import Console
from rich.markup import escape

from attnlab.config import ConfigError, own_error
from attnlab.version import __version__

P = ParamSpec("P")
R = TypeVar("R")


class _InReadingOrder(typer.core.TyperGroup):
    """Lists the commands in the order in which a user needs them."""

    ORDER = (
        *("list", "doctor", "run", "extend", "report", "compare", "check", "bench"),
        *("generate", "export", "pack", "unpack"),
    )

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=self.ORDER.index)


app = typer.Typer(
    cls=_InReadingOrder,
    rich_markup_mode="markdown",
    help="Find out which attention mechanism your model should use.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
errors = Console(stderr=True)

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
RunArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="A run's folder, results/STUDY/VARIANT/seed-0.",
        show_default=False,
    ),
]


def reports_user_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Print a user's error as a message with exit code 2, an interrupt with exit code 130."""

    @wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except ConfigError as error:
            number = len(error.problems)
            settings = "setting" if number == 1 else "settings"
            errors.print(
                f"[bold red]error[/bold red]: {number} invalid {settings}; nothing was run"
            )
            for problem in error.problems:
                errors.print(f"  {escape(str(problem))}", highlight=False, soft_wrap=True)
            raise typer.Exit(2) from None
        except (ValueError, OSError) as error:
            errors.print(
                f"[bold red]error[/bold red]: {escape(str(error))}",
                highlight=False,
                soft_wrap=True,
            )
            raise typer.Exit(2) from None
        except (Exception, SystemExit) as error:
            if isinstance(error, typer.Exit | typer.Abort) or (own := own_error(error)) is None:
                raise
            verbatim(f"error: {own}", errors)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            errors.print("interrupted; run the same command again to continue")
            raise typer.Exit(130) from None

    return wrapper


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Find out which attention mechanism your model should use."""
    if show:
        sys.stdout.write(f"attnlab {__version__}\n")
        raise typer.Exit


def command_line() -> str:
    """Return the command as it was typed, for records."""
    return shlex.join(["attnlab", *sys.argv[1:]])


def verbatim(
    text: str, output: Console = console, *, style: str | None = None, end: str = "\n"
) -> None:
    """Print text without markup, number colours and line breaks of its own."""
    output.print(text, style=style, end=end, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def status(text: str, output: Console) -> Generator[None, None, None]:
    """Show what is being done, on a terminal, while it is being done."""
    if output.is_terminal:
        with output.status(escape(text)):
            yield
    else:
        yield
