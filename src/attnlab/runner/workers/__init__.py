"""Workers execute the runs of a schedule, on the devices that they have.

The schedule alone decides which run is next, and the run folders alone hold what was measured.
Workers only move runs to devices and events back. `local.LocalWorkers` has a process per device on
this machine. Another engine, on other machines, implements `Workers`.
"""

from collections.abc import Generator, Iterator
from typing import Protocol

from attnlab.record import WriteError
from attnlab.runner.events import Ended, Event, RunEvent
from attnlab.runner.schedule import PlannedRun, StudySchedule


class Workers(Protocol):
    """Several devices, each of which executes one run at a time.

    The death of a device or process is no exception: it is the event `Ended("failed", reason)` of
    the run that was executed there, whose folder records the same reason.
    """

    def idle(self) -> bool:
        """Return True if a run can start now."""
        ...

    def busy(self) -> bool:
        """Return True if a run is being executed."""
        ...

    def start(self, planned: PlannedRun) -> None:
        """Start a run on an idle device, and return at once."""
        ...

    def events(self) -> Iterator[tuple[PlannedRun, Event]]:
        """Wait until there are events, and yield those that are there. `Ended` is a run's last.

        The device of a run is idle as soon as its `Ended` has been yielded.
        """
        ...

    def stop(self) -> None:
        """Release all devices. Runs in progress keep their last checkpoint."""
        ...


def run_schedule(schedule: StudySchedule, workers: Workers) -> Generator[RunEvent, None, None]:
    """Execute all runs of the schedule; yield events as they happen.

    Closing the generator, or an exception such as KeyboardInterrupt, stops the workers. Raises
    WriteError after the end of a run that could not be recorded, since no other could be.
    """
    schedule.record_decisions()
    try:
        _start_runs(schedule, workers)
        while workers.busy():
            for planned, event in workers.events():
                tuned = ()
                if isinstance(event, Ended) and event.disk_refused:
                    yield RunEvent(planned.run, event)
                    raise WriteError(
                        f"{event.reason}; the study has stopped, and the same command continues it"
                    )
                if isinstance(event, Ended):
                    tuned = schedule.finished(planned)
                    _start_runs(schedule, workers)
                yield RunEvent(planned.run, event, tuned)
    finally:
        workers.stop()


def _start_runs(schedule: StudySchedule, workers: Workers) -> None:
    while workers.idle() and (planned := schedule.next()) is not None:
        workers.start(planned)
