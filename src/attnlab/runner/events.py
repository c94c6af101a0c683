"""Events: the objects that a running study reports to its caller, in order.

Activity ... Started ─► RunEvent(Progress) ... RunEvent(Ended) ... ─► Activity
                           └ a Notice may come at any time
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

from attnlab.runner.schedule import StudySchedule
from attnlab.study import Activity, Notice
from attnlab.training.recipe import TuningResult
from attnlab.training.run import Run


class Progress(NamedTuple):
    """The current step of a run."""

    step: int
    steps: int
    loss: float | None  # the latest training loss, nats/token
    tokens_per_second: float | None
    alarm: str | None = None  # raised since the last event
    note: str | None = None  # information that is no alarm
    node: str | None = None  # of a cluster, where the run is executed; None: this machine


class Ended(NamedTuple):
    """The end of a run, and its outcome."""

    status: Literal["finished", "diverged", "failed"]
    reason: str | None
    final_loss: float | None  # validation loss, nats/token
    disk_refused: bool = False  # the folder of results cannot be written: no run can be recorded


class Held(NamedTuple):
    """Another process writes the run's folder. This command waits for the run's end."""

    by: str  # the process and its machine
    lost: bool = False  # it took the run over from this command, which had shown no sign of life


class Lost(NamedTuple):
    """The loss of the worker of a run. The run is started again, from its last checkpoint."""

    node: str  # of the cluster
    reason: str
    losses: int  # so far, without progress between them
    most: int  # the last one ends the run as failed


Event = Progress | Ended | Held | Lost  # of one run


class RunEvent(NamedTuple):
    """An event of one of the study's runs."""

    run: Run
    event: Event
    tuned: tuple[TuningResult, ...] = ()  # of the searches and challenges that this event ended


class Started(NamedTuple):
    """The start of the runs. The schedule is updated as they end."""

    schedule: StudySchedule


StudyEvent = Activity | Started | RunEvent | Notice
Watch = Callable[[StudyEvent], None]
