"""Runs what is missing of a study, on the devices there are.

One worker process a device (on CPUs: one a core, with one thread each while there are runs enough)
takes runs from an agenda, which may grow by what comes of them, and reports what happens. A worker
lives until the agenda is empty. One that dies takes its own run down, not the study: the run is
recorded as failed and another worker takes its place.
"""

import multiprocessing
import os
import re
import signal
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import NamedTuple

import torch

from attnlab.data import Places
from attnlab.device.environment import usable_cores
from attnlab.kernels import flash_linear_attention as fla
from attnlab.runner.execute import Ended, Event, execute
from attnlab.runner.schedule import Agenda, Planned
from attnlab.training.recipe import TuningResult
from attnlab.training.run import Run, RunConfig


class Happened(NamedTuple):
    """An event of a run."""

    run: Run
    event: Event
    tuned: TuningResult | None = None  # where this run ended the search for a learning rate


@dataclass(frozen=True)
class Seat:
    """What one worker process has: a device, and CPU threads."""

    device: str
    threads: int


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
    agenda: Agenda, study_dir: Path, places: Places, seats: Sequence[Seat]
) -> Generator[Happened, None, None]:
    """Run all that is on the agenda; yield what happens, as it happens.

    Closing the iterator (or Ctrl-C) stops the workers; each run keeps its last checkpoint.
    """
    agenda.begin()
    workers = [_Worker(seat, study_dir, places) for seat in seats]

    def hand_out() -> None:
        for worker in workers:
            if worker.planned is None and (planned := agenda.next()) is not None:
                worker.give(planned)

    try:
        hand_out()
        while busy := {w.pipe: w for w in workers if w.planned is not None}:
            for pipe in wait(list(busy), timeout=60):
                worker = busy[pipe]  # pyright: ignore[reportArgumentType]
                planned, tuned = worker.planned, None
                assert planned is not None
                event = worker.receive()
                if isinstance(event, Ended):
                    worker.planned = None
                    tuned = agenda.ended(planned)
                    hand_out()
                yield Happened(planned.run, event, tuned)
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    def __init__(self, seat: Seat, study_dir: Path, places: Places) -> None:
        self.seat, self.study_dir, self.places = seat, study_dir, places
        self.planned: Planned | None = None
        self.process: SpawnProcess | None = None  # until there is a run for it

    def start(self) -> None:
        # threads that spin while they wait for each other crawl when anything else wants a core
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_work,
            args=(theirs, self.seat, self.study_dir, self.places, fla.clone_path()),
            daemon=True,
        )
        self.process.start()
        theirs.close()

    def give(self, planned: Planned) -> None:
        if self.process is None or not self.process.is_alive():
            self.start()
        self.planned, run = planned, planned.run
        with suppress(BrokenPipeError):  # it died: `receive` finds out
            self.pipe.send((run.variant, run.config.to_dict(), run.tunes, planned.identity))

    def receive(self) -> Event:
        """The worker's next event; the end of its run where the worker is dead."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            assert self.process is not None
            assert self.planned is not None
            self.process.join()
            reason = _death(self.process.exitcode)
            folder = self.planned.run.folder(self.study_dir)
            if not folder.ended.is_dir():  # it may have died between its run's end and its message
                folder.fail(reason)
            return Ended("failed", reason, None)

    def stop(self) -> None:
        """Let an idle worker leave by itself, and end one that is in the middle of a run."""
        if self.process is None:
            return
        self.pipe.close()
        if self.planned is None:
            self.process.join(timeout=10)
        for end in (self.process.terminate, self.process.kill):
            if self.process.is_alive():
                end()
                self.process.join(timeout=5)


def _work(
    pipe: Connection, seat: Seat, study_dir: Path, places: Places, fla_path: Path | None
) -> None:
    """A worker process: runs what the pipe names until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which stops us
    if fla_path is not None:
        fla.use_fla(fla_path)
    torch.set_num_threads(seat.threads)
    device = torch.device(seat.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    while True:
        try:
            variant, config, tunes, identity = pipe.recv()
        except EOFError:
            return
        run = Run(variant=variant, config=RunConfig.from_dict(config), tunes=tunes)
        for event in execute(run, study_dir, identity, places, device):
            pipe.send(event)


def _death(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = "; the system may be out of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with exit code {exit_code}"
