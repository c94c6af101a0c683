"""The learning rate of every step, and the curve of loss against it: vertex, noise and bounds.

A linear warm-up comes first, then the schedule:

    rate_s = peak min(1, (s + 1) / warm-up) f(s)        s = 0, 1, ..., steps - 1

The schedules decide f: cosine decay over all later steps (Loshchilov & Hutter 2017,
arXiv:1608.03983), or warm-up, stable, decay (Hu et al. 2024, arXiv:2404.06395; its shapes: Hägele
et al. 2024, arXiv:2405.18392).

On the curve, rates are counted in half octaves, and losses are in nats/token. What a search does
with it is in `training.search`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from attnlab.config import Choice, Problem

NEAR = 4  # half octaves from the best rate: runs beyond say little about its parabola
SHRINKS = 2 / 3  # largest ratio of the gain of an octave to that of the octave above it
KINK_WEIGHT = 0.25  # weight of the kink's lowest point; the rest is that of the parabola's vertex
FAR = 0.05  # nats/token above the best: a run this much worse has half the weight
SURE = 6  # standard deviations of a run by which gains must shrink more than that
Array = NDArray[np.float64]


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


def vertex(losses: Mapping[int, float]) -> tuple[float, float]:
    """Return where the curve near the best rate is lowest, and a bound of what its shape hides.

    Two curves are fitted: a parabola to all runs, where a run that is y nats/token worse than the
    best has the weight 1 / (1 + (y / 0.05)^2), and a kink, |x - k| times a slope, to the best rate
    and its neighbours; where one of these diverged, to the best rate and the next two on the other
    side. The place is between their lowest points, nearer to the parabola's, which has less noise.

    Args:
        losses: nats/token by half octaves from the best rate; those at -1, 0 and 1 are among them.
            Infinite: it diverged.

    Returns:
        The place in half octaves from the best rate, in [-1, 1]; and the loss (nats/token) that the
        shape can hide there: the larger one of the parabola's rise a quarter of an octave from its
        vertex, and the kink's rise from its lowest point to the place. Where a neighbour diverged,
        at least the other one's loss above the best, since a curve that bends upwards falls no
        faster beyond the best rate than before.

    >>> place, missed = vertex({-1: 5.0, 0: 4.9, 1: 5.1})
    >>> round(place, 3), round(missed, 4)
    (-0.188, 0.0375)
    """
    low, high = losses[-1] - losses[0], losses[1] - losses[0]
    slope, least, side = max(low, high), 0.0, 0
    kink = (low - high) / (2 * slope) if 0 < slope < math.inf else 0.0
    if math.isinf(slope):
        least, side = min((low, -1), (high, 1))
        slope = losses.get(2 * side, math.inf) - losses[side]
        if not 0 < slope < math.inf:
            return 0.0, least
        kink = side * max(0.0, (slope - least) / (2 * slope))
    a, b, _ = _parabola(*_finite(losses, losses[0])).tolist()
    place = min(1.0, max(-1.0, -b / (2 * a))) if a > 1e-12 else 0.0  # else: all equal, or noise
    if side:
        place = side * max(0.0, side * place)
    place = (1 - KINK_WEIGHT) * place + KINK_WEIGHT * kink
    return place, max(a / 4, slope * abs(place - kink), least)


def noise_of(losses: Mapping[int, float]) -> float:
    """Return the standard deviation of runs from their parabola, nats/token; 0 for three or fewer.

    >>> round(noise_of({0: 5.1, 1: 5.0, 2: 5.1, 3: 5.4, 4: 5.9}), 3), noise_of({0: 5.0, 1: 5.1})
    (0.0, 0.0)
    """
    place, rise = _finite(losses, min(losses.values(), default=0.0))
    if len(place) <= 3:
        return 0.0
    left = (rise - np.polyval(_parabola(place, rise), place)) / np.hypot(1, rise / FAR)
    return float(np.sqrt((left**2).sum() / (len(place) - 3)))


def below_lowest(losses: Mapping[int, float], noise: float) -> float:
    """Return a bound of what lower rates can gain (nats/token) where the lowest one is the best.

    If each octave gains at most two thirds of the one above it, all octaves further down together
    gain less than the last two did. Infinite if the last two do not show that, by six times the
    `noise` of a run (nats/token), or are not known.
    """
    last, before = (losses.get(p, math.nan) - losses.get(p - 2, math.nan) for p in (2, NEAR))
    shrinks = last <= SHRINKS * before - SURE * noise
    return last + before if min(losses) == 0 and shrinks else math.inf


def _finite(losses: Mapping[int, float], best: float) -> tuple[Array, Array]:
    """Return positions, and losses above the best, of the runs that did not diverge."""
    finite = {place: loss - best for place, loss in losses.items() if math.isfinite(loss)}
    return np.array(list(finite), float), np.array(list(finite.values()), float)


def _parabola(place: Array, rise: Array) -> Array:
    return np.polyfit(place, rise, 2, w=1 / np.hypot(1, rise / FAR))
