"""Local workers: one process per slot of this machine, fed through a pipe.

A process lives until the schedule is empty. One that dies fails its own run, not the study: the run
is recorded as failed, and a new process takes the slot.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch

from attnlab.data import Places
from attnlab.device.child_process import SIGNALS, ChildProcess
from attnlab.device.machine import Slot, cuda_is_broken
from attnlab.kernels import flash_linear_attention as fla
from attnlab.kernels.compiled import keep_compiled, load_compiler
from attnlab.record.lease import remove_if_ended
from attnlab.runner.events import Ended, Event, Held
from attnlab.runner.execute import execute, record_failure
from attnlab.runner.processes import death, with_sources
from attnlab.runner.schedule import PlannedRun
from attnlab.training.run import Run

IDLE_SECONDS = 3.0  # in which an idle process ends by itself
GROUP_SECONDS = 0.5  # between the arrivals of one signal at the processes of a group


class LocalWorkers:
    """`attnlab.runner.workers.Workers` as processes of this machine."""

    def __init__(self, slots: Sequence[Slot], study_dir: Path, places: Places) -> None:
        """No process starts before `prepare`, or before there is a run for it."""
        study_dir = study_dir.absolute()  # a run's own code may change the working directory
        self._processes = [_WorkerProcess(slot, study_dir, places) for slot in slots]

    def idle(self) -> bool:
        return any(process.planned is None for process in self._processes)

    def busy(self) -> bool:
        return any(process.planned is not None for process in self._processes)

    def prepare(self, runs: int) -> None:
        idle = [process for process in self._processes if process.planned is None]
        for process in idle[:runs]:
            process.begin()

    def start(self, planned: PlannedRun) -> None:
        next(p for p in self._processes if p.planned is None).start(planned)

    def events(self, seconds: float) -> Iterator[tuple[PlannedRun, Event]]:
        busy = [(p, p.planned, p.process) for p in self._processes]
        pipes = [process.pipe for _, planned, process in busy if process and planned]
        ready = wait(pipes, timeout=seconds)
        for worker, planned, process in busy:
            # a process of its own may have kept the pipe of a dead one open
            if process and planned and (process.pipe in ready or not process.is_alive()):
                yield planned, worker.receive()

    def stop(self) -> None:
        for process in self._processes:
            process.close()
        for process in self._processes:
            process.join()


class _WorkerProcess:
    def __init__(self, slot: Slot, study_dir: Path, places: Places) -> None:
        self.slot, self.study_dir, self.places = slot, study_dir, places
        self.planned: PlannedRun | None = None  # the run in progress
        self.process: ChildProcess | None = None  # None until it begins

    def begin(self) -> None:
        if self.process is None or not self.process.is_alive():
            self.process = self._spawn()

    def start(self, planned: PlannedRun) -> None:
        self.begin()
        assert self.process is not None
        self.planned, run, pipe = planned, planned.run, self.process.pipe
        with suppress(ConnectionError):  # the process died: `receive` finds out
            folder, sources = run.folder(self.study_dir), run.config.sources()
            pipe.send((run.variant, run.config.to_dict(), run.recipe, planned.identity))
            pipe.send((folder, sources))

    def receive(self) -> Event:
        """Return the next event, or the failure of the run if the process is dead."""
        assert self.process is not None
        assert self.planned is not None
        try:
            if not (self.process.is_alive() or self.process.pipe.poll()):
                raise EOFError
            event: Event = self.process.pipe.recv()
        except (EOFError, OSError):
            code = self.process.wait()
            if -code in SIGNALS:
                time.sleep(GROUP_SECONDS)  # then it ends this process, and the run has not failed
            event = record_failure(self.planned.run.folder(self.study_dir), death(code))
        if isinstance(event, Ended | Held):
            self.planned = None
        return event

    def close(self) -> None:
        """Ask an idle process to exit; kill one that executes a run, and release its lease."""
        if self.process is None:
            return
        self.process.pipe.close()
        if self.planned is not None:
            self.process.end()
            remove_if_ended(self.planned.run.folder(self.study_dir).lease)

    def join(self) -> None:
        """Wait for the exit of a closed process; kill it if it does not exit."""
        if self.process is not None:
            self.process.end(within_seconds=IDLE_SECONDS)

    def _spawn(self) -> ChildProcess:
        # threads that spin while they wait slow everything down if another process needs the core
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        process = ChildProcess("attnlab.runner.workers.local:work")
        with suppress(ConnectionError):
            process.pipe.send((self.slot, self.study_dir, self.places, fla.clone_path()))
        return process


def work(pipe: Connection) -> None:
    """Execute the runs that the pipe delivers, in a worker process, until the pipe is closed."""
    slot, study_dir, places, fla_path = pipe.recv()
    if fla_path is not None:
        fla.use_fla(fla_path)
    torch.set_num_threads(slot.threads)
    devices = [torch.device(device) for device in slot.devices]
    if devices[0].type == "cuda":
        torch.cuda.set_device(devices[0])
        keep_compiled(places.cache / "compiled")
        load_compiler()  # every step on CUDA compiles its loss
        torch.zeros(1, device=devices[0])  # the first tensor takes seconds
    while True:
        try:
            variant, settings, recipe, identity = pipe.recv()
            folder, sources = pipe.recv()
        except EOFError:
            return
        try:
            run = Run(variant=variant, config=with_sources(settings, sources), recipe=recipe)
        except ValueError as error:
            pipe.send(record_failure(folder, str(error)))
            continue
        for event in execute(run, study_dir, identity, places, *devices):
            pipe.send(event)
        if cuda_is_broken():  # every later run would fail: the next one gets a new process
            return
