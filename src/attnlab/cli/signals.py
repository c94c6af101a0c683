"""Signals that end a command: SIGINT (Ctrl-C), SIGTERM and SIGHUP are treated alike.

The first one raises `Interrupted`, so that workers are stopped and a study has a report. A second
one ends the process at once. The exit code is 128 and the number of the signal.
"""

import os
import signal
from types import FrameType

from attnlab.cli.console import console, errors

_received = list[int]()  # a library may turn `Interrupted` into a plain KeyboardInterrupt
ENDING = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


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
