"""The training loop: a generator of measurements, which leaves their use to the caller.

It trains in intervals between the steps at which something is due: a log line, an evaluation, a
checkpoint, the end. Within an interval nothing waits for the device.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from attnlab.device.measuring import PeakMemory, time_each, wait_for_device
from attnlab.training.config import TrainConfig
from attnlab.training.step import TrainingStep


class Measurement(NamedTuple):
    """Measured values after a step (counted from 1), by name."""

    step: int
    values: dict[str, float | None]


class CheckpointDue(NamedTuple):
    """The caller is to save a checkpoint of the state after this step."""

    step: int


class DivergedError(Exception):
    """Raised at a loss or gradient norm that is not finite; the message has the step."""


class Clock:
    """The seconds of a run by purpose, counted from the creation of this object."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._total_before = 0.0  # in earlier processes
        self.compile_seconds = 0.0  # first steps: compilation, warm-up, recording of the CUDA graph
        self.train_seconds = 0.0  # all other steps
        self.eval_seconds = 0.0
        self._step_seconds = list[float]()  # of every step in this process but the first ones

    def seconds(self) -> dict[str, float]:
        """Return the seconds by purpose, for a checkpoint; `resume` restores them."""
        return {
            "total": self.total_seconds,
            "compile": self.compile_seconds,
            "train": self.train_seconds,
            "eval": self.eval_seconds,
        }

    def resume(self, seconds: Mapping[str, float]) -> None:
        """Add the seconds of earlier processes, as `seconds` returned them."""
        self._total_before = seconds["total"]
        self.compile_seconds = seconds["compile"]
        self.train_seconds = seconds["train"]
        self.eval_seconds = seconds["eval"]

    def add_steps(self, seconds: Iterable[float]) -> None:
        """Add the time of each of some steps."""
        before = len(self._step_seconds)
        self._step_seconds += seconds
        self.train_seconds += sum(self._step_seconds[before:])

    @property
    def total_seconds(self) -> float:
        """Seconds since the start of the run, without the time between processes."""
        return self._total_before + time.perf_counter() - self._started

    @property
    def step_seconds(self) -> float | None:
        """Median seconds per step; None if every step was warm-up."""
        return statistics.median(self._step_seconds) if self._step_seconds else None

    @property
    def step_seconds_quartiles(self) -> tuple[float, float] | None:
        """Lower and upper quartile of the seconds per step; None for less than two steps."""
        if len(self._step_seconds) < 2:
            return None
        lower, _, upper = statistics.quantiles(self._step_seconds, n=4, method="inclusive")
        return lower, upper


def train(
    step: TrainingStep,
    config: TrainConfig,
    evaluate: Callable[[], dict[str, float | None]],
    clock: Clock,
    memory: PeakMemory,
) -> Iterator[Measurement | CheckpointDue]:
    """Train from the current step of `step` to the end; yield measurements and due checkpoints.

    Training losses are means over the steps since the last log line, without auxiliary losses.
    Evaluations use the weights after the step. Raises `DivergedError`.
    """
    step.model.train()
    while step.step < config.steps:
        begin, end = step.step, _next_due(step.step, config)
        with memory.measuring():
            _run_interval(step, end, clock)
        bad = step.first_non_finite(begin, end)
        if bad is not None:
            raise DivergedError(f"{bad[1].replace('_', ' ')} is {bad[2]} at step {bad[0] + 1}")
        values = dict[str, float | None]()
        if _is_due(end, config.log_period, config):
            since = (end - 1) // config.log_period * config.log_period
            values |= step.means(since, end) | {"learning_rate": step.learning_rate(end - 1)}
        if _is_due(end, config.eval_period, config):
            started = time.perf_counter()
            values |= evaluate()
            clock.eval_seconds += time.perf_counter() - started
        if values:
            values |= {"train_seconds": clock.train_seconds}
            yield Measurement(end, values)
        if config.checkpoint_due(end):
            yield CheckpointDue(end)


def _run_interval(step: TrainingStep, end: int, clock: Clock) -> None:
    started = time.perf_counter()
    while step.step < end and not step.warm:
        step.advance()
        wait_for_device(step.device)
        step.require_known_parameters()
    clock.compile_seconds += time.perf_counter() - started
    if steps := end - step.step:
        clock.add_steps(time_each(step.advance, step.device, steps))


def measured_steps(config: TrainConfig, last: int) -> Iterator[int]:
    """Return the steps up to `last` after which `train` yields a measurement in every run."""
    periods = (config.log_period, config.eval_period)
    return (n for n in range(1, last + 1) if any(n % every == 0 for every in periods))


def _next_due(step: int, config: TrainConfig) -> int:
    periods = (config.log_period, config.eval_period, config.checkpoint_every)
    ends = [step // every * every + every for every in periods]
    if config.keeps_stable and step < (start := config.decay_starts or 0):
        ends.append(start)
    return min(config.steps, *ends)


def _is_due(step: int, every: int, config: TrainConfig) -> bool:
    return step % every == 0 or step == config.steps
