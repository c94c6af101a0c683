"""The trial of a plan: a few training steps of each variant, within some seconds.

It runs in a process of its own, which is ended when its time is over, whatever it is doing then:
reading a large corpus, compiling a kernel, a step of a large model. What it has found by then
counts.

    FLOPs as a lower bound, of all variants ─► data ─► the same with the held-out splits
         ─► timed steps, one variant after another ─► checks of the mechanisms
"""

import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch

from attnlab.analysis.fairness import Conditions
from attnlab.analysis.sentences import several
from attnlab.checks.targets import check_targets, of_study
from attnlab.config import is_interrupt, is_out_of_memory
from attnlab.data import Corpus, DataError, Places
from attnlab.device.child_process import ChildProcess
from attnlab.device.machine import Slot
from attnlab.kernels import flash_linear_attention as fla
from attnlab.runner.comparable import of_run
from attnlab.runner.events import Watch
from attnlab.runner.forecast import RunTime, from_flops, time_run
from attnlab.study import Activity
from attnlab.study.study import Study
from attnlab.study.variants import notes_on_data, read_data
from attnlab.training.assemble import memory_advice
from attnlab.training.run import RunConfig

START_SECONDS = 3.0  # of importing torch; a process that takes longer has less time for the rest


class Data(NamedTuple):
    """The facts about the data of one variant that a plan needs."""

    fingerprint: str
    conditions: Conditions  # of the variant's runs
    tokenizer_bytes: int  # of the copy in each run's folder
    notes: tuple[str, ...] = ()  # what the user should know of it


class Timed(NamedTuple):
    """The times of one variant, or the error that prevented them."""

    variant: str
    time: RunTime | None
    error: str | None = None


class CheckedMechanism(NamedTuple):
    """A mechanism's name, and the properties that it violates."""

    name: str
    violated: tuple[str, ...]


Found = Activity | Timed | CheckedMechanism


class Trial:
    """The trial itself, in the process that calls it."""

    def __init__(self, study: Study, places: Places, slot: Slot, *, check: bool) -> None:
        self.study, self.places, self.slot, self.check = study, places, slot, check
        self._corpora = dict[str, Corpus]()

    def bounds(self) -> dict[str, RunTime]:
        """Return lower bounds of the variants' times, for which no data is needed."""
        device = torch.device(self.slot.devices[0])
        return {name: from_flops(of, None, device) for name, of in self.study.variants.items()}

    def read(self) -> dict[str, Data]:
        """Return the data of each variant. Raises DataError and ConfigError as `read_data`."""
        self._corpora = read_data(self.study, self.places)
        notes = tuple(notes_on_data(self.study, self._corpora))
        copies = dict[str, int]()
        for corpus in self._corpora.values():
            if corpus.fingerprint not in copies:
                copies[corpus.fingerprint] = len(corpus.codec.to_json().encode())
        return {
            name: Data(
                corpus.fingerprint, of_run(config, corpus), copies[corpus.fingerprint], notes
            )
            for name, config in self.study.variants.items()
            for corpus in (self._corpora[name],)
        }

    def results(self, names: Iterable[str], seconds: float) -> Iterator[Found]:
        """Yield lower bounds of some variants, then their times, then the study's checks.

        Args:
            names: the variants to time.
            seconds: each variant gets an equal part of what is left of them.
        """
        torch.set_num_threads(self.slot.threads)
        device, end = torch.device(self.slot.devices[0]), time.monotonic() + seconds
        left = {name: self.study.variants[name] for name in names}
        for name, config in left.items():
            yield Timed(name, from_flops(config, self._corpora[name], device))
        known = dict[RunConfig, Timed]()
        for number, (name, config) in enumerate(left.items()):
            if config not in known:
                yield Activity(f"timing {name}")
                part = max(0.0, end - time.monotonic()) / (len(left) - number)
                known[config] = self._time(config, self._corpora[name], device, part)
            yield known[config]._replace(variant=name)
        for target in of_study(self.study) if self.check else ():
            yield Activity(f"checking {target.name}")
            [checked] = check_targets([target], quick=True)
            violated = [result.name for result in checked.results if not result.holds]
            yield CheckedMechanism(target.name, tuple(violated))

    @staticmethod
    def _time(config: RunConfig, corpus: Corpus, device: torch.device, seconds: float) -> Timed:
        try:
            return Timed("", time_run(config, corpus, device, seconds))
        except BaseException as error:  # of any kind: the plan reports it and continues
            if is_interrupt(error):
                raise
            advice = ""
            if is_out_of_memory(error):
                advice = f" {memory_advice(config.train, device, 1)}"
            return Timed("", None, f"{type(error).__name__}: {error}{advice}")


class TrialProcess:
    """A `Trial` in a process that has some seconds once started, and ends with this object."""

    def __init__(
        self, study: Study, places: Places, slot: Slot, *, check: bool, seconds: float
    ) -> None:
        self._seconds, self._end = seconds, time.monotonic() + START_SECONDS + seconds
        self._here, self._bounds = Trial(study, places, slot, check=check), dict[str, RunTime]()
        self._process = ChildProcess("attnlab.runner.trial:work", silent=True)
        self._pipe = self._process.pipe
        variants = {name: config.to_dict() for name, config in study.variants.items()}
        with suppress(ConnectionError):
            self._pipe.send((variants, places, slot, check, fla.clone_path()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.end()

    def read(self) -> dict[str, Data]:
        """Return the data of each variant.

        Raises DataError and ConfigError as `read_data`, and TimeoutError if it takes longer.
        """
        self._receive()  # the process has started
        self._end = min(self._end, time.monotonic() + self._seconds)
        self._bounds = self._receive()
        return self._receive()

    def bounds(self) -> dict[str, RunTime]:
        """Return what `Trial.bounds` returns; none of a GPU if the process starts late."""
        on_cpu = self._here.slot.devices[0] == "cpu"
        return self._bounds or (self._here.bounds() if on_cpu else {})

    def results(self, names: Iterable[str]) -> Iterator[Found]:
        """Yield what `Trial.results` yields, until the time is over."""
        with suppress(ConnectionError):
            self._pipe.send((list(names), self._end - time.monotonic()))
        with suppress(TimeoutError):
            while (found := self._receive()) is not None:
                yield found

    def _receive(self) -> Any:
        """Return the next message. Raises it if it is an error, and TimeoutError after the time."""
        if not self._pipe.poll(max(0.0, self._end - time.monotonic())):
            raise TimeoutError(f"the data was not read in the {self._seconds:g} s of a plan")
        try:
            message = self._pipe.recv()
        except (EOFError, OSError):
            code = self._process.wait()
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise ValueError(f"the process that times training steps ended with {how}") from None
        if isinstance(message, Exception):
            raise message
        return message


def work(pipe: Connection) -> None:
    """Execute a trial for the process at the other end of the pipe."""
    variants, places, slot, check, fla_path = pipe.recv()
    pipe.send("ready")
    try:
        fla.use_fla(fla_path)
        configs = {name: RunConfig.from_dict(config) for name, config in variants.items()}
        trial = Trial(Study(question="?", variants=configs), places, slot, check=check)
        pipe.send(trial.bounds())
        pipe.send(trial.read())
        names, seconds = pipe.recv()
        for found in trial.results(names, seconds):
            pipe.send(found)
    except ValueError as error:  # of the user: DataError, ConfigError
        pipe.send(error)
    pipe.send(None)


class TrialOutcome:
    """The outcome of a trial, as far as it has come."""

    def __init__(self) -> None:
        self.times = dict[str, RunTime]()
        self.errors = dict[str, str]()  # why a variant has no time
        self.problems = list[str]()
        self.checked, self.checks_left = 0, 0
        self.late = ""  # why there is no data yet; else empty

    def without_data(
        self, study: Study, error: DataError | TimeoutError, bounds: Mapping[str, RunTime]
    ) -> None:
        """Take the reason for which no data was read, in the time of the trial or at all.

        Data that takes longer leaves lower bounds of the variants' times.
        """
        if isinstance(error, DataError):
            self.problems.append(str(error))
        else:
            self.late, self.times = f"{error}; --trial-seconds gives it more time", dict(bounds)
        self.errors = {name: str(error) for name in study.variants if name not in self.times}

    def add(self, found: Found, watch: Watch) -> None:
        """Take one result."""
        match found:
            case Activity():
                watch(found)
            case Timed(variant, time, None):
                assert time is not None
                self.times[variant] = time
            case Timed(variant, _, error):
                assert error is not None
                self.times.pop(variant, None)
                self.errors[variant] = error
                self.problems.append(f"{variant}: {error}")
            case CheckedMechanism(name, violated):
                self.checked += 1
                self.problems.extend(f"{name}: violates {what!r}" for what in violated)

    def not_reached(self, variants: Iterable[str], seconds: float) -> None:
        """Take the variants for which there was not even time for a lower bound."""
        for name in variants:
            if name not in self.times:
                why = f"not reached in the {seconds:g} s of a plan; --trial-seconds gives it more"
                self.errors.setdefault(name, why)

    def notes(self, seconds: float) -> Iterator[str]:
        """Yield a sentence per thing that was not measured in the time of the trial."""
        bounds = [name for name, time in self.times.items() if not time.measured]
        more = f"in the {seconds:g} s of a plan; --trial-seconds gives it more time"
        if self.late:
            yield self.late
        if bounds:
            yield f"the time of {several(bounds)} is a lower bound from FLOPs, not measured {more}"
        if self.checks_left:
            which = f"{self.checks_left} of {self.checks_left + self.checked} mechanisms"
            yield f"{which} were not checked {more}"
