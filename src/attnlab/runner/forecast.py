"""What a study will take, before anything is spent: time and disk of the runs that are left.

    time = seconds of all runs / workers        disk = checkpoints that stay + records

Both have a lower and an upper bound while learning rates are to be tuned.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from attnlab.runner.schedule import StudySchedule
from attnlab.runner.timing import Pace
from attnlab.training.checkpoint import KEPT
from attnlab.training.run import RunConfig

NUMBERS_A_WEIGHT = 3  # of a checkpoint: itself and two moments, in float32; and perhaps its best
WORKER_START = 10.0  # seconds to import torch and find the device
LINE_BYTES = 220  # of metrics.jsonl
RECORD_BYTES = 12_000  # settings, environment and summary of one run


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Of the runs that are left on a schedule."""

    schedule: StudySchedule
    workers: int
    paces: Mapping[str, Pace]  # by variant, those that could be timed
    tokenizer_bytes: Mapping[str, int]  # by variant; of the copy in each run's folder

    def run_seconds(self, variant: str) -> float | None:
        """Of one run for the verdict; None where the variant could not be timed."""
        pace = self.paces.get(variant)
        return None if pace is None else pace.seconds(self.schedule.study.variants[variant])

    def seconds(self) -> tuple[float, float] | None:
        """At least and at most, for all that is left; None where a variant could not be timed."""
        left = self.schedule.unfinished_variants()
        if not left:
            return 0.0, 0.0
        least, most, once = 0.0, 0.0, 0.0
        for variant in left:
            seconds = self.run_seconds(variant)
            if seconds is None:
                return None
            study = self.schedule.study
            own_rate = study.variants[variant].train.learning_rate
            tunes = self.paces[variant].seconds(study.tuning_run(variant, own_rate).config)
            for count, one in (
                (self.schedule.verdict_count([variant]), seconds),
                (self.schedule.tuning_count([variant]), tunes),
            ):
                fewest_runs, most_runs = count.left()
                least += fewest_runs * one
                most += most_runs * one
            once += self.paces[variant].once  # each worker may meet each variant
        workers = self.workers
        return WORKER_START + (least + once) / workers, WORKER_START + most / workers + once

    def runs_left(self, variant: str) -> tuple[int, int]:
        """At least and at most, those that tune its learning rate among them."""
        verdict = self.schedule.verdict_count([variant]).left()
        tuning = self.schedule.tuning_count([variant]).left()
        return verdict[0] + tuning[0], verdict[1] + tuning[1]

    def parameters(self, variant: str) -> int:
        return self.schedule.study.variants[variant].cost().params

    def checkpoint_bytes(self) -> int:
        """At most: what stays of all runs for the verdict, and of those under way."""
        study, stay, passing = self.schedule.study, 0, 0
        for variant, config in study.variants.items():
            numbers = NUMBERS_A_WEIGHT + (config.train.keep == "best_and_last")
            one = 4 * numbers * self.parameters(variant)
            written = config.train.n_checkpoints
            kept = 0 if config.train.keep == "none" else min(KEPT, written)
            stay += self.schedule.verdict_count([variant]).left()[0] * kept * one
            # the next one is written before an old one goes
            passing = max(passing, (min(KEPT + 1, written) - kept) * one)
        return stay + self.workers * passing if self.schedule.unfinished_variants() else 0

    def record_bytes(self) -> int:
        """Everything else in the run folders, at most."""
        total = 0
        for variant in self.schedule.unfinished_variants():
            config = self.schedule.study.variants[variant]
            one = RECORD_BYTES + LINE_BYTES * _lines(config) + self.tokenizer_bytes.get(variant, 0)
            total += self.runs_left(variant)[1] * one
        return total


def _lines(config: RunConfig) -> int:
    train = config.train
    return math.ceil(train.steps / train.log_every) + math.ceil(train.steps / train.eval_every)
