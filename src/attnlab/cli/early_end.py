"""The early end of a command: by an error of usage or of the system, in one line, or by a signal.

SIGINT (Ctrl-C), SIGTERM and SIGHUP are treated alike. The first one raises `Interrupted`, so that
workers are stopped and a study has a report. A second one ends the process at once. The exit code
is 128 and the number of the signal.
"""

import errno
import os
import re
import signal
from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import FrameType
from typing import Any

import typer

from attnlab.cli.console import console, errors, first_line
from attnlab.config import is_out_of_memory
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
        return of_system(OSError(errno.EACCES, "permission denied", unreadable[1]))
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


def of_system(problem: OSError) -> str:
    """Return what the operating system refused: where, what, and what can be done."""
    where = "" if problem.filename is None else f"{problem.filename}: "
    remedy = next((text for codes, text in _REMEDIES.items() if problem.errno in codes), "")
    return f"{where}{problem.strerror or problem}{remedy}"


_REMEDIES = {
    (errno.ENOSPC, errno.EDQUOT): "; free disk space, or write to another disk",
    (errno.EACCES, errno.EPERM, errno.EROFS): "; change its permissions, or name another place",
    (errno.ENOENT,): "; name a place that exists",
    (errno.ENOTDIR,): "; a file stands where this path has a folder: move it away",
    (errno.EISDIR,): "; a folder stands where a file belongs: move it away",
    (errno.ENAMETOOLONG,): "; use a shorter name",
    (errno.ELOOP,): "; replace the link that leads to itself",
    (errno.EIO,): "; check the disk, or name another place",
    (errno.EFBIG,): "; raise the limit of ulimit -f, or write to another disk",
    (errno.ENOMEM,): "; end other programs, or raise the limit of ulimit -v",
    (errno.EAGAIN, errno.EMFILE, errno.ENFILE): (
        "; end other programs, use fewer --workers, or raise the limits of ulimit -u and -n"
    ),
}


def of_links(problem: BaseException) -> str | None:
    """Return the name of a link that leads to itself, which `Path.resolve` refuses; else None."""
    found = re.fullmatch(r"Symlink loop from '(.*)'", str(problem))  # up to Python 3.12
    return found and f"{found[1]}: the link leads to itself; replace it by what it should lead to"


def of_limits(problem: BaseException) -> str | None:
    """Return which limit of memory or threads was met, and what can be done; else None."""
    if isinstance(problem, RuntimeError) and "start new thread" in str(problem):
        return of_system(OSError(errno.EAGAIN, str(problem)))
    if is_out_of_memory(problem):
        return of_system(OSError(errno.ENOMEM, first_line(str(problem)) or "not enough memory"))
    return None


def of_names(problem: UnicodeEncodeError) -> str:
    """Return the name that an encoding cannot write, and what can be done."""
    name = problem.object[max(problem.start - 40, 0) : problem.end + 40]
    lacks = f"{name!r} has characters that {problem.encoding} cannot write"
    return f"{lacks}; use other names, or PYTHONUTF8=1 if the locale is not of UTF-8"
