"""Local workers: one process per slot of this machine, fed through a pipe.

A process lives until the schedule is empty. One that dies fails its own run, not the study: the run
is recorded as failed, and a new process takes the slot.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from attnlab.config import differences
from attnlab.data import Places
from attnlab.device.selection import Slot
from attnlab.kernels import flash_linear_attention as fla
from attnlab.runner.events import Ended, Event, Held
from attnlab.runner.execute import execute, record_death
from attnlab.runner.schedule import PlannedRun
from attnlab.training.run import Run, RunConfig


class LocalWorkers:
    """`attnlab.runner.workers.Workers` as processes of this machine."""

    def __init__(self, slots: Sequence[Slot], study_dir: Path, places: Places) -> None:
        """No process starts before there is a run for it."""
        self._processes = [_WorkerProcess(slot, study_dir, places) for slot in slots]

    def idle(self) -> bool:
        return any(process.planned is None for process in self._processes)

    def busy(self) -> bool:
        return any(process.planned is not None for process in self._processes)

    def start(self, planned: PlannedRun) -> None:
        next(p for p in self._processes if p.planned is None).start(planned)

    def events(self, seconds: float) -> Iterator[tuple[PlannedRun, Event]]:
        by_pipe = {p.pipe: p for p in self._processes if p.planned is not None}
        for pipe in wait(list(by_pipe), timeout=seconds):
            process = by_pipe[pipe]  # pyright: ignore[reportArgumentType]
            planned = process.planned
            assert planned is not None
            yield planned, process.receive()

    def stop(self) -> None:
        for process in self._processes:
            process.stop()


class _WorkerProcess:
    def __init__(self, slot: Slot, study_dir: Path, places: Places) -> None:
        self.slot, self.study_dir, self.places = slot, study_dir, places
        self.planned: PlannedRun | None = None  # the run in progress
        self.process: SpawnProcess | None = None  # None until there is a run for it

    def start(self, planned: PlannedRun) -> None:
        if self.process is None or not self.process.is_alive():
            self._spawn()
        self.planned, run = planned, planned.run
        with suppress(BrokenPipeError):  # the process died: `receive` finds out
            folder, sources = run.folder(self.study_dir), run.config.sources()
            self.pipe.send((run.variant, run.config.to_dict(), run.recipe, planned.identity))
            self.pipe.send((folder, sources))

    def receive(self) -> Event:
        """Return the next event, or the failure of the run if the process is dead."""
        assert self.process is not None
        assert self.planned is not None
        try:
            event: Event = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            reason, folder = _death(self.process.exitcode), self.planned.run.folder(self.study_dir)
            event = record_death(folder, reason)
        if isinstance(event, Ended | Held):
            self.planned = None
        return event

    def stop(self) -> None:
        """Let an idle process exit by itself; terminate one that executes a run."""
        if self.process is None:
            return
        self.pipe.close()
        if self.planned is None:
            self.process.join(timeout=10)
        for end in (self.process.terminate, self.process.kill):
            if self.process.is_alive():
                end()
                self.process.join(timeout=5)

    def _spawn(self) -> None:
        # threads that spin while they wait slow everything down if another process needs the core
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_work,
            args=(theirs, self.slot, self.study_dir, self.places, fla.clone_path()),
            daemon=True,
        )
        with _without_main():
            self.process.start()
        theirs.close()


@contextmanager
def _without_main() -> Generator[None]:
    """Start processes inside that do not import the calling script, which no run needs.

    The script may come from standard input, and its calls need no `if __name__ == "__main__"`.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _work(
    pipe: Connection, slot: Slot, study_dir: Path, places: Places, fla_path: Path | None
) -> None:
    """Execute the runs that the pipe delivers, in a worker process, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which stops us
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if fla_path is not None:
        fla.use_fla(fla_path)
    torch.set_num_threads(slot.threads)
    devices = [torch.device(device) for device in slot.devices]
    if devices[0].type == "cuda":
        torch.cuda.set_device(devices[0])
    while True:
        try:
            variant, settings, recipe, identity = pipe.recv()
            folder, sources = pipe.recv()
        except EOFError:
            return
        try:
            run = Run(variant=variant, config=_with_sources(settings, sources), recipe=recipe)
        except ValueError as error:
            folder.fail(str(error))
            pipe.send(Ended("failed", str(error), None))
            continue
        for event in execute(run, study_dir, identity, places, *devices):
            pipe.send(event)


def _with_sources(settings: Mapping[str, Any], sources: Mapping[str, str]) -> RunConfig:
    """Return the settings of a run. Raises ValueError if the user's code is not these sources."""
    config = RunConfig.from_dict(settings)
    changed = differences(sources, config.sources(executed=True))
    if changed:
        raise ValueError(
            f"{', '.join(changed)} was edited after the command began; give the command again"
        )
    return config


def _end_with_parent() -> None:
    """Wait for the end of the parent, whatever ends it, and end this process then."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _death(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = "; the system may be out of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with exit code {exit_code}"
