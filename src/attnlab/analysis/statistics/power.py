"""The minimum detectable difference of a study (80 % power).

For a difference of size d between two variants, with residual standard deviation s per run,

    power(d) = E[ Phi((d - h s) / (s sqrt(2 / S))) ]

where h is the half width of the pair's simultaneous interval in units of s. The difference of two
means and the residuals that h is computed from are independent, so the expectation is over h alone:
an average over simulated studies. The minimum detectable difference has power 0.8.

Shapes: R simulated studies, S seeds, V variants.
"""

import math
from functools import cache
from typing import cast

import numpy as np
from scipy.special import ndtr

from attnlab.analysis.statistics.separation import Layout, Method, half_width_VV

POWER = 0.8
_NUMBERS = 200_000  # random numbers; enough for two digits


def detectable(spread: float, variants: int, seeds: int, method: Method = "tukey") -> float | None:
    """Return the minimum detectable difference at 80 % power and 5 % family-wise error.

    `spread` is the residual standard deviation per run, seed effects removed; the result has its
    unit. None for fewer than two seeds or variants.

    >>> round(detectable(0.01, variants=11, seeds=5), 3)
    0.034
    """
    if seeds < 2 or variants < 2:
        return None
    return spread * _of_unit_spread(variants, seeds, method)


@cache
def _of_unit_spread(variants: int, seeds: int, method: Method) -> float:
    from scipy.optimize import brentq  # a quarter of a second of import

    studies = _NUMBERS // (variants * seeds)
    losses_RSV = np.random.default_rng(0).standard_normal((studies, seeds, variants))
    half_R = half_width_VV(Layout(losses_RSV), method)[:, 0, 1]
    error = math.sqrt(2 / seeds)

    def missing(difference: float) -> float:
        return POWER - float(np.mean(ndtr((difference - half_R) / error)))

    return cast("float", brentq(missing, 0, half_R.max() + 10 * error))
