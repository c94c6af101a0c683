"""Means over seeds, and differences between two variants paired by seed.

    d_s = a_s - b_s        mean(d) ± t(0.975, n - 1) sd(d) / sqrt(n)

For one seed all variants share batches and the initial values of shared weights, so the noise that
they have in common cancels in d_s. Student 1908. sd is the sample standard deviation (n - 1).

One interval covers the true difference 95 % of the time. Reading ten of them at once, unadjusted,
finds a difference where there is none far more often than 5 % of the time: `separation` adjusts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit  # the t quantile of scipy.stats, without its second of import

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number of one variant, over its finished seeds."""

    mean: float
    spread: float | None  # sample standard deviation over seeds; None for one seed
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate | None":
        """None for no values.

        >>> Estimate.of([5.0, 5.2, 5.4]).mean
        5.2
        """
        if not values:
            return None
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
        # equal values have themselves for a mean, without rounding; a whole number stays whole
        mean = values[0] if len(set(values)) == 1 else math.fsum(values) / len(values)
        return cls(mean=mean, spread=spread, n=len(values))


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One variant minus another."""

    mean: float
    half_width: float | None  # of the 95 % t interval; None for one seed
    n: int  # seeds that both finished

    @property
    def interval(self) -> tuple[float, float] | None:
        if self.half_width is None:
            return None
        return self.mean - self.half_width, self.mean + self.half_width


def paired_difference(
    first: Mapping[int, float], second: Mapping[int, float], among: int = 1
) -> Difference | None:
    """`first - second` over the seeds that both have, as `{seed: value}`. None for no such seed.

    The interval is one of `among` that are to hold all at once (Bonferroni).
    """
    estimate = Estimate.of([first[seed] - second[seed] for seed in first if seed in second])
    if estimate is None:
        return None
    half_width = None
    if estimate.spread is not None:
        quantile = float(stdtrit(estimate.n - 1, 1 - (1 - CONFIDENCE) / (2 * among)))
        half_width = quantile * estimate.spread / math.sqrt(estimate.n)
    return Difference(mean=estimate.mean, half_width=half_width, n=estimate.n)
