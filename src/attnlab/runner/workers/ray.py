"""Ray workers: long-lived actors on the nodes of a Ray cluster, each of which executes one run.

The schedule stays in this process, and the run folders hold what was measured. Ray places the
actors on nodes, carries runs and events, and says when a node or an actor dies; the run is then
started on another one from its last checkpoint. An actor has all GPUs of its run, and so they are
of one node.

The data is read by this process and sent through Ray's object store, once per node: every node
trains on the same bytes. See `ray_actor` for the results.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnlab.config import carried_sources, own_classes
from attnlab.data import Corpus
from attnlab.kernels import flash_linear_attention as fla
from attnlab.record.lease import HeldError, LostLeaseError
from attnlab.runner.events import Event, Held, Lost, Progress
from attnlab.runner.execute import ended, failed, record_failure
from attnlab.runner.schedule import PlannedRun
from attnlab.runner.workers.ray_actor import Actor, Copy, Order, Piece, in_memory, parts_of
from attnlab.runner.workers.ray_cluster import Cluster, Needs, Token, reason_of
from attnlab.version import __version__

MOST_LOSSES = 3  # of a run in a row, without a step of progress between them
MOST_PENDING = 64  # actors that wait for resources; an autoscaler sees them
WAIT_SECONDS = 1.0  # for events, until the cluster is looked at again
QUIET_SECONDS = 30.0  # without a worker, before the user reads why
IDLE_SECONDS = 60.0  # until an actor without a run releases its node
BUFFERED_PIECES = 64  # that an actor sends ahead of the driver


@dataclass(kw_only=True)
class _Losses:
    """The losses of a run's workers."""

    in_a_row: int = 0  # without progress between them
    step: int = -1  # the last one that was reached


@dataclass(kw_only=True, eq=False)
class _Worker:
    """An actor, from its request to its end."""

    actor: Any
    ready: Any  # reference to its first answer; None once that has come
    node: str = ""
    shared: bool = True
    planned: PlannedRun | None = None  # None: it is idle
    events: Any = None  # the generator of the run's events
    copy: Copy | None = None  # the run's folder, if this process writes it
    lease: ExitStack = field(default_factory=ExitStack)  # of that folder
    idle_since: float = 0.0

    def release(self) -> None:
        """End the run, whatever became of it."""
        self.lease.close()
        self.planned = self.events = self.copy = None
        self.idle_since = time.monotonic()


class RayWorkers:
    """`attnlab.runner.workers.Workers` as actors of a Ray cluster."""

    def __init__(
        self,
        cluster: Cluster,
        study_dir: Path,
        corpora: Mapping[str, Corpus],
        needs: Needs,
        *,
        most: int | None = None,
        notify: Callable[[str], None] = lambda _: None,
        shared: bool | None = None,
    ) -> None:
        """No actor starts before there is a run for it.

        Args:
            cluster: the connection, which stays open.
            study_dir: the study's folder, which exists.
            corpora: the data of each variant.
            needs: the resources of each actor.
            most: the largest number of actors; None for as many as there are runs.
            notify: a function that is called with messages for the user.
            shared: True or False if the nodes share the study's folder or do not; None: each is
                asked.
        """
        self._cluster, self._ray, self._needs = cluster, cluster.ray, needs
        self._study_dir, self._most, self._notify = study_dir.absolute(), most, notify
        self._shared = shared
        by_fingerprint = {corpus.fingerprint: corpus for corpus in corpora.values()}
        self._corpora = {key: self._ray.put(in_memory(c)) for key, c in by_fingerprint.items()}
        self._fingerprints = {name: corpus.fingerprint for name, corpus in corpora.items()}
        self._token = Token(self._study_dir)
        self._actor = self._ray.remote(Actor)
        self._workers = list[_Worker]()
        self._losses = defaultdict[Path, _Losses](_Losses)  # by folder of the run
        self._wanted = 0  # runs that could start now
        self._failed_starts = 0  # in a row
        self._waiting_since: float | None = None
        self._notify(f"Ray: {cluster.describe()}; each run takes {needs}")

    def idle(self) -> bool:
        return bool(self._idle())

    def busy(self) -> bool:
        return any(worker.planned for worker in self._workers)

    def prepare(self, runs: int) -> None:
        self._wanted = runs

    def start(self, planned: PlannedRun) -> None:
        self._idle()[0].planned = planned  # `events` sends it

    def events(self, seconds: float) -> Iterator[tuple[PlannedRun, Event]]:
        self._adjust()
        for worker in self._workers:
            if worker.planned is not None and worker.events is None:
                yield from self._send(worker, worker.planned)
        waited = {
            worker.events if worker.ready is None else worker.ready: worker
            for worker in self._workers
            if worker.ready is not None or worker.events is not None
        }
        if not waited or not self._ray.wait(list(waited), timeout=min(seconds, WAIT_SECONDS))[0]:
            return
        for reference in self._ray.wait(list(waited), num_returns=len(waited), timeout=0)[0]:
            worker = waited[reference]
            try:
                if worker.ready is not None:
                    self._started(worker)
                else:
                    yield from self._received(worker)
            except self._ray.exceptions.RayError as error:
                yield from self._died(worker, error)

    def stop(self) -> None:
        """Kill all actors. Runs in progress keep their last checkpoint."""
        for worker in list(self._workers):
            self._end(worker)
        self._token.remove()

    def _idle(self) -> list[_Worker]:
        return [one for one in self._workers if one.ready is None and one.planned is None]

    def _adjust(self) -> None:
        """Request actors for the runs that could start, and release those without a run."""
        pending, idle = [one for one in self._workers if one.ready is not None], self._idle()
        wanted = self._wanted - len(idle)
        if self._most is not None:
            wanted = min(wanted, self._most - (len(self._workers) - len(pending)))
        wanted = max(0, min(wanted, MOST_PENDING))
        for worker in pending[wanted:]:
            self._end(worker)
        for _ in range(wanted - len(pending)):
            self._workers.append(self._request())
        now = time.monotonic()
        for worker in idle:
            # one stays, and looks after runs that other processes hold
            if now - worker.idle_since > IDLE_SECONDS and len(self._workers) > 1:
                self._end(worker)
        self._tell_waiting(now, waits=bool(wanted) and len(pending) == len(self._workers))

    def _request(self) -> _Worker:
        needs = self._needs
        actor = self._actor.options(
            num_cpus=needs.cpus, num_gpus=needs.gpus, max_restarts=0, max_task_retries=0
        ).remote(
            __version__,
            self._study_dir,
            (self._token.path.name, self._token.content),
            needs.devices(),
            needs.gpus or needs.cpus,
            fla.clone_path(),
        )
        return _Worker(actor=actor, ready=actor.introduce.remote())

    def _tell_waiting(self, now: float, *, waits: bool) -> None:
        """Say once that there is no worker yet, and what the cluster has."""
        if not waits:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = now
        elif 0 < self._waiting_since < now - QUIET_SECONDS:
            self._waiting_since = 0.0
            self._notify(
                f"no worker has started yet: a run takes {self._needs}, and of "
                f"{self._cluster.describe()} are free {self._cluster.free()}"
            )

    def _started(self, worker: _Worker) -> None:
        node, shared = self._ray.get(worker.ready)
        worker.node = self._cluster.nodes().get(node) or node[:8]
        worker.shared = shared if self._shared is None else self._shared
        worker.ready, worker.idle_since, self._failed_starts = None, time.monotonic(), 0

    def _send(self, worker: _Worker, planned: PlannedRun) -> Iterator[tuple[PlannedRun, Event]]:
        """Send a run to its actor; yield its end if it cannot be executed."""
        run, identity = planned
        folder, event, sent = run.folder(self._study_dir), None, None
        if self._losses[folder.ended].in_a_row >= MOST_LOSSES:  # another process held it then
            event = record_failure(folder, _too_often(worker.node))
        elif not worker.shared:
            try:
                worker.lease.enter_context(folder.hold())
                event = ended(folder)
            except HeldError as error:
                event = Held(str(error.holder))
        if event is not None:
            worker.release()
            yield planned, event
            return
        if not worker.shared:
            folder.recover(identity)
            folder.restore()
            (folder.partial / "summary.json").unlink(missing_ok=True)  # of a failure
            worker.copy = Copy(folder)
            sent = [
                (path, [self._ray.put(part) for part in parts])
                for path, parts in parts_of(folder.partial)
            ]
        order = Order(
            variant=run.variant,
            settings=run.config.to_dict(),
            recipe=run.recipe,
            identity=identity,
            sources=run.config.sources(),
            code=carried_sources(own_classes(run.config)),
            fingerprint=self._fingerprints[run.variant],
        )
        worker.events = worker.actor.execute.options(
            num_returns="streaming", _generator_backpressure_num_objects=BUFFERED_PIECES
        ).remote(order, [self._corpora[order.fingerprint]], sent)

    def _received(self, worker: _Worker) -> Iterator[tuple[PlannedRun, Event]]:
        """Yield the next event of a run, if it is one: changes of the folder are written first."""
        planned = worker.planned
        assert planned is not None
        folder = planned.run.folder(self._study_dir)
        try:
            message = self._next(worker)
            if isinstance(message, Piece):
                assert worker.copy is not None
                worker.copy.apply(message, iter(lambda: self._next(worker), None))
                return
        except LostLeaseError as error:
            message = Held(str(error.holder or "another process"), lost=True)
        except self._ray.exceptions.RayTaskError as error:  # an exception in the actor
            reason = str(error).strip().splitlines()[-1]
            message = record_failure(folder, reason) if worker.shared else failed(folder, reason)
        if isinstance(message, Progress):
            losses = self._losses[folder.ended]
            if message.step > losses.step:
                losses.in_a_row, losses.step = 0, message.step
            yield planned, message._replace(node=worker.node)
            return
        if worker.copy is not None:
            worker.copy.finalize()
        worker.release()
        yield planned, message

    def _next(self, worker: _Worker) -> Any:
        return self._ray.get(next(worker.events))

    def _died(self, worker: _Worker, error: Exception) -> Iterator[tuple[PlannedRun, Event]]:
        """Yield the loss of a run, or its failure if there were too many."""
        planned, reason = worker.planned, reason_of(error)
        self._end(worker)
        if planned is None:
            self._failed_starts += 1
            if self._failed_starts >= MOST_LOSSES:
                raise ValueError(f"workers cannot start on the Ray cluster: {reason}")
            return
        folder = planned.run.folder(self._study_dir)
        losses = self._losses[folder.ended]
        losses.in_a_row += 1
        if losses.in_a_row < MOST_LOSSES:
            yield planned, Lost(worker.node, reason, losses.in_a_row, MOST_LOSSES)
        else:
            yield planned, record_failure(folder, f"{_too_often(worker.node)}: {reason}")

    def _end(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.release()
        with suppress(Exception):  # it is dead, or Ray is
            self._ray.kill(worker.actor)


def _too_often(node: str) -> str:
    return f"its worker was lost {MOST_LOSSES} times without progress, last on {node}"
