"""Means over seeds, and differences between two variants paired by seed.

    d_s = a_s - b_s        mean(d) ± t(0.975, n - 1) sd(d) / sqrt(n)

All variants share batches and the initial values of shared weights at a seed, so the error that
they have in common cancels in d_s. Student 1908. sd is the sample standard deviation (n - 1).

One interval covers the true difference 95 % of the time. Several unadjusted intervals find a
difference where there is none far more often than 5 % of the time: `comparisons` adjusts them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit  # the t quantile of scipy.stats, without its second of import

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The mean of a number over the finished seeds of a variant."""

    mean: float
    spread: float | None  # sample standard deviation over seeds; None for one seed
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate | None":
        """Return the estimate from values; None if there are none.

        >>> Estimate.of([5.0, 5.2, 5.4]).mean
        5.2
        """
        if not values:
            return None
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
        # the mean of equal values is their value, without rounding; an integer stays one
        mean = values[0] if len(set(values)) == 1 else math.fsum(values) / len(values)
        return cls(mean=mean, spread=spread, n=len(values))


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One variant minus another, paired by seed."""

    mean: float
    half_width: float | None  # of the 95 % t interval; None for one seed
    n: int  # seeds that both finished

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends of the interval; None for one seed."""
        if self.half_width is None:
            return None
        return self.mean - self.half_width, self.mean + self.half_width


def paired_difference(
    first: Mapping[int, float], second: Mapping[int, float], among: int = 1
) -> Difference | None:
    """Return `first - second`, each `{seed: value}`, over the seeds in both; None for no seed.

    The interval is one of `among` that hold at once (Bonferroni).
    """
    estimate = Estimate.of([first[seed] - second[seed] for seed in first if seed in second])
    if estimate is None:
        return None
    half_width = None
    if estimate.spread is not None:
        quantile = float(stdtrit(estimate.n - 1, 1 - (1 - CONFIDENCE) / (2 * among)))
        half_width = quantile * estimate.spread / math.sqrt(estimate.n)
    return Difference(mean=estimate.mean, half_width=half_width, n=estimate.n)
