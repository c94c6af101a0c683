"""One run on several devices of this machine: a process per device, started as torchrun does.

    worker ─► torch's elastic agent ─► process 0, ..., process N - 1
       └──────── a socket: the run, and its events ────────┘

Process 0 writes the run's folder and sends the events. A process that fails or dies ends the run,
with a reason that names it. The processes end with the worker: the system closes the socket then.
"""

import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Client, Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch

from attnlab.config import differences
from attnlab.data import Corpus, Places
from attnlab.device.child_process import Printed
from attnlab.device.ranks import Ranks
from attnlab.kernels import flash_linear_attention as fla
from attnlab.runner.events import Ended, Event
from attnlab.training.run import Run, RunConfig

GRACE_SECONDS = 2.0  # for a better reason: when one process fails, others fail for lack of it
END_SECONDS = 30.0  # for processes that have done their work to end


class Job(NamedTuple):
    """A run, in values that another process can read, and where it takes place."""

    variant: str
    settings: dict[str, Any]
    recipe: str | None
    sources: Mapping[str, str]  # the user's own code, by checksum
    study_dir: Path
    identity: str
    places: Places
    devices: tuple[str, ...]
    threads: int  # of each process, on a CPU
    fla_path: Path | None
    corpus: Corpus | None  # None: it is read from `places`

    @classmethod
    def of(
        cls,
        run: Run,
        study_dir: Path,
        identity: str,
        places: Places,
        devices: Sequence[torch.device],
        corpus: Corpus | None = None,
    ) -> "Job":
        """Return the job of executing this run on these devices."""
        return cls(
            variant=run.variant,
            settings=run.config.to_dict(),
            recipe=run.recipe,
            sources=run.config.sources(executed=True),
            study_dir=study_dir.absolute(),
            identity=identity,
            places=places,
            devices=tuple(map(str, devices)),
            threads=max(1, torch.get_num_threads() // len(devices)),
            fla_path=fla.clone_path(),
            corpus=corpus,
        )

    def run(self) -> Run:
        """Return the run. Raises ValueError if the user's code has changed since."""
        config = with_sources(self.settings, self.sources)
        return Run(variant=self.variant, config=config, recipe=self.recipe)


def with_sources(settings: Mapping[str, Any], sources: Mapping[str, str]) -> RunConfig:
    """Return the settings of a run. Raises ValueError if the user's code is not these sources.

    What its files print when they are imported is discarded: the first process has printed it.
    """
    with Printed().kept():
        config = RunConfig.from_dict(settings)
    changed = differences(sources, config.sources(executed=True))
    if changed:
        raise ValueError(
            f"{', '.join(changed)} was edited after the command began; give the command again"
        )
    return config


def execute_in_processes(job: Job) -> Generator[Event]:
    """Execute a run with a process per device; yield its events, the last one `Ended`.

    The end may be a failure that no process has recorded: the caller does.
    """
    with tempfile.TemporaryDirectory(prefix="attnlab-") as folder:
        address = str(Path(folder) / "socket")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(address)
            server.listen(len(job.devices))
            agent = _Agent(address, len(job.devices))
            group = _Group(job, server, agent)
            agent.start()
            try:
                yield from group.events()
            finally:
                group.end()


class _Group:
    def __init__(self, job: Job, server: socket.socket, agent: "_Agent") -> None:
        self.job, self.server, self.agent = job, server, agent
        self.ranks = dict[Connection, int]()
        self.failed = dict[int, str]()  # reasons by rank

    def events(self) -> Iterator[Event]:
        patience: float | None = None  # when to stop waiting for a better reason
        while True:
            for rank, event in self._messages():
                if isinstance(event, Ended) and event.status == "failed":
                    self.failed[rank] = event.reason or ""
                    patience = patience or time.monotonic() + GRACE_SECONDS
                    if event.disk_refused:
                        yield event
                        return
                elif rank == 0:
                    yield event
                    if isinstance(event, Ended):
                        self.agent.join(END_SECONDS)
                        return
            if not self.agent.is_alive() or (patience and time.monotonic() > patience):
                yield Ended("failed", self._reason(), None)
                return

    def end(self) -> None:
        """End the processes that are left: they do when their connection is closed."""
        for connection in self.ranks:
            connection.close()
        self.agent.join(END_SECONDS)

    def _messages(self) -> Iterator[tuple[int, Event]]:
        for ready in wait([self.server, *self.ranks], timeout=0.1):
            if ready is self.server:
                connection = Connection(self.server.accept()[0].detach())
                with suppress(EOFError, OSError):
                    self.ranks[connection] = connection.recv()
                    connection.send(self.job)
                continue
            assert isinstance(ready, Connection)
            try:
                yield self.ranks[ready], ready.recv()
            except (EOFError, OSError):  # it has ended: the agent knows how
                del self.ranks[ready]
                ready.close()

    def _reason(self) -> str:
        """Return why the run failed: the death of a process, else what a process said of itself."""
        count = len(self.job.devices)
        if self.agent.death is not None:
            rank, exit_code = self.agent.death
            if rank not in self.failed:
                return f"process {rank} of {count}, {self.job.devices[rank]}: {death(exit_code)}"
        if not self.failed:
            return f"its {count} processes did not start: {self.agent.error}"
        rank = min(self.failed)
        if len(self.failed) == count:  # all failed alike
            return self.failed[rank]
        return f"process {rank} of {count}, {self.job.devices[rank]}: {self.failed[rank]}"


class _Agent(threading.Thread):
    """torchrun's agent in a thread: it starts the processes, and ends all if one dies."""

    def __init__(self, address: str, count: int) -> None:
        super().__init__(daemon=True)
        self.address, self.count = address, count
        self.error: Exception | None = None
        self.death: tuple[int, int] | None = None  # of the first process that died: rank, exit code

    def run(self) -> None:
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=self.count,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            monitor_interval=0.1,
        )
        paths = f"import sys; sys.path[:] = {sys.path!r}"
        start = f"{paths}; from attnlab.runner.processes import main; main(sys.argv[1])"
        try:
            elastic_launch(config, sys.executable)("-c", start, self.address)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            self.error, self.death = error, (rank, failure.exitcode)
        except Exception as error:  # of any kind: it is the reason that the run failed
            self.error = error


def main(address: str) -> None:
    """Execute the run that the worker at this socket sends, as one of its processes."""
    from attnlab.runner.execute import execute_as

    for number in (signal.SIGINT, signal.SIGHUP):  # the worker ends the processes
        signal.signal(number, signal.SIG_IGN)
    with Client(address) as worker:
        rank = int(os.environ["LOCAL_RANK"])
        worker.send(rank)
        job: Job = worker.recv()
        threading.Thread(target=_end_with, args=(worker,), daemon=True).start()
        torch.set_num_threads(job.threads)
        try:
            fla.use_fla(job.fla_path)
            run = job.run()
            ranks = Ranks.join(torch.device(job.devices[rank]))
        except Exception as error:  # of any kind: the worker records it
            worker.send(Ended("failed", f"{type(error).__name__}: {error}", None))
            threading.Event().wait()
            raise
        folder = run.folder(job.study_dir)
        events = execute_as(run, folder, job.identity, job.places, ranks, corpus=job.corpus)
        for event in events:
            failed = isinstance(event, Ended) and event.status == "failed"
            if ranks.writes or failed:
                worker.send(event)
            if failed:  # others may wait for this process in vain: the worker ends all
                threading.Event().wait()
        ranks.leave()


def _end_with(worker: Connection) -> None:
    with suppress(EOFError, OSError):
        worker.recv()
    os._exit(1)


def death(exit_code: int | None) -> str:
    """Return how a process ended, in words."""
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = "; the system may be out of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with exit code {exit_code}"


def require_processes() -> None:
    """Let a worker of `multiprocessing.Pool` start processes; RuntimeError where none can start.

    A pool forbids it so that no process outlives its workers. Those of attnlab end with the process
    that started them, whatever ends it.
    """
    process = multiprocessing.current_process()
    if process.daemon:
        process.daemon = False
    if getattr(process, "_inheriting", False):
        raise RuntimeError(
            "attnlab.run is called while a process of yours imports this script: put the call "
            'under `if __name__ == "__main__":`'
        )
