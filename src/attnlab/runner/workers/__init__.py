"""Workers execute the runs of a schedule, on the devices that they have.

The schedule alone decides which run is next, and the run folders alone hold what was measured.
Workers only move runs to devices and events back. `local.LocalWorkers` has a process per device on
this machine, `ray.RayWorkers` an actor per device of a Ray cluster.
"""

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Protocol

from attnlab.record import WriteError
from attnlab.runner.events import Ended, Event, Held, Lost, RunEvent
from attnlab.runner.execute import ended
from attnlab.runner.schedule import PlannedRun, StudySchedule
from attnlab.training.run import Run

LONGEST_WAIT_SECONDS = 5.0  # for events
POLL_SECONDS = 1.0  # between looks at runs that other processes hold


class Workers(Protocol):
    """Several devices, each of which executes one run at a time.

    The death of a device or process is no exception: it is the event `Lost` of the run that was
    executed there, if it is worth another attempt, else `Ended("failed", reason)`, and the run's
    folder records the same reason.
    """

    def idle(self) -> bool:
        """Return True if a run can start now."""
        ...

    def busy(self) -> bool:
        """Return True if a run is being executed."""
        ...

    def prepare(self, runs: int) -> None:
        """Prepare for this number of runs that could start now, or soon: processes, devices."""
        ...

    def start(self, planned: PlannedRun) -> None:
        """Start a run on an idle device, and return at once."""
        ...

    def events(self, seconds: float) -> Iterator[tuple[PlannedRun, Event]]:
        """Wait for events or devices, at most some seconds, and yield the events that are there.

        `Ended`, `Held` or `Lost` is a run's last event; then the device is idle, unless it is lost.
        """
        ...

    def stop(self) -> None:
        """Release all devices. Runs in progress keep their last checkpoint."""
        ...


@contextmanager
def stopped_by_errors(workers: Workers | None) -> Generator[None]:
    """Stop the workers, if there are some, when an exception leaves the context."""
    try:
        yield
    except BaseException:
        if workers is not None:
            workers.stop()
        raise


def run_schedule(schedule: StudySchedule, workers: Workers) -> Generator[RunEvent, None, None]:
    """Execute all runs of the schedule; yield events as they happen.

    Runs that other processes hold are waited for, too: the schedule is empty when all have ended.
    Closing the generator, or an exception such as KeyboardInterrupt, stops the workers. Raises
    WriteError after the end of a run that could not be recorded, since no other could be, and
    ValueError if another process makes a run with different settings.
    """
    schedule.record_decisions()
    reported = set[tuple[Run, str]]()  # runs that others hold, and who holds them
    try:
        while True:
            _start_runs(schedule, workers)
            yield from _events_elsewhere(schedule, reported)
            if not workers.busy() and not schedule.waiting():
                if not schedule.held:
                    return
                time.sleep(POLL_SECONDS)
                continue
            seconds = POLL_SECONDS if schedule.held and workers.idle() else LONGEST_WAIT_SECONDS
            for planned, event in workers.events(seconds):
                tuned = ()
                if isinstance(event, Ended) and event.disk_refused:
                    yield RunEvent(planned.run, event)
                    raise WriteError(
                        f"{event.reason}; the study has stopped, and the same command continues it"
                    )
                if isinstance(event, Held | Lost):
                    schedule.give_back(planned)
                if isinstance(event, Held):
                    reported.add((planned.run, event.by))
                if isinstance(event, Ended):
                    tuned = schedule.finished(planned)
                    _start_runs(schedule, workers)
                yield RunEvent(planned.run, event, tuned)
    finally:
        workers.stop()


def _events_elsewhere(
    schedule: StudySchedule, reported: set[tuple[Run, str]]
) -> Iterator[RunEvent]:
    """Yield the runs that other processes have ended, and those that they hold, each once."""
    for planned, tuned in schedule.ended_elsewhere():
        folder = planned.run.folder(schedule.study_dir)
        reason = (folder.summary() or {}).get("reason")
        yield RunEvent(planned.run, ended(folder) or Ended("failed", reason, None), tuned)
    for planned, holder in schedule.held:
        if (planned.run, str(holder)) not in reported:
            reported.add((planned.run, str(holder)))
            yield RunEvent(planned.run, Held(str(holder)))


def _start_runs(schedule: StudySchedule, workers: Workers) -> None:
    while workers.idle() and (planned := schedule.next()) is not None:
        workers.start(planned)
    workers.prepare(schedule.waiting())
