"""The metrics of runs in other tools as well: TensorBoard, Weights & Biases.

A run's folder stays the truth. A tracker lives in the process that launches the runs, reads what is
new in a folder whenever it is told to, and repeats it to mirrors. A mirror is made anew when a run
goes on, from the first line of its folder: what a kill made the run forget is no point twice.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from attnlab.config import suggestion
from attnlab.record import RunFolder
from attnlab.runner.tracking import tensorboard, weights_and_biases


class Mirror(Protocol):
    """One run in another tool."""

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """What was measured after a step. Steps ascend."""
        ...

    def end(self, summary: Mapping[str, Any] | None) -> None:
        """Nothing more will come. `summary` is the run's own; None where it was interrupted."""
        ...


MirrorOf = Callable[[RunFolder], Mirror]  # called when the run has begun
TOOLS: Mapping[str, Callable[[Path], MirrorOf]] = {
    "tensorboard": tensorboard.mirrors,
    "wandb": weights_and_biases.mirrors,
}


class Tracker:
    """Keeps mirrors of runs up to date. A tool that fails is given up with a word; the runs go on.

    Raises ValueError for a tool that is not known, or that cannot be used here.
    """

    def __init__(self, tools: Iterable[str], study_dir: Path, say: Callable[[str], None]) -> None:
        self._say = say
        self._copies = dict[str, _Copies]()
        for tool in tools:
            if tool not in TOOLS:
                raise ValueError(
                    f"nothing to track with is called {tool!r}{suggestion(tool, TOOLS)}"
                )
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

    def follow(self, run: RunFolder) -> None:
        """Repeat what is new in the run's folder."""
        self._each(lambda copies: copies.follow(run))

    def _each(self, act: Callable[["_Copies"], None]) -> None:
        for tool, copies in list(self._copies.items()):
            try:
                act(copies)
            except Exception as error:  # of whatever kind: it is no reason to lose a run
                del self._copies[tool]
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                self._say(f"{tool} is not kept up to date any more: {reason}")


class _Copies:
    """The mirrors in one tool."""

    def __init__(self, mirror_of: MirrorOf) -> None:
        self._mirror_of = mirror_of
        self._open = dict[Path, Mirror]()
        self._lines = dict[Path, int]()  # of each run, that its mirror has

    def follow(self, run: RunFolder) -> None:
        key = run.ended
        if key in self._lines and key not in self._open:
            return  # it has ended
        summary = run.summary()  # before the lines: where it is there, they are complete
        if key not in self._lines:
            self._lines[key], self._open[key] = 0, self._mirror_of(run)
        lines, mirror = run.metrics(), self._open[key]
        for line in lines[self._lines[key] :]:
            mirror.add(line["step"], _numbers(line))
        self._lines[key] = len(lines)
        if summary is not None:
            self._open.pop(key).end(summary)

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].end(None)


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """The measurements of a line; what is not finite is null there, and no point."""
    return {
        name: float(value)
        for name, value in line.items()
        if name != "step" and isinstance(value, int | float)
    }
