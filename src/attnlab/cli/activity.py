"""The activity of a long call on the console: one status at a time."""

from contextlib import ExitStack
from types import TracebackType
from typing import Self

from attnlab.cli.console import Output, status, verbatim


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
        verbatim(text, self.output)
