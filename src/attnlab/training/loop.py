"""One run as a generator of measurements, with no opinion on where they go.

It trains in stretches between the steps at which something is due: a log line, an evaluation, a
checkpoint, the end. Within a stretch nothing waits for the device.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch

from attnlab.device.memory import PeakMemory
from attnlab.training.config import TrainConfig
from attnlab.training.step import TrainingStep


class Measurement(NamedTuple):
    """What is known after a step (counted from 1)."""

    step: int
    values: dict[str, float | None]


class CheckpointDue(NamedTuple):
    """The state after this step is worth keeping."""

    step: int


class DivergedError(Exception):
    """A loss or gradient norm stopped being a finite number. The message says which, and when."""


class Clock:
    """Where the seconds of a run went, from when this object is made."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._total_before = 0.0  # in earlier processes
        self.compile_seconds = 0.0  # first steps: compilation, warm-up, recording of the graph
        self.train_seconds = 0.0  # all other steps
        self.eval_seconds = 0.0
        self._step_seconds = list[float]()  # of each stretch

    def seconds(self) -> dict[str, float]:
        """For a checkpoint; `resume` takes it back in a later process."""
        return {
            "total": self.total_seconds,
            "compile": self.compile_seconds,
            "train": self.train_seconds,
            "eval": self.eval_seconds,
        }

    def resume(self, seconds: Mapping[str, float]) -> None:
        self._total_before = seconds["total"]
        self.compile_seconds = seconds["compile"]
        self.train_seconds = seconds["train"]
        self.eval_seconds = seconds["eval"]

    def add_stretch(self, seconds: float, steps: int) -> None:
        self.train_seconds += seconds
        self._step_seconds.append(seconds / steps)

    @property
    def total_seconds(self) -> float:
        return self._total_before + time.perf_counter() - self._started

    @property
    def step_seconds(self) -> float | None:
        """The median over the stretches; None where every step was warm-up."""
        return statistics.median(self._step_seconds) if self._step_seconds else None


def train(
    step: TrainingStep,
    config: TrainConfig,
    evaluate: Callable[[], dict[str, float | None]],
    clock: Clock,
    memory: PeakMemory,
) -> Iterator[Measurement | CheckpointDue]:
    """Train from where `step` is to the end; yield every number worth keeping.

    Training losses are means over the steps since the last log line, the language-model loss alone;
    evaluations are of the weights after the step. Raises `DivergedError`.
    """
    step.model.train()
    while step.step < config.steps:
        begin, end = step.step, _next_due(step.step, config)
        with memory.measuring():
            _run_stretch(step, end, clock)
        bad = step.first_non_finite(begin, end)
        if bad is not None:
            raise DivergedError(f"{bad[1].replace('_', ' ')} is {bad[2]} at step {bad[0] + 1}")
        values = dict[str, float | None]()
        if _is_due(end, config.log_every, config):
            since = (end - 1) // config.log_every * config.log_every
            values |= step.means(since, end) | {"learning_rate": step.learning_rate(end - 1)}
        if _is_due(end, config.eval_every, config):
            started = time.perf_counter()
            values |= evaluate()
            clock.eval_seconds += time.perf_counter() - started
        if values:
            values |= {"train_seconds": clock.train_seconds}
            yield Measurement(end, values)
        if config.checkpoint_due(end):
            yield CheckpointDue(end)


def _run_stretch(step: TrainingStep, end: int, clock: Clock) -> None:
    started = time.perf_counter()
    while step.step < end and not step.warm:
        step.advance()
        _wait(step.device)
    warmed = time.perf_counter()
    clock.compile_seconds += warmed - started
    if steps := end - step.step:
        for _ in range(steps):
            step.advance()
        _wait(step.device)
        clock.add_stretch(time.perf_counter() - warmed, steps)


def _next_due(step: int, config: TrainConfig) -> int:
    periods = (config.log_every, config.eval_every, config.checkpoint_every)
    return min(config.steps, *(step // every * every + every for every in periods))


def _is_due(step: int, every: int, config: TrainConfig) -> bool:
    return step % every == 0 or step == config.steps


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
