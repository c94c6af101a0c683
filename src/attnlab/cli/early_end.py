"""The early end of a command: by an error of usage, in one line, or by a signal.

SIGINT (Ctrl-C), SIGTERM and SIGHUP are treated alike. The first one raises `Interrupted`, so that
workers are stopped and a study has a report. A second one ends the process at once. The exit code
is 128 and the number of the signal.
"""

import os
import re
import signal
from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import FrameType
from typing import Any

import typer

from attnlab.cli.console import console, errors
from attnlab.config.problem import nearest

UsageError: Any = typer.BadParameter.__mro__[1]  # of the parser of arguments; also its base
_received = list[int]()  # a library may turn `Interrupted` into a plain KeyboardInterrupt
ENDING = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


def require_options_once(commands: Mapping[str, Any], given: Sequence[str]) -> None:
    """Raise UsageError for an option with several values, of which the parser takes the last.

    Args:
        commands: the commands, by name.
        given: the words of the command line.
    """
    command = next((commands[word] for word in given if word in commands), None)
    words = [*given, ""]
    for option in () if command is None else command.params:
        if option.nargs != 1 or getattr(option, "multiple", False):
            continue
        if getattr(option, "is_flag", False):
            both = [name for name in (*option.opts, *option.secondary_opts) if name in given]
            if set(both) & set(option.opts) and set(both) & set(option.secondary_opts):
                names = " and ".join(f"'{name}'" for name in both)
                raise UsageError(f"options {names} exclude each other")
            continue
        values = dict[str, None]()
        for word, after in pairwise(words):
            name, equals, value = word.partition("=")
            if name in option.opts and name.startswith("-"):
                values[value if equals else after] = None
        if len(values) > 1:
            said = " and ".join(values)
            raise UsageError(f"option {option.opts[0]!r} is given twice, as {said}; give it once")


def in_words(problem: Any) -> str:
    """Return what is wrong with the arguments of a command, in one line."""
    if hasattr(problem, "possibilities"):  # of an unknown option, whose class is not public
        name, options = problem.option_name, problem.ctx.command.params
        close = nearest(name, [each for option in options for each in option.opts])
        return f"no option {name}{f'; did you mean {close!r}?' if close else ''}"
    if unreadable := re.search(r"[Pp]ath ('.*') is not readable", str(problem)):
        return f"{unreadable[1]}: permission denied; change its permissions, or name another place"
    if isinstance(problem, typer.BadParameter) and problem.param is not None and problem.message:
        return f"{problem.param.opts[0]}: {problem.message}"
    message = " ".join(problem.format_message().split()).rstrip(".")
    for found, said in _USAGE.items():
        message = re.sub(found, said, message)
    return message[:1].lower() + message[1:]


_USAGE = {  # of the parser of arguments, in our form
    r"No such command ('[^']*')\.? ?": r"no command \1",
    r"Did you mean ('[^']*')\?": r"; did you mean \1?",
    r"Got unexpected extra argument.* \((.*)\)": r"unexpected \1",
}


class Interrupted(KeyboardInterrupt):
    """The user, or the system, has asked for the end of the command."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(self.signal.name)


def raise_on_signals() -> None:
    """Raise `Interrupted` at the first signal. One that is ignored, as under nohup, stays so."""
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _first)


def exit_code() -> int:
    """Return the exit code of a command that was interrupted."""
    return 128 + (_received[0] if _received else signal.SIGINT)


def end_on_signals() -> None:
    """Let a signal end the process at once, without a word: the command has ended."""
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _first(number: int, frame: FrameType | None) -> None:
    del frame
    _received.append(number)
    for again in ENDING:
        if signal.getsignal(again) is not signal.SIG_IGN:
            signal.signal(again, _second)
    raise Interrupted(number)


def _second(number: int, frame: FrameType | None) -> None:
    del frame
    for output in (console, errors):
        if output.animated:
            output.show_cursor(True)
    os._exit(128 + number)
