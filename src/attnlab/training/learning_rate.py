"""The learning rate of every step: a linear warm-up, then the schedule.

    rate_s = peak min(1, (s + 1) / warm-up) f(s)        s = 0, 1, ..., steps - 1

The schedules decide f: cosine decay over all later steps (Loshchilov & Hutter 2017,
arXiv:1608.03983), or warm-up, stable, decay (Hu et al. 2024, arXiv:2404.06395; its shapes: Hägele
et al. 2024, arXiv:2405.18392).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from attnlab.config import Choice, Problem


@dataclass(frozen=True, kw_only=True)
class Schedule(Choice, ABC):
    """The settings of the learning rate after the warm-up."""

    def decay_starts(self, steps: int) -> int | None:
        """Return the number of steps before the decay; None if it has no such start."""
        del steps
        return None

    @abstractmethod
    def factors(self, steps: int, warmup_steps: int, final_ratio: float) -> list[float]:
        """Return the rate of every step after the warm-up, relative to the peak: f."""


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Half a period of a cosine, from the warm-up to the last step."""

    def factors(self, steps: int, warmup_steps: int, final_ratio: float) -> list[float]:
        found = list[float]()
        for step in range(steps):
            progress = (step + 1 - warmup_steps) / max(1, steps - warmup_steps)
            cosine = (1 + math.cos(math.pi * min(1.0, max(0.0, progress)))) / 2
            found.append(final_ratio + (1 - final_ratio) * cosine)
        return found


@dataclass(frozen=True, kw_only=True)
class WarmupStableDecay(Schedule):
    """The peak rate until the last part of the steps, in which it falls to zero.

    Zero would be the rate of the step after the last. Until the decay the rate does not depend on
    the length of the run, so that runs of several lengths share their steps before it.
    """

    decay_fraction: float = 0.2  # part of the steps, the last ones, in which the rate falls
    shape: Literal["linear", "sqrt"] = "linear"  # of the fall: 1 - p, or 1 - sqrt(p), p from 0 to 1

    def problems(self) -> Iterator[Problem]:
        if not 0 < self.decay_fraction <= 1:
            yield Problem("decay_fraction", f"must be in (0, 1], got {self.decay_fraction:g}")

    def decay_starts(self, steps: int) -> int:
        return steps - max(1, round(self.decay_fraction * steps))

    def factors(self, steps: int, warmup_steps: int, final_ratio: float) -> list[float]:
        del warmup_steps, final_ratio
        start, found = self.decay_starts(steps), list[float]()
        for step in range(steps):
            progress = max(0, step + 1 - start) / (steps + 1 - start)
            found.append(1 - (math.sqrt(progress) if self.shape == "sqrt" else progress))
        return found


def learning_rates(
    schedule: Schedule, steps: int, *, peak: float, warmup_steps: int, final_ratio: float
) -> list[float]:
    """Return the learning rate of every step. The first one is above zero.

    `final_ratio` is the rate of the last step relative to the peak, for a cosine.

    >>> some = {"peak": 1.0, "warmup_steps": 2, "final_ratio": 0.1}
    >>> [round(rate, 3) for rate in learning_rates(Cosine(), 6, **some)]
    [0.5, 1.0, 0.868, 0.55, 0.232, 0.1]
    >>> stable = WarmupStableDecay(decay_fraction=0.5)
    >>> [round(rate, 3) for rate in learning_rates(stable, 6, **some)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    factors = schedule.factors(steps, warmup_steps, final_ratio)
    warm = [min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0 for step in range(steps)]
    return [peak * rise * factor for rise, factor in zip(warm, factors, strict=True)]
