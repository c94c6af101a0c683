"""Errors of usage: arguments that a command does not take, each in one line."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import typer

from attnlab.config import suggestion

UsageError: Any = typer.BadParameter.__mro__[1]  # of the parser of arguments; also its base


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
        name, close = problem.option_name, problem.possibilities
        return f"no option {name}{suggestion(name, close) if close else ''}"
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
