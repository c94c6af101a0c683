"""The minimum detectable difference of a study (80 % power), and the seeds that would decide it.

For a difference of size d between two variants, with standard deviation s per run and S runs each,

    power(d) = E[ Phi((d - sqrt(h^2 + A^2)) / (s sqrt(2 / S))) ]

where h is the half-width of the pair's simultaneous interval and A the allowance for tuning of the
worse one. Means and the variances that h is computed from are independent, so the expectation is
over h alone: an average over simulated studies of equal variances.

Shapes: R simulated studies, V variants.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from attnlab.analysis.statistics.noise import pair_noise
from attnlab.analysis.statistics.quantiles import all_pairs

Array = NDArray[np.float64]
POWER = 0.8
LEVEL = 0.05
MOST_SEEDS = 100
_NUMBERS = 20_000  # variances that are simulated; enough for two digits


@dataclass(frozen=True, kw_only=True)
class Power:
    """The smallest difference between two variants that is found with a probability of 80 %."""

    standard_deviations: float | None  # in residual SDs; None without comparisons
    residual_sd: float | None  # of one run, seed effects removed, nats/token; None if unknown
    residual_sd_source: str | None  # where `residual_sd` comes from
    variants: int  # that are compared with one another; the most, where groups of them are
    shared: str = ""  # what these share, in words; empty where all variants are compared

    @property
    def nats(self) -> float | None:
        """The minimum detectable difference in nats/token; None if it is unknown."""
        if self.standard_deviations is None or self.residual_sd is None:
            return None
        return self.standard_deviations * self.residual_sd


def detectable(
    spread: float, variants: int, seeds: int, allowance: float = 0.0, level: float = LEVEL
) -> float | None:
    """Return the minimum detectable difference at 80 % power, with error rate `level` in all.

    `spread` is the standard deviation per run and `allowance` what tuning may have missed; the
    result has their unit. None for fewer than two seeds or variants.

    >>> round(detectable(0.01, variants=11, seeds=5), 3)
    0.033
    """
    if seeds < 2 or variants < 2:
        return None
    if not spread > 0:
        return allowance
    half_R = np.hypot(spread * _half_of_unit_spread(variants, seeds, level), allowance)
    error = spread * math.sqrt(2 / seeds)
    low, high = 0.0, float(half_R.max()) + 10 * error
    if not math.isfinite(high):
        return math.inf
    for _ in range(40):
        middle = (low + high) / 2
        if float(np.mean(ndtr((middle - half_R) / error))) < POWER:
            low = middle
        else:
            high = middle
    return high


def seeds_to_decide(
    difference: float, spread: float, variants: int, allowance: float = 0.0
) -> int | None:
    """Return the fewest seeds that separate a true `difference` with 80 % power.

    None if more than 100 would be needed, or no number: the difference is within the allowance.

    >>> seeds_to_decide(0.03, spread=0.01, variants=5)
    5
    """
    low, high = 2, MOST_SEEDS
    found = detectable(spread, variants, high, allowance)
    if found is None or not math.isfinite(found) or abs(difference) < found:
        return None
    while low < high:
        middle = (low + high) // 2
        enough = detectable(spread, variants, middle, allowance)
        if enough is not None and abs(difference) >= enough:
            high = middle
        else:
            low = middle + 1
    return low


@cache
def _half_of_unit_spread(variants: int, seeds: int, level: float) -> Array:
    """Return half-widths in simulated studies whose runs have standard deviation 1."""
    shown = min(variants, 20)  # of more, the prior degrees of freedom hardly depend on it
    studies = max(_NUMBERS // shown, 200)
    df = seeds - 1
    own_RV = np.random.default_rng(0).chisquare(df, (studies, shown)) / df
    error_R, df_R = pair_noise(own_RV, float(df))
    return all_pairs(variants).quantile(level, df_R) * error_R * math.sqrt(1 / seeds)
