"""How long the runs of a study take: a few real steps of each variant, timed before any is spent.

    a run = start + steps x step + evaluations x validation + checkpoints x save + test

Steps, windows and weights are those of the run itself, on its own device. A part of each held-out
split is scored, and its time scaled up. Where a single step would take long, as that of a large
model on a CPU, nothing is run: its matrix products, at the rate of one that is timed, are what it
takes at least.
"""

import dataclasses
import math
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch

from attnlab.data import Corpus
from attnlab.device.memory import PeakMemory
from attnlab.device.peak_rates import matrix_rate
from attnlab.device.timer import wait
from attnlab.training import checkpoint
from attnlab.training.assemble import step_of_run
from attnlab.training.evaluate import HeldOut
from attnlab.training.run import RunConfig
from attnlab.training.step import TrainingStep

LONGEST = 1.0  # seconds of timed steps, about
MOST_STEPS = 50
MOST_BATCHES = 4  # of a held-out split
PATIENCE = 10.0  # seconds of a step: one that would take longer is not tried


class Pace(NamedTuple):
    """Seconds that the parts of one run take."""

    once: float  # what the first run of a process takes longer: kernels are compiled or loaded
    start: float  # the model, and steps that compile, warm up or record
    step: float
    validation: float  # of the whole split, once
    test: float  # of the whole split; 0 where there is none
    save: float  # a checkpoint
    timed: bool = True  # False: by arithmetic alone, and so at least

    def seconds(self, config: RunConfig) -> float:
        """Of a whole run, not the first."""
        train = config.train
        evaluations = math.ceil(train.steps / train.eval_every)
        return (
            self.start
            + train.steps * self.step
            + evaluations * self.validation
            + train.n_checkpoints * self.save
            + self.test
        )


def time_run(config: RunConfig, corpus: Corpus, device: torch.device) -> Pace:
    """Time a run of these settings for some seconds. Raises what its model raises."""
    least = _by_arithmetic(config, corpus, device)
    if least.step > PATIENCE:
        return least
    first = _started(config, corpus, device)[1]
    step, start = _started(config, corpus, device)
    splits = corpus.splits()
    seconds = {
        split: _split_seconds(step, config, corpus, split) for split in splits if split != "train"
    }
    return Pace(
        once=max(0.0, first - start),
        start=start,
        step=_step_seconds(step, config.train.steps, device),
        validation=seconds["valid"],
        test=seconds.get("test", 0.0),
        save=_save_seconds(step),
    )


def _by_arithmetic(config: RunConfig, corpus: Corpus, device: torch.device) -> Pace:
    train = config.train
    training = config.petaflops(corpus.vocab_size) * 1e15 / train.steps
    a_token = training / (3 * train.batch_size * train.seq_len)  # a forward pass is a third
    size, precision = (4096 if device.type == "cuda" else 512), train.precision_on(device.type)
    flops_per_second = matrix_rate(size, getattr(torch, precision), device, budget=0.1)
    held_out = {split: len(tokens) for split, tokens in corpus.splits().items()}
    return Pace(
        once=0.0,
        start=0.0,
        step=training / flops_per_second,
        validation=held_out["valid"] * a_token / flops_per_second,
        test=held_out.get("test", 0) * a_token / flops_per_second,
        save=0.0,
        timed=False,
    )


def _started(config: RunConfig, corpus: Corpus, device: torch.device) -> tuple[TrainingStep, float]:
    """A run whose next step has its steady pace, and the seconds that it took to get there."""
    PeakMemory(device)  # gives back what the one before has left
    begin = time.perf_counter()
    step = step_of_run(config, corpus, device)
    while not step.warm and step.step < config.train.steps:
        step.advance()
    wait(device)
    return step, time.perf_counter() - begin


def _step_seconds(step: TrainingStep, last: int, device: torch.device) -> float:
    first, begin, seconds = step.step, time.perf_counter(), 0.0
    while step.step < min(last, first + MOST_STEPS) and seconds < LONGEST:
        step.advance()
        wait(device)
        seconds = time.perf_counter() - begin
    return seconds / max(1, step.step - first)  # a run that is all warm-up has no other steps


def _split_seconds(step: TrainingStep, config: RunConfig, corpus: Corpus, split: str) -> float:
    train, tokens = config.train, corpus.splits()[split]
    part = tokens[: MOST_BATCHES * train.eval_batch_size * train.seq_len + 1]
    held_out = HeldOut(
        dataclasses.replace(corpus, **{split: part}),
        split,
        seq_len=train.seq_len,
        batch_size=train.eval_batch_size,
        device=step.device,
    )
    held_out.quality(step.model, step.autocast)  # not the first time in its process
    begin = time.perf_counter()
    held_out.quality(step.model, step.autocast)
    return (time.perf_counter() - begin) * len(tokens) / len(part)


def _save_seconds(step: TrainingStep) -> float:
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        state = checkpoint.Checkpoint(step.step, step.model.state_dict(), step.state(), {}, None)
        checkpoint.save(Path(folder), state, "timing")
        return time.perf_counter() - begin
