"""Tracking: copies of the metrics of runs in other tools, TensorBoard and Weights & Biases.

The run folders remain the record. A tracker belongs to the process that starts the runs; it reads
the new lines of a folder and copies them. The copy of a resumed run starts again from the folder's
first line, so that no step is in it twice.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from attnlab.config import suggestion
from attnlab.record import RunFolder
from attnlab.runner.tracking import tensorboard, weights_and_biases


class RunCopy(Protocol):
    """One run in another tool."""

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add the metrics of a step. Steps ascend."""
        ...

    def end(self, summary: Mapping[str, Any] | None) -> None:
        """End the copy. `summary` is that of the run; None if the run was interrupted."""
        ...


NewCopy = Callable[[RunFolder], RunCopy]  # called when the run has started
TOOLS: Mapping[str, Callable[[Path], NewCopy]] = {
    "tensorboard": tensorboard.copies,
    "wandb": weights_and_biases.copies,
}


class Tracker:
    """Copies of runs in several tools. A tool that raises is dropped with a notice; runs go on.

    Raises:
        ValueError: a tool is unknown, not installed, or not logged in.
    """

    def __init__(
        self, tools: Iterable[str], study_dir: Path, notify: Callable[[str], None]
    ) -> None:
        """`notify` is called with a message for the user."""
        self._notify = notify
        self._copies = dict[str, _Copies]()
        for tool in tools:
            if tool not in TOOLS:
                raise ValueError(f"no tracking tool {tool!r}{suggestion(tool, TOOLS)}")
            self._copies[tool] = _Copies(TOOLS[tool](study_dir))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._each(_Copies.close)

    def update(self, run: RunFolder) -> None:
        """Copy the new lines of the run's folder."""
        self._each(lambda copies: copies.update(run))

    def _each(self, act: Callable[["_Copies"], None]) -> None:
        for tool, copies in list(self._copies.items()):
            try:
                act(copies)
            except Exception as error:  # of any kind: tracking must not end a run
                del self._copies[tool]
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                self._notify(f"tracking with {tool} has stopped: {reason}")


class _Copies:
    """The copies in one tool."""

    def __init__(self, new_copy: NewCopy) -> None:
        self._new_copy = new_copy
        self._open = dict[Path, RunCopy]()
        self._lines = dict[Path, int]()  # copied, by run

    def update(self, run: RunFolder) -> None:
        key = run.ended
        if key in self._lines and key not in self._open:
            return  # the run has ended
        summary = run.summary()  # before the lines: if there is a summary, the lines are complete
        if key not in self._lines:
            self._lines[key], self._open[key] = 0, self._new_copy(run)
        lines, copy = run.metrics(), self._open[key]
        for line in lines[self._lines[key] :]:
            copy.add(line["step"], _numbers(line))
        self._lines[key] = len(lines)
        if summary is not None:
            self._open.pop(key).end(summary)

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].end(None)


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the measurements of a line; values that are not finite are null there, and omitted."""
    return {
        name: float(value)
        for name, value in line.items()
        if name != "step" and isinstance(value, int | float)
    }
