"""How a model is trained: the same for all variants of a study."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from attnlab.config import Config, Problem
from attnlab.record import NO_INFLUENCE

Schedule = Literal["rederived", "constant"]
COMPILE_FROM_PETAFLOPS = 2.0  # of training: below that compiling costs more time than it saves


@dataclass(frozen=True, kw_only=True)
class Extension(Config):
    """The shorter run that a run goes on from, as far as it decides the steps after it."""

    steps: int  # of the shorter run
    schedule: Schedule  # of the learning rate, from there on
    extends: "Extension | None" = None  # the one that the shorter run went on from

    def problems(self) -> Iterator[Problem]:
        if self.steps < 1:
            yield Problem("steps", f"must be at least 1, got {self.steps}")
        yield from _not_shorter(self.extends, self.steps)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    steps: int = 1000
    batch_size: int = 4  # sequences a step
    seq_len: int = 1024  # tokens a sequence
    learning_rate: float = 3e-4  # the peak
    warmup_steps: int = 100
    final_learning_rate_ratio: float = 0.1  # of the peak, reached at the last step
    weight_decay: float = 0.01  # of matrices; norms, biases and other vectors never decay
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    clip_norm: float = 1.0
    log_every: int = 50
    eval_every: int = 100
    eval_batch_size: int = 16  # sequences at a time; no influence on the result
    checkpoint_every: int = 500
    extends: Extension | None = None  # None: it begins at step 0
    keep: Literal["best_and_last", "last", "none"] = "best_and_last"  # once the run has ended
    precision: Literal["auto", "bfloat16", "float32"] = "auto"  # auto: bfloat16 autocast on CUDA
    compile: Literal["auto", "on", "off"] = "auto"  # auto: on CUDA, where the run is long enough
    cuda_graph: Literal["auto", "off"] = "auto"  # auto: the whole step is one graph on CUDA

    def problems(self) -> Iterator[Problem]:
        counts = ("steps", "batch_size", "seq_len", "log_every", "eval_every", "eval_batch_size")
        for name in (*counts, "checkpoint_every"):
            if getattr(self, name) < 1:
                yield Problem(name, f"must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "eps", "clip_norm"):
            if getattr(self, name) <= 0:
                yield Problem(name, f"must be positive, got {getattr(self, name)}")
        for name in ("weight_decay", "warmup_steps"):
            if getattr(self, name) < 0:
                yield Problem(name, f"must not be negative, got {getattr(self, name)}")
        if 1 <= self.steps <= self.warmup_steps:
            advice = f"the peak is never reached; set it below {self.steps}"
            yield Problem("warmup_steps", f"{self.warmup_steps} of {self.steps} steps: {advice}")
        yield from _not_shorter(self.extends, self.steps)
        if not 0 <= self.final_learning_rate_ratio <= 1:
            yield Problem("final_learning_rate_ratio", "must be in [0, 1]")
        if not all(0 <= beta < 1 for beta in self.betas):
            yield Problem("betas", f"must be in [0, 1), got {list(self.betas)}")

    def extended(self, steps: int, schedule: Schedule) -> "TrainConfig":
        """These settings, and more steps. The learning rate stays as it was in the steps that there
        were; then it is what it would be there in a run of `steps` from the start, or, "constant",
        what it was at the last of them.
        """
        extends = Extension(steps=self.steps, schedule=schedule, extends=self.extends)
        return replace(self, steps=steps, extends=extends)

    def shorter(self) -> "TrainConfig | None":
        """The settings of the run that this one extends; None where it extends none."""
        if self.extends is None:
            return None
        return replace(self, steps=self.extends.steps, extends=self.extends.extends)

    def identity_fields(self) -> dict[str, Any]:
        """`to_dict` without what has no influence on the result."""
        fields = self.to_dict().items()
        return {name: value for name, value in fields if name not in NO_INFLUENCE}

    def checkpoint_due(self, step: int) -> bool:
        """Whether the state after `step` (counted from 1) is written: the last one is to be kept,
        those before it are for a run that is cut off.
        """
        if step == self.steps:
            return self.keep != "none"
        return step % self.checkpoint_every == 0

    @property
    def n_checkpoints(self) -> int:
        """How many a whole run writes."""
        before_the_last = math.ceil(self.steps / self.checkpoint_every) - 1
        return before_the_last + (self.keep != "none")

    def precision_on(self, device_type: str) -> str:
        """`bfloat16` (autocast over float32 weights) or `float32`."""
        if self.precision == "auto":
            return "bfloat16" if device_type == "cuda" else "float32"
        return self.precision

    def compiles_on(self, device_type: str, petaflops: float) -> bool:
        """Whether the model is compiled for a run of this much arithmetic, all steps together."""
        if self.compile == "auto":
            return device_type == "cuda" and petaflops >= COMPILE_FROM_PETAFLOPS
        return self.compile == "on"


def _not_shorter(extends: Extension | None, steps: int) -> Iterator[Problem]:
    if extends is not None and extends.steps >= steps:
        yield Problem("extends.steps", f"must be below {steps}, got {extends.steps}")
