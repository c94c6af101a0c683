"""Tracking: copies of the metrics of runs in other tools, TensorBoard and Weights & Biases.

The run folders remain the record. A tracker belongs to the process that starts the runs; it reads
the new lines of a folder and copies them. The copy of a resumed run starts again from the folder's
first line, so that no step is in it twice.

- TensorBoard: `tensorboard --logdir results/STUDY/tensorboard`. Each run has a folder,
  VARIANT/seed-SEED; its tags are the names in `metrics.jsonl`.
- Weights & Biases: one project per study folder, one group per variant. `WANDB_MODE=offline` keeps
  them in `results/STUDY/wandb` for `wandb sync`. A resumed run keeps its id: online, only new steps
  are sent; offline, its files are replaced.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from attnlab.config import suggestion
from attnlab.record import RunFolder, require_within


class RunCopy(Protocol):
    """One run in another tool."""

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add the metrics of a step. Steps ascend."""
        ...

    def end(self, summary: Mapping[str, Any] | None) -> None:
        """End the copy. `summary` is that of the run; None if the run was interrupted."""
        ...


NewCopy = Callable[[RunFolder], RunCopy]  # called when the run has started


def tensorboard_copies(study_dir: Path) -> NewCopy:
    """Return a function that starts the copy of a run. Raise ValueError without TensorBoard."""
    if find_spec("tensorboard") is None:
        raise ValueError("TensorBoard is not installed: pip install tensorboard")

    def copy(run: RunFolder) -> TensorBoard:
        folder = study_dir / "tensorboard" / run.ended.relative_to(study_dir)
        require_within(folder, study_dir)
        return TensorBoard(folder)

    return copy


class TensorBoard:
    """A `RunCopy` in TensorBoard."""

    def __init__(self, folder: Path) -> None:
        # imported here: it is an extra, and takes a second
        from torch.utils.tensorboard import SummaryWriter

        shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(str(folder), flush_secs=10)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def end(self, summary: Mapping[str, Any] | None) -> None:
        """Add the final losses as points at the last step."""
        for name, value in (summary or {}).items():
            if name.startswith(("final_", "test_")) and isinstance(value, int | float):
                self._writer.add_scalar(name, value, (summary or {}).get("steps"))
        self._writer.close()


def wandb_copies(study_dir: Path) -> NewCopy:
    """Return a function that starts the copy of a run.

    Raises ValueError if W&B is not installed or nobody is logged in.
    """
    if find_spec("wandb") is None:
        raise ValueError("Weights & Biases is not installed: pip install wandb")
    wandb = import_module("wandb")
    if wandb.setup().settings.mode == "online":
        try:
            known = wandb.login(prompt=False)
        except Exception as error:
            raise ValueError(f"Weights & Biases: {error}; or set WANDB_MODE=offline") from error
        if not known:
            raise ValueError(
                "Weights & Biases has no key: run wandb login, or set WANDB_MODE=offline"
            )
    return lambda run: WeightsAndBiases(wandb, study_dir, run)


class WeightsAndBiases:
    """A `RunCopy` in Weights & Biases."""

    def __init__(self, wandb: Any, study_dir: Path, run: RunFolder) -> None:
        name = run.ended.relative_to(study_dir).as_posix()
        require_within(study_dir / "wandb", study_dir)
        identifier = hashlib.sha256(f"{name}/{run.identity()}".encode()).hexdigest()[:16]
        for earlier in (study_dir / "wandb").glob(f"offline-run-*-{identifier}*"):
            shutil.rmtree(earlier)
        self._run: Any = wandb.init(
            project=study_dir.resolve().name,
            group=run.variant,
            name=name,
            id=identifier,
            resume="allow",
            reinit="create_new",  # several runs are open at the same time
            dir=study_dir,
            config=run.config(),
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )
        self._next_step: int = self._run.step

    def add(self, step: int, values: Mapping[str, float]) -> None:
        if step >= self._next_step:
            self._run.log(dict(values), step=step)

    def end(self, summary: Mapping[str, Any] | None) -> None:
        if summary is not None:
            self._run.summary.update(dict(summary))
        is_whole = summary is not None and summary["status"] == "finished"
        self._run.finish(exit_code=0 if is_whole else 1)


TOOLS: Mapping[str, Callable[[Path], NewCopy]] = {
    "tensorboard": tensorboard_copies,
    "wandb": wandb_copies,
}


def new_copies(tools: Iterable[str], study_dir: Path) -> dict[str, NewCopy]:
    """Return the function of each tool that starts the copy of a run.

    Raises ValueError if a tool is unknown, not installed, or not logged in.
    """
    found = dict[str, NewCopy]()
    for tool in tools:
        if tool not in TOOLS:
            raise ValueError(f"no tracking tool {tool!r}{suggestion(tool, TOOLS)}")
        found[tool] = TOOLS[tool](study_dir)
    return found


class Tracker:
    """Copies of runs in several tools. A tool that raises is dropped with a notice; runs go on.

    Raises ValueError as `new_copies` does.
    """

    def __init__(
        self, tools: Iterable[str], study_dir: Path, notify: Callable[[str], None]
    ) -> None:
        """`notify` is called with a message for the user."""
        self._notify = notify
        self._copies = {tool: _Copies(new) for tool, new in new_copies(tools, study_dir).items()}

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
