"""The settings of training, of the final evaluation, and of the search for a recipe.

Those of training and evaluation are the same for all variants of a study.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from attnlab.config import Config, Problem
from attnlab.record import NO_INFLUENCE
from attnlab.training.learning_rate import Cosine, Schedule
from attnlab.training.optimizer import AdamW, Optimizer

Continuation = Literal["rederived", "constant"]
_OF_COSINE = 0.1  # default of `final_learning_rate_ratio`
COMPILE_FROM_PETAFLOPS = 2.0  # of a whole run: below, compiling costs more time than it saves


@dataclass(frozen=True, kw_only=True)
class Extension(Config):
    """The shorter run that a run continues, as far as it decides the later steps."""

    steps: int  # steps of the shorter run
    schedule: Continuation  # learning rate of the later steps; see `TrainConfig.extended`
    extends: "Extension | None" = None  # the run that the shorter run continues; None: no run

    def problems(self) -> Iterator[Problem]:
        if self.steps < 1:
            yield Problem("steps", f"must be at least 1, got {self.steps}")
        yield from _not_shorter(self.extends, self.steps)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """Settings of the training of a model."""

    steps: int = 1000  # number of updates of the parameters
    batch_size: int = 4  # sequences per step
    seq_len: int = 1024  # tokens per sequence
    learning_rate: float = 3e-4  # peak learning rate, reached after the warm-up
    warmup_steps: int = 100  # steps of linear warm-up to the peak learning rate
    schedule: Schedule | None = None  # learning rate after the warm-up; None: cosine
    final_learning_rate_ratio: float = _OF_COSINE  # of the last step to the peak rate, for a cosine
    optimizer: Optimizer | None = None  # None: adamw
    weight_decay: float = 0.01  # rate of decay of matrices; vectors (norms, biases) do not decay
    betas: tuple[float, float] = (0.9, 0.95)  # decay rates of AdamW's two moment estimates
    eps: float = 1e-8  # AdamW's epsilon, added to the denominator
    clip_norm: float = 1.0  # largest norm of the whole gradient; a larger one is scaled down to it
    log_every: int | None = None  # steps between two records of the training loss
    # ^ None: a twentieth of the run, at most 50 steps
    eval_every: int | None = None  # steps between two evaluations on the validation split
    # ^ None: a tenth of the run, at most 100 steps
    eval_batch_size: int = 16  # sequences per batch of an evaluation; does not change the result
    micro_batch_size: int | None = None  # sequences per forward pass and GPU; none: all of a step
    activation_checkpointing: bool = False  # True: less memory, a third more arithmetic
    checkpoint_every: int = 500  # steps between two checkpoints
    extends: Extension | None = None  # the shorter run that this one continues; None: no run
    keep: Literal["best_and_last", "last", "weights", "none"] = "best_and_last"  # after the run
    # ^ best_and_last, last: to extend, sample, export; weights: bfloat16, to sample and export
    precision: Literal["auto", "bfloat16", "float32"] = "auto"  # auto: bfloat16 autocast on CUDA
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile; auto: on CUDA, for long runs
    cuda_graph: Literal["auto", "off"] = "auto"  # auto: on CUDA the whole step is one CUDA graph

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, default in (("schedule", Cosine), ("optimizer", AdamW)):
            if isinstance(getattr(self, name), default):  # one form of it: that of older records
                object.__setattr__(self, name, None)

    def problems(self) -> Iterator[Problem]:
        counts = ("steps", "batch_size", "seq_len", "log_every", "eval_every", "eval_batch_size")
        for name in (*counts, "checkpoint_every", "micro_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield Problem(name, f"must be at least 1, got {value}")
        for name in ("learning_rate", "eps", "clip_norm"):
            if getattr(self, name) <= 0:
                yield Problem(name, f"must be positive, got {getattr(self, name)}")
        for name in ("weight_decay", "warmup_steps"):
            if getattr(self, name) < 0:
                yield Problem(name, f"must not be negative, got {getattr(self, name)}")
        yield from self._problems_of_rates()
        yield from _not_shorter(self.extends, self.steps)
        if not all(0 <= beta < 1 for beta in self.betas):
            yield Problem("betas", f"must be in [0, 1), got {list(self.betas)}")

    def _problems_of_rates(self) -> Iterator[Problem]:
        if 1 <= self.steps <= self.warmup_steps:
            advice = f"the peak is never reached; set it below {self.steps}"
            yield Problem("warmup_steps", f"{self.warmup_steps} of {self.steps} steps: {advice}")
        elif self.decay_starts is not None and self.warmup_steps > self.decay_starts:
            yield Problem(
                "warmup_steps",
                f"{self.warmup_steps} steps end after the decay begins, at step "
                f"{self.decay_starts}: lower it, or train.schedule.decay_fraction",
            )
        if not 0 <= self.final_learning_rate_ratio <= 1:
            yield Problem("final_learning_rate_ratio", "must be in [0, 1]")
        elif self.schedule is not None and self.final_learning_rate_ratio not in (0, _OF_COSINE):
            message = f"is that of a cosine; {self.schedule.kind()} ends at zero: leave it out"
            yield Problem("final_learning_rate_ratio", message)

    @property
    def decay_starts(self) -> int | None:
        """Steps before the decay, which longer runs have, too; None for a cosine."""
        return None if self.schedule is None else self.schedule.decay_starts(self.steps)

    @property
    def keeps_stable(self) -> bool:
        """True if the checkpoint before the decay stays, for longer runs to start from."""
        return self.keep in ("best_and_last", "last") and bool(self.decay_starts)

    def extended(self, steps: int, schedule: Continuation) -> "TrainConfig":
        """Return these settings with `steps` steps in total, as the continuation of this run.

        The learning rate of the steps of this run stays as it was. Then it is that of a run of
        `steps` steps from the start ("rederived"), or that of this run's last step ("constant").
        With a checkpoint before the decay, "rederived" continues from there instead: these are the
        settings of a run of `steps` steps that continues none, with the same periods.
        """
        if schedule == "rederived" and self.decay_starts and self.extends is None:
            periods = {"log_every": self.log_period, "eval_every": self.eval_period}
            return replace(self, steps=steps, **periods)
        extends = Extension(steps=self.steps, schedule=schedule, extends=self.extends)
        return replace(self, steps=steps, extends=extends)

    def shorter(self) -> "TrainConfig | None":
        """Return the settings of the run that this one continues; None if it continues none."""
        if self.extends is None:
            return None
        return replace(self, steps=self.extends.steps, extends=self.extends.extends)

    def identity_fields(self) -> dict[str, Any]:
        """Return `to_dict` without the fields that do not change the result."""
        fields = self.to_dict().items()
        return {name: value for name, value in fields if name not in NO_INFLUENCE}

    def checkpoint_due(self, step: int) -> bool:
        """True if the state after `step` (counted from 1) is written to disk.

        The last checkpoint is for later use, the earlier ones are for a run that is interrupted.
        """
        if step == self.steps:
            return self.keep in ("best_and_last", "last")
        return step % self.checkpoint_every == 0 or self.is_stable(step)

    def is_stable(self, step: int) -> bool:
        """True for the step (counted from 1) whose checkpoint stays for longer runs."""
        return self.keeps_stable and step == self.decay_starts

    @property
    def n_checkpoints(self) -> int:
        """Number of checkpoints that a whole run writes."""
        before_the_last = math.ceil(self.steps / self.checkpoint_every) - 1
        if self.keeps_stable and (self.decay_starts or 0) % self.checkpoint_every:
            before_the_last += 1
        return before_the_last + self.checkpoint_due(self.steps)

    @property
    def log_period(self) -> int:
        """Steps between two records of the training loss."""
        return self.log_every or self._part_of_the_run(20, at_most=50)

    @property
    def eval_period(self) -> int:
        """Steps between two evaluations: a short run has ten of them, too."""
        return self.eval_every or self._part_of_the_run(10, at_most=100)

    def _part_of_the_run(self, count: int, at_most: int) -> int:
        steps, extends = self.steps, self.extends
        while extends is not None:  # a continuation keeps the period of the run that it continues
            steps, extends = extends.steps, extends.extends
        return min(max(steps // count, 1), at_most)

    def precision_on(self, device_type: str) -> str:
        """Return `bfloat16` (autocast, with float32 weights) or `float32`."""
        if self.precision == "auto":
            return "bfloat16" if device_type == "cuda" else "float32"
        return self.precision

    def compiles_on(self, device_type: str, petaflops: float) -> bool:
        """True if the model is compiled for a run of this much arithmetic in total."""
        if self.compile == "auto":
            return device_type == "cuda" and petaflops >= COMPILE_FROM_PETAFLOPS
        return self.compile == "on"


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Config):
    """Settings of the measurements on a trained model, beside its loss at the length of training.

    The whole validation split is scored again in windows of each of `lengths`, which are ascending.
    """

    lengths: tuple[int, ...] | None = None  # further window lengths of validation, in tokens

    def problems(self) -> Iterator[Problem]:
        if self.lengths is None:
            return
        if not self.lengths:
            yield Problem("lengths", "give at least one length, or none")
        elif self.lengths[0] < 1:
            yield Problem("lengths", f"must be at least 1, got {self.lengths[0]}")
        for before, length in pairwise(self.lengths):
            if length <= before:
                yield Problem("lengths", f"must be ascending, got {length} after {before}")


@dataclass(frozen=True, kw_only=True)
class Tuning(Config):
    """The search for each variant's recipe before its runs for the verdict."""

    multiples: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)  # first rates, as multiples of the own one
    most: int = 7  # largest number of rates in one stage, which bounds the cost of the search
    warmup: bool = True  # True: three times the warm-up is tried, and taken for all if any gains
    settings: Mapping[str, tuple[float, ...]] = field(default_factory=dict[str, tuple[float, ...]])
    # ^ values to try of further settings: {"train.weight_decay": (0.01, 0.1)}
    challenge: bool = True  # True: a variant that may lose by its tuning is tried at rates beside
    only: tuple[str, ...] = ()  # variants that are searched; others of their families on a ladder
    # ^ carry their recipes (`training.carried`); none named: all are searched

    def problems(self) -> Iterator[Problem]:
        if not self.multiples:
            yield Problem("multiples", "give at least one")
        if any(multiple <= 0 for multiple in self.multiples):
            yield Problem("multiples", f"must be positive, got {list(self.multiples)}")
        elif any(not math.isclose(high, 2 * low) for low, high in pairwise(self.multiples)):
            why = f"each must be twice the one before, got {list(self.multiples)}"
            yield Problem("multiples", why)
        least = max(3, len(self.multiples))
        if self.most < least:
            why = "the whole grid is tried, and three rates are the fewest that bracket an optimum"
            yield Problem("most", f"must be at least {least}, got {self.most}: {why}")
        short = [path.rpartition(".")[2] for path in self.settings]
        for path, values in self.settings.items():
            if path in ("train.learning_rate", "train.warmup_steps"):
                yield Problem(f"settings.{path}", "is always tuned: remove it here")
            if short.count(path.rpartition(".")[2]) > 1:
                yield Problem(f"settings.{path}", "ends like another setting that is tuned")
            if len(values) < 2 or len(set(values)) < len(values):
                yield Problem(f"settings.{path}", f"give two values or more, got {list(values)}")

    def bounds(self, longer_warmups: int = 1, taken: int = 0) -> tuple[int, int, int]:
        """Return the smallest, the expected and the largest number of tuning runs per variant.

        Expected is the smallest and one further run, and two more for each longer warm-up that is
        known to be taken. `longer_warmups` can be tried.
        """
        warmups = longer_warmups if self.warmup else 0
        values = sum(len(values) - 1 for values in self.settings.values())
        coarse = max(3, len(self.multiples))  # a best rate has a lower and a higher one
        least = coarse + 2 + min(warmups, 1) + values
        most = self.most * (4 + warmups + bool(self.settings)) + values
        return least, least + 1 + 2 * taken, most


class Recipe(NamedTuple):
    """The tuned settings of a run."""

    learning_rate: float  # peak, to six digits
    warmup_steps: int
    settings: tuple[tuple[str, float], ...] = ()  # declared ones, by the last part of their path

    @property
    def name(self) -> str:
        """The name of its folder.

        >>> Recipe(6e-4, 300, (("weight_decay", 0.1),)).name
        'lr-0.0006,warmup_steps-300,weight_decay-0.1'
        """
        others = [("warmup_steps", self.warmup_steps), *self.settings]
        return ",".join([f"lr-{self.learning_rate:g}", *(f"{name}-{x:g}" for name, x in others)])

    @classmethod
    def parse(cls, name: str) -> "Recipe | None":
        """Return the recipe with this name; None for other names, as of searches of a rate alone.

        >>> Recipe.parse("lr-0.0006,warmup_steps-300")
        Recipe(learning_rate=0.0006, warmup_steps=300, settings=())
        """
        parts = (part.partition("-") for part in name.split(","))
        try:
            values = {key: float(value) for key, _, value in parts}
            rate, warmup_steps = values.pop("lr"), values.pop("warmup_steps")
        except (KeyError, ValueError):
            return None
        return cls(rate, int(warmup_steps), tuple(values.items()))


def _not_shorter(extends: Extension | None, steps: int) -> Iterator[Problem]:
    if extends is not None and extends.steps >= steps:
        yield Problem("extends.steps", f"must be below {steps}, got {extends.steps}")
