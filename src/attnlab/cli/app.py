"""What all commands share: the application, where it prints, what it does with mistakes."""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from attnlab.config import ConfigError
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

JsonOption = Annotated[bool, typer.Option("--json", help="Print results as JSON, nothing else.")]
FlaPathOption = Annotated[
    Path | None,
    typer.Option(
        "--fla-path",
        help="A clone of flash-linear-attention to use in place of the installed package.",
        show_default="ATTNLAB_FLA_PATH",
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")]
BestOption = Annotated[
    bool, typer.Option("--best", help="The weights of the lowest validation loss, not the last.")
]


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


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Which attention mechanism should my model use?"""
    if show:
        sys.stdout.write(f"attnlab {__version__}\n")
        raise typer.Exit


def verbatim(
    text: str, talk: Console = console, *, style: str | None = None, end: str = "\n"
) -> None:
    """Print text as it stands: brackets are no markup, numbers have no colour, lines stay whole."""
    talk.print(text, style=style, end=end, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def status(text: str, talk: Console) -> Generator[None, None, None]:
    """Say what is going on, on a terminal, for as long as it does."""
    if talk.is_terminal:
        with talk.status(text):
            yield
    else:
        yield
