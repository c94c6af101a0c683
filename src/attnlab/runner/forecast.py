"""The forecast of a study: time and disk of the runs that remain, from a few timed training steps.

    run   = start + steps x step + evaluations x validation + checkpoints x save + test
    time  = seconds of all runs / workers        disk = checkpoints that stay + records

While recipes are searched, time has a lower bound, an expected value and an upper bound. The timed
steps are those of the run itself, on its own device; a part of the validation split is scored, and
the time scaled. If a few steps would take long, as those of a large model on a CPU do, nothing is
run: their matrix products at the rate of one that is timed are a lower bound.
"""

import dataclasses
import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from attnlab.analysis.numbers import size
from attnlab.data import Corpus
from attnlab.device.flops import matrix_rate
from attnlab.device.measuring import PeakMemory, wait_for_device
from attnlab.runner.schedule import StudySchedule
from attnlab.training import checkpoint
from attnlab.training.assemble import memory_per_gpu, step_of_run
from attnlab.training.checkpoint import KEPT
from attnlab.training.evaluate import held_out
from attnlab.training.recipe import start_of
from attnlab.training.run import RunConfig
from attnlab.training.step import TrainingStep

TIMED_SECONDS = 1.0  # of timed steps, about
MOST_STEPS = 50
MOST_BATCHES = 4  # of a held-out split
FEWEST_STEPS = 8  # as many as starting, timing and scoring take at least

NUMBERS_PER_WEIGHT = 3  # in a checkpoint: the weight and two moments, in float32
WORKER_START = 10.0  # seconds to import torch and to initialise the device
LINE_BYTES = 220  # of metrics.jsonl
RECORD_BYTES = 12_000  # settings, environment and summary of one run


class RunTime(NamedTuple):
    """Seconds that the parts of one run take, and its peak memory."""

    first_run: float  # additional seconds of a process's first run: kernels are compiled or loaded
    start: float  # the model, and the steps that compile, warm up or record
    step: float
    validation: float  # one evaluation of the whole split
    test: float  # of the whole split; 0 if there is none
    save: float  # one checkpoint
    peak_memory_bytes: int | None = None  # None if it could not be measured
    measured: bool = True  # False: computed from FLOPs, a lower bound

    def seconds(self, config: RunConfig) -> float:
        """Return the seconds of a whole run that is not its process's first."""
        train = config.train
        evaluations = math.ceil(train.steps / train.eval_period)
        return (
            self.start
            + train.steps * self.step
            + evaluations * self.validation
            + train.n_checkpoints * self.save
            + self.test
        )


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Time and disk of the runs that remain on a schedule: at least, expected, and at most."""

    schedule: StudySchedule
    workers: int
    run_times: Mapping[str, RunTime]  # by variant, those that could be timed
    tokenizer_bytes: Mapping[str, int]  # by variant: the copy in each run's folder

    def run_seconds(self, variant: str) -> float | None:
        """Return the seconds of one run for the verdict; None if the variant was not timed."""
        found = self.run_times.get(variant)
        return None if found is None else found.seconds(self.schedule.study.variants[variant])

    def seconds(self) -> tuple[float, float, float] | None:
        """Return a lower bound, the expected value and an upper bound for all remaining runs.

        None if a variant was not timed.
        """
        left = self.schedule.unfinished_variants()
        if not left:
            return 0.0, 0.0, 0.0
        study, first_runs = self.schedule.study, 0.0
        bounds, longest = [0.0, 0.0, 0.0], 0.0
        for variant in left:
            verdict_run = self.run_seconds(variant)
            if verdict_run is None:
                return None
            counts = [(self.schedule.verdict_count([variant]), verdict_run)]
            if study.tuning is not None:
                own = start_of(study.variants[variant], study.tuning).recipe
                tuning_run = self.run_times[variant].seconds(study.tuning_run(variant, own).config)
                counts.append((self.schedule.tuning_count([variant]), tuning_run))
            for count, seconds in counts:
                bounds = [b + n * seconds for b, n in zip(bounds, count.left(), strict=True)]
            first_runs += self.run_times[variant].first_run  # at most once per worker and variant
            longest = max(longest, verdict_run)
        for i, n in enumerate(self.schedule.challenge_count().left()):
            bounds[i] += n * longest
        least, expected, most = (seconds / self.workers for seconds in bounds)
        lower = WORKER_START + least + first_runs / self.workers
        return lower, expected + (lower - least), WORKER_START + most + first_runs

    def notes(self, gpus_per_run: int, capacity_bytes: int | None) -> tuple[str, ...]:
        """Return what is to be said of memory and times; see `memory_note` and `time_note`."""
        said = self.memory_note(gpus_per_run, capacity_bytes), self.time_note(gpus_per_run)
        return tuple(note for note in said if note is not None)

    def memory_note(self, gpus_per_run: int, capacity_bytes: int | None) -> str | None:
        """Return the estimated memory per GPU of the largest variant, and the fewest that fit.

        None if a run has one device whose memory is not known, as a CPU's.
        """
        if capacity_bytes is None and gpus_per_run == 1:
            return None
        by_gpus, study, from_settings = dict[int, int](), self.schedule.study, set[str]()
        for gpus in sorted({1, 2, 4, 8, gpus_per_run}):
            for name, config in study.variants.items():
                if config.train.batch_size % gpus == 0:
                    known = self.run_times.get(name)
                    peak = known.peak_memory_bytes if known is not None else None
                    vocab_size = config.data.tokenizer.vocab_size
                    found = memory_per_gpu(config, vocab_size, gpus, peak)
                    by_gpus[gpus] = max(found, by_gpus.get(gpus, found))
                    from_settings |= {name} if peak is None else set()
        how = "estimated from the settings" if from_settings else "estimated from a measured step"
        listed = ", ".join(f"{size(n)} on {gpus}" for gpus, n in by_gpus.items())
        note = f"memory per GPU, {how}, of the largest variant: {listed}"
        if capacity_bytes is None:
            return note
        fits = [gpus for gpus, n in by_gpus.items() if n < capacity_bytes]
        if not fits:
            return f"{note}; a GPU has {size(capacity_bytes)}, and none of these fit"
        return f"{note}; a GPU has {size(capacity_bytes)}: the fewest are --gpus-per-run {fits[0]}"

    @staticmethod
    def time_note(gpus_per_run: int) -> str | None:
        """Return that the times are those of one GPU; None if a run has one."""
        if gpus_per_run == 1:
            return None
        return (
            f"times are those of runs on one device; on {gpus_per_run} they are not measured, and "
            f"at best 1/{gpus_per_run} of these"
        )

    def checkpoint_bytes(self) -> int:
        """Return an upper bound: the checkpoints that stay, and those of the runs in progress."""
        study, kept_bytes, passing = self.schedule.study, 0, 0
        for variant, config in study.variants.items():
            keep, params = config.train.keep, config.cost().params
            one = 4 * (NUMBERS_PER_WEIGHT + (keep == "best_and_last")) * params
            written = config.train.n_checkpoints
            stable = config.train.keeps_stable
            kept = min(KEPT + stable, written) if keep in ("best_and_last", "last") else 0
            stays = 2 * params if keep == "weights" else kept * one  # weights are bfloat16
            kept_bytes += self.schedule.verdict_count([variant]).left()[-1] * stays
            # the next checkpoint is written before an old one is removed
            passing = max(passing, (min(KEPT + stable + 1, written) - kept) * one)
        left = self.schedule.unfinished_variants()
        return kept_bytes + self.workers * passing if left else 0

    def record_bytes(self) -> int:
        """Return an upper bound of everything else in the run folders."""
        total = 0
        for variant in self.schedule.unfinished_variants():
            train = self.schedule.study.variants[variant].train
            lines = math.ceil(train.steps / train.log_period)
            lines += math.ceil(train.steps / train.eval_period)
            tokenizer_bytes = self.tokenizer_bytes.get(variant, 0)
            counts = (self.schedule.verdict_count, self.schedule.tuning_count)
            runs = sum(count([variant]).left()[-1] for count in counts)
            runs += self.schedule.challenge_count([variant]).left()[-1]
            total += runs * (RECORD_BYTES + LINE_BYTES * lines + tokenizer_bytes)
        return total


def time_run(
    config: RunConfig, corpus: Corpus, device: torch.device, seconds: float = 60.0
) -> RunTime:
    """Train for about this many seconds with these settings. Raises the exceptions of the model.

    Nothing is run if the matrix products of a few steps alone would take longer.
    """
    bound = from_flops(config, corpus, device)
    if bound.step * FEWEST_STEPS > seconds:
        return bound
    first = _start(config, corpus, device)[1]
    memory = PeakMemory(device)
    with memory.measuring():
        step, start = _start(config, corpus, device)
        step_seconds = _step_seconds(step, config.train.steps, min(TIMED_SECONDS, seconds / 4))
    splits = corpus.splits()
    token_seconds = _token_seconds(step, config, corpus, seconds / 8)
    return RunTime(
        first_run=max(0.0, first - start),
        start=start,
        step=step_seconds,
        validation=token_seconds * len(splits["valid"]),
        test=token_seconds * len(splits.get("test", ())),
        save=_save_seconds(step),
        peak_memory_bytes=memory.peak_bytes,
    )


def from_flops(config: RunConfig, corpus: Corpus | None, device: torch.device) -> RunTime:
    """Return a lower bound: the matrix products at the rate of a large one, nothing else.

    Without a corpus, that of training alone.
    """
    train = config.train
    vocab_size = config.data.tokenizer.vocab_size if corpus is None else corpus.vocab_size
    step_flops = config.petaflops(vocab_size) * 1e15 / train.steps
    forward_flops = config.forward_flops(vocab_size)
    size, precision = (4096 if device.type == "cuda" else 512), train.precision_on(device.type)
    flops_per_second = matrix_rate(size, getattr(torch, precision), device, budget=0.1)
    splits = {} if corpus is None else corpus.splits()
    tokens = {split: len(tokens) for split, tokens in splits.items()}
    return RunTime(
        first_run=0.0,
        start=0.0,
        step=step_flops / flops_per_second,
        validation=tokens.get("valid", 0) * forward_flops / flops_per_second,
        test=tokens.get("test", 0) * forward_flops / flops_per_second,
        save=0.0,
        measured=False,
    )


def _start(config: RunConfig, corpus: Corpus, device: torch.device) -> tuple[TrainingStep, float]:
    """Return a training step past its warm-up, and the seconds to get there."""
    PeakMemory(device)  # releases the memory of the one before
    begin = time.perf_counter()
    step = step_of_run(config, corpus, device)
    while not step.warm and step.step < config.train.steps:
        step.advance()
    wait_for_device(device)
    return step, time.perf_counter() - begin


def _step_seconds(step: TrainingStep, last: int, at_least: float) -> float:
    first, begin, seconds = step.step, time.perf_counter(), 0.0
    while step.step < min(last, first + MOST_STEPS) and seconds < at_least:
        step.advance()
        wait_for_device(step.device)
        seconds = time.perf_counter() - begin
    return seconds / max(1, step.step - first)  # a run that is all warm-up has no other steps


def _token_seconds(step: TrainingStep, config: RunConfig, corpus: Corpus, seconds: float) -> float:
    """Return the seconds to score a token of a held-out split, from some batches of validation."""
    first, begin = _score(step, config, corpus, 1), time.perf_counter()  # a process's is slower
    _score(step, config, corpus, 1)
    one = time.perf_counter() - begin
    if 3 * one > seconds:
        return one / first
    begin = time.perf_counter()
    n_tokens = _score(step, config, corpus, min(MOST_BATCHES, int(seconds / one)))
    return (time.perf_counter() - begin) / n_tokens


def _score(step: TrainingStep, config: RunConfig, corpus: Corpus, batches: int) -> int:
    """Score some batches of the validation split; return the number of tokens."""
    train = config.train
    part = corpus.valid[: batches * train.eval_batch_size * train.seq_len + 1]
    split = held_out(
        dataclasses.replace(corpus, valid=part),
        "valid",
        seq_len=train.seq_len,
        batch_size=train.eval_batch_size,
        device=step.device,
    )
    split.quality(step.model, step.autocast)
    return len(part)


def _save_seconds(step: TrainingStep) -> float:
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        state = checkpoint.Checkpoint(step.step, step.model.state_dict(), step.state(), {}, None, 1)
        checkpoint.save(Path(folder), state, "timing")
        return time.perf_counter() - begin
