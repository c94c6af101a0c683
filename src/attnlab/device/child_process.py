"""Child processes that never outlive their parent, whatever ends it and whatever they are doing.

On Linux the kernel ends a child with its parent, even in the middle of a long call of BLAS or CUDA,
in which no thread of Python runs. Elsewhere a thread looks for the parent twice per second.

The signals that a terminal or a batch system sends to a group are the parent's business: children
ignore Ctrl-C and hang-ups, and SIGTERM ends them without a word. The parent then ends those that
are left. This module does without torch, so that a child is safe before it imports anything.

What the user's code prints would break bars, tables and text. `Printed` keeps the first lines
instead; a child sends them by its pipe.
"""

import ctypes
import gc
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from importlib import import_module
from itertools import islice
from multiprocessing.connection import Connection, Pipe
from typing import Any, TypeVar

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
START = "from attnlab.device.child_process import main; main()"
MOST_LINES, MOST_LETTERS = 3, 200  # of what is printed
T = TypeVar("T")
_SET_PARENT_DEATH_SIGNAL = 1  # of prctl(2)
_LIBRARY = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded before any fork


class ChildProcess:
    """A Python process that calls a function with one end of a pipe; `pipe` is the other end.

    It does not import the calling script, which may come from standard input and has no need of
    `if __name__ == "__main__"`.
    """

    def __init__(self, target: str, *, silent: bool = False) -> None:
        """Start the process.

        Args:
            target: the function, as `package.module:function`.
            silent: True to discard what it prints.
        """
        self.pipe, theirs = Pipe()
        output = subprocess.DEVNULL if silent else None
        with theirs, signals_blocked():
            self._process = subprocess.Popen(
                [sys.executable, "-c", START, str(os.getpid()), str(theirs.fileno()), target],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def wait(self) -> int:
        """Wait for the end of the process, and return its exit code, or minus its signal."""
        return self._process.wait()

    def end(self, *, within_seconds: float = 0.0) -> None:
        """Close the pipe, and kill the process unless it ends by itself in some seconds."""
        self.pipe.close()
        try:
            self._process.wait(within_seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Printed(io.RawIOBase):
    """The first lines that are printed, each once."""

    name = "prints"  # of the file, which every stream has

    def __init__(self) -> None:
        super().__init__()
        self._lines, self._last = dict[str, bool](), ""  # whether a line was taken; an unended one
        self._stream = io.TextIOWrapper(
            self, "utf-8", errors="backslashreplace", write_through=True
        )

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        content = bytes(data)
        if len(self._lines) <= MOST_LINES:
            text = self._last + content.decode(errors="replace")
            *lines, last = text.replace("\r", "\n").split("\n")
            self._last = last[:MOST_LETTERS]
            for line in lines:
                self._add(line)
        return len(content)

    @contextmanager
    def kept(self) -> Generator[None]:
        """Keep what is printed inside, in place of printing it."""
        with redirect_stdout(self._stream), redirect_stderr(self._stream):
            yield

    def while_making(self, items: Iterator[T]) -> Iterator[T]:
        """Yield the items; keep what is printed while each of them is made."""
        while True:
            with self.kept():
                found = list(islice(items, 1))
            if not found:
                return
            yield found[0]

    def take(self) -> list[str]:
        """Return messages about what was printed since the last call."""
        self._add(self._last)
        new = [(n, line) for n, (line, taken) in enumerate(self._lines.items()) if not taken]
        self._lines, self._last = dict.fromkeys(self._lines, True), ""
        return [
            f"prints: {line}" if n < MOST_LINES else "prints more, which is not shown"
            for n, line in new
        ]

    def _add(self, line: str) -> None:
        if line.strip() and len(self._lines) <= MOST_LINES:
            self._lines.setdefault(line.strip()[:MOST_LETTERS], False)


def main() -> None:
    """Call the function that a `ChildProcess` names, in that process."""
    parent, handle, target = sys.argv[1:]
    begin_child(int(parent))
    module, _, name = target.partition(":")
    with suppress(EOFError, ConnectionError), Connection(int(handle)) as pipe:  # it was closed
        getattr(import_module(module), name)(pipe)
    gc.freeze()  # else the interpreter searches all that was imported for garbage: 0.3 seconds


@contextmanager
def signals_blocked() -> Generator[None]:
    """Start a process inside: signals reach it after `begin_child`, and this one afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin_child(parent: int) -> None:
    """Leave signals to the parent, and end with it. Call it first in a child, started or forked."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    end_with_parent(parent)


def end_with_parent(parent: int) -> None:
    """End this process with the process `parent`, which has started it.

    On Linux it also ends with the thread of the parent that has started it.
    """
    if _LIBRARY is None or _LIBRARY.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0) != 0:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it has ended before
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
