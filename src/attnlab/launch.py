"""Runs what is missing of a study, on the devices there are.

One worker process a device (on CPUs: one a core, with one thread each while there are runs enough)
takes runs from a queue and reports what happens. A worker that dies takes its own run down, not the
study: the run is recorded as failed and another worker takes its place.
"""

import multiprocessing
import os
import re
import signal
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

import torch

from attnlab.data import Places
from attnlab.environment import usable_cores
from attnlab.record import RunFolder
from attnlab.run import Ended, Event, execute
from attnlab.study import Run, RunConfig, Study


class Planned(NamedTuple):
    """A run, and where it stands on disk."""

    run: Run
    identity: str
    ended: bool


class Happened(NamedTuple):
    """An event of a run."""

    planned: Planned
    event: Event


@dataclass(frozen=True)
class Seat:
    """What one worker process has: a device, and CPU threads."""

    device: str
    threads: int


def plan(study: Study, study_dir: Path, fingerprints: dict[str, str]) -> list[Planned]:
    """All runs of the study, with their identities. `fingerprints` are of each variant's data.

    Raises ValueError if the folder holds runs with other settings.
    """
    planned, conflicts = list[Planned](), list[str]()
    for run in study.runs():
        identity = run.config.identity(fingerprints[run.variant])
        folder = RunFolder(study_dir, run.variant, run.seed)
        folder.settle()
        different = folder.conflict({**run.config.to_dict(), "identity": identity})
        if different:
            shown = "; ".join(
                f"{path} is {a!r} there, {b!r} asked"
                for path, (a, b) in list(different.items())[:4]
            )
            conflicts.append(f"{folder.path}: {shown}")
        planned.append(Planned(run, identity, folder.status() in ("finished", "diverged")))
    if conflicts:
        more = f"\nand {len(conflicts) - 3} more" if len(conflicts) > 3 else ""
        raise ValueError(
            "these runs have other settings than those asked for; nothing was started:\n"
            + "\n".join(conflicts[:3])
            + more
            + f"\nchoose another --out, or remove them from {study_dir}"
        )
    return planned


def seats(device: str, runs: int, workers: int | None = None) -> list[Seat]:
    """The workers' devices: `auto` is every CUDA device, or the CPU's cores where there is none.

    They depend on the whole study, not on what is left of it: a run that is resumed computes with
    as many threads as before, and so to the same bits. Raises ValueError for a device that is not
    there.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ValueError(f"no device {device!r}: name auto, cpu, cuda or cuda:1")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = torch.device(device)
    if kind.type == "cuda":
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        wanted = [kind.index] if "cuda:" in device else list(range(there))
        if not wanted or max(wanted) >= there:
            raise ValueError(f"device {device!r} is not there: torch sees {there} CUDA devices")
        return [Seat(f"cuda:{i}", 1) for i in wanted][: max(1, min(runs, workers or len(wanted)))]
    cores = usable_cores()
    count = max(1, min(runs, workers or cores))
    return [Seat(device, max(1, cores // count))] * count


def launch(
    planned: Sequence[Planned], study_dir: Path, places: Places, seats: Sequence[Seat]
) -> Generator[Happened, None, None]:
    """Run all that has not ended; yield what happens, as it happens.

    Closing the iterator (or Ctrl-C) stops the workers; each run keeps its last checkpoint.
    """
    waiting = deque(p for p in planned if not p.ended)
    workers = [_Worker(seat, study_dir, places) for seat in seats[: len(waiting)]]
    try:
        for worker in workers:
            worker.give(waiting.popleft())
        while any(worker.planned for worker in workers):
            busy = {w.pipe: w for w in workers if w.planned is not None}
            for pipe in wait(list(busy), timeout=60):
                worker = busy[pipe]  # pyright: ignore[reportArgumentType]
                planned_run = worker.planned
                assert planned_run is not None
                event = worker.receive()
                if isinstance(event, Ended):
                    worker.planned = None
                    if waiting:
                        if not worker.process.is_alive():
                            worker.start()
                        worker.give(waiting.popleft())
                yield Happened(planned_run, event)
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    def __init__(self, seat: Seat, study_dir: Path, places: Places) -> None:
        self.seat, self.study_dir, self.places = seat, study_dir, places
        self.planned: Planned | None = None
        self.start()

    def start(self) -> None:
        # threads that spin while they wait for each other crawl when anything else wants a core
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_work, args=(theirs, self.seat, self.study_dir, self.places), daemon=True
        )
        self.process.start()
        theirs.close()

    def give(self, planned: Planned) -> None:
        self.planned = planned
        with suppress(BrokenPipeError):  # it died: `receive` finds out
            self.pipe.send((planned.run.variant, planned.run.config.to_dict(), planned.identity))

    def receive(self) -> Event:
        """The worker's next event; the end of its run where the worker is dead."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            reason = _death(self.process.exitcode)
            assert self.planned is not None
            run = self.planned.run
            RunFolder(self.study_dir, run.variant, run.seed).fail(reason)
            return Ended("failed", reason, None)

    def stop(self) -> None:
        """Let an idle worker leave by itself, and end one that is in the middle of a run."""
        self.pipe.close()
        if self.planned is None:
            self.process.join(timeout=10)
        for end in (self.process.terminate, self.process.kill):
            if self.process.is_alive():
                end()
                self.process.join(timeout=5)


def _work(pipe: Connection, seat: Seat, study_dir: Path, places: Places) -> None:
    """A worker process: runs what the pipe names until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which stops us
    torch.set_num_threads(seat.threads)
    device = torch.device(seat.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    while True:
        try:
            variant, config, identity = pipe.recv()
        except EOFError:
            return
        run = Run(variant=variant, config=RunConfig.from_dict(config))
        for event in execute(run, study_dir, identity, places, device):
            pipe.send(event)


def _death(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = "; the system may be out of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with exit code {exit_code}"
