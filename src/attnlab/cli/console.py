"""Output to terminals, files and pipes: the only place that prints.

Text is printed as it is: brackets are no markup, and `:name:` no emoji. Styled parts are `Text`.
Control characters are shown, since a terminal would obey them, or the reader of a log.
A character that the encoding lacks is replaced by a similar one. A pipe whose reader has gone, as
in `attnlab list | head`, swallows the rest: it ends neither a study nor a command. So does a file
on a full disk or a terminal that is gone, but the command then ends with an error. What the user's
own code prints goes to the standard error stream, so that results can be read by a program.
"""

import codecs
import os
import sys
import time
import unicodedata
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager, redirect_stdout
from io import TextIOWrapper
from threading import Event, RLock, Thread
from types import TracebackType
from typing import IO, Any, Self

from rich.console import Console, ConsoleOptions, RenderableType
from rich.constrain import Constrain
from rich.measure import Measurement
from rich.progress import Progress, ProgressColumn, Task
from rich.segment import Segment
from rich.text import Text

from attnlab.config import visible

_WIDTH = 80  # characters per line where the width is not known
_UNLIMITED = 100_000
SILENT_SECONDS = 60.0  # where bars cannot be drawn
SIMILAR = {
    **{"–": "-", "—": "-", "−": "-", "‐": "-", "─": "-", "…": "...", "·": "."},
    **{"±": "+-", "×": "x", "≥": ">=", "≤": "<=", "≈": "~", "→": "->", "Δ": "delta"},
    **{"µ": "u", "│": "|", "┃": "|", "━": "=", "’": "'", "‘": "'", "“": '"', "”": '"'},
}


class Output(Console):
    """A console that prints text as it is, and survives the end of the pipe that it writes to."""

    def __init__(self, **options: Any) -> None:
        """Take the options of rich's `Console`."""
        super().__init__(markup=False, emoji=False, highlight=False, **options)
        self.printed = time.monotonic()  # when the last line was printed
        self.refused: OSError | None = None  # why the stream takes no more, unless its reader left
        if self.width < 1:  # with COLUMNS=0, as some programs set it, nothing would be printed
            self.width = _WIDTH

    @property
    def animated(self) -> bool:
        """True if lines can be drawn again: a terminal, and not a dumb one."""
        return self.is_terminal and not self.is_dumb_terminal

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text whose width, as in a table, is that of the characters that are shown."""
        return super().render_str(visible(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yield what is printed, without a control character from any text."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich's `Console` does, and remember when."""
        with self.outliving_stream():
            super().print(*objects, **options)
        self.printed = time.monotonic()

    def print_table(self, table: RenderableType) -> None:
        """Print a table, and text beside it: in a file or a pipe, no line is broken or cut."""
        if self.is_terminal:
            self.print(table)
            return
        unlimited = self.options.update(width=_UNLIMITED)
        width = Measurement.get(self, unlimited, table).maximum
        for line in self.render_lines(table, self.options.update(width=width), pad=False):
            verbatim("".join(segment.text for segment in line).rstrip(), self)

    @contextmanager
    def kept_stream(self) -> Generator[None]:
        """Print to the stream of now, even if `sys.stdout` or `sys.stderr` is replaced inside."""
        before, self._file = self._file, self.file
        try:
            yield
        finally:
            self._file = before

    @contextmanager
    def outliving_stream(self) -> Generator[None]:
        """Go on where the stream refuses what is written to it inside: the work matters more."""
        try:
            yield
        except BrokenPipeError:
            self.on_broken_pipe()
        except OSError as error:
            self.refused = error
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        """Print nothing from now on."""
        self.quiet = True
        _discard(self.file)


class Bars(Progress):
    """Bars of rich that are drawn anew a few times a second, never while a line is printed.

    Who prints above them holds `lock`: rich's own thread counts the lines of the bars while another
    prints, and then erases one too many. The last columns stay free, since an echoed ^C there would
    start a line of its own.

    Where they cannot be drawn, a line says what they would show whenever none was printed for long.
    """

    def __init__(self, output: Output, *columns: ProgressColumn, **options: Any) -> None:
        self.lock, self._output, self._stopped = RLock(), output, Event()
        self._refresher = Thread(target=self._refresh, daemon=True)
        super().__init__(*columns, console=output, auto_refresh=False, **options)

    def start(self) -> None:
        """Show the bars, on a terminal."""
        super().start()
        self._refresher.start()

    def stop(self) -> None:
        """Remove the bars."""
        self._stopped.set()
        if self._refresher.is_alive():
            self._refresher.join()
        super().stop()

    def get_renderable(self) -> RenderableType:
        return Constrain(super().get_renderable(), max(self._output.width - 3, 1))

    def left(self) -> str:
        """Return the time that the first bar still takes, as the end of a line; empty if unknown.

        It is left out if it is short.
        """
        seconds = self.tasks[0].time_remaining or 0.0
        if seconds < 60:
            return ""
        from attnlab.analysis import numbers  # imports scipy, which takes half a second

        return f"; about {numbers.duration(seconds)} left"

    def _refresh(self) -> None:
        while not self._stopped.wait(0.25):
            with self.lock:
                self.refresh()
                if self.disable and time.monotonic() - self._output.printed > SILENT_SECONDS:
                    verbatim(f"{'; '.join(map(_in_words, self.tasks))}{self.left()}", self._output)


def _in_words(task: Task) -> str:
    steps = "" if task.total is None else f" {task.completed:.0f}/{task.total:.0f}"
    return f"{task.description}{steps} {task.fields['rate']}"


console = Output()
errors = Output(stderr=True)


def verbatim(
    text: str, output: Console = console, *, style: str | None = None, end: str = "\n"
) -> None:
    """Print text without line breaks of its own."""
    output.print(text, style=style, end=end, soft_wrap=True)


def prose(text: str, output: Console = console, *, style: str | None = None) -> None:
    """Print a sentence: broken between words in a terminal, and nowhere in a file or a pipe."""
    output.print(text, style=style, soft_wrap=not output.is_terminal)


def passage(text: str, end: str = "\n") -> None:
    """Print text that a model has written: as it is in a file or a pipe."""
    if console.is_terminal:
        verbatim(text, end=end)
    else:
        write(text + end)


def first_line(text: str) -> str:
    """Return the first line of a text, without white space around it."""
    return text.strip().partition("\n")[0].rstrip()


def write(text: str) -> None:
    """Write text for programs, such as JSON, to the standard output."""
    with console.outliving_stream():
        console.file.write(text)
        console.file.flush()


def error(message: str, *details: str) -> None:
    """Print an error, and lines that belong to it."""
    whole = not errors.is_terminal
    errors.print(Text.assemble(("error", "bold red"), f": {visible(message)}"), soft_wrap=whole)
    for line in details:
        prose(f"  {line}", errors)


@contextmanager
def status(text: str, output: Output) -> Generator[None, None, None]:
    """Show what is being done, on a terminal, while it is being done."""
    if output.animated:
        with output.status(Text(text)):
            yield
    else:
        yield


@contextmanager
def results_alone() -> Generator[None]:
    """Let nobody but this module print to the standard output: what others print is no result."""
    with console.kept_stream(), errors.kept_stream(), redirect_stdout(sys.stderr):
        yield


class ActivityStatus:
    """A status line that lasts until the next one, or until the end of the context."""

    def __init__(self, output: Output, *, lines: bool = False) -> None:
        """With `lines`, each activity is a line where it cannot be shown and removed again."""
        self.output, self.lines = output, lines
        self.current = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.current.close()

    def start(self, description: str) -> None:
        """Replace the status line."""
        self.current.close()
        self.current.enter_context(status(description, self.output))
        if self.lines and not self.output.animated:
            verbatim(description, self.output)

    def note(self, text: str) -> None:
        """Print a line; the status line stays below it."""
        prose(text, self.output)


def print_any_character() -> None:
    """Let the standard streams replace characters that their encoding lacks by similar ones."""
    codecs.register_error("attnlab", _similar)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="attnlab")


def _similar(problem: UnicodeError) -> tuple[str, int]:
    if not isinstance(problem, UnicodeEncodeError):
        raise problem
    missing = problem.object[problem.start : problem.end]
    return "".join(SIMILAR.get(c) or _without_accents(c) or "?" for c in missing), problem.end


def _without_accents(character: str) -> str:
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return plain if plain.isprintable() else ""


def _discard(stream: IO[str]) -> None:
    """Send what is still written to a stream nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, stream.fileno())
    except (OSError, ValueError):  # no file of the system stands behind it
        return
    finally:
        os.close(null)
