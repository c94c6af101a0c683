"""The smallest difference that a study can be trusted to find.

For a difference of size d between two variants, with noise of standard deviation s on every run,

    power(d) = E[ Phi((d - h s) / (s sqrt(2 / S))) ]

where h is the half width of the pair's simultaneous interval in units of s. The difference of two
means and the spread that h is made of are independent, so the expectation is over h alone: an
average over simulated studies without noise in d. The detectable difference has power 0.8.

Shapes: R simulated studies, S seeds, V variants.
"""

import math
from functools import cache
from typing import cast

import numpy as np
from scipy.special import ndtr

from attnlab.analysis.statistics.separation import Layout, Method, half_width_VV

POWER = 0.8
_NUMBERS = 200_000  # drawn; enough for two digits


def detectable(spread: float, variants: int, seeds: int, method: Method = "tukey") -> float | None:
    """Difference found with a chance of 0.8, with at most 5 % chance of any false claim.

    `spread` is the standard deviation of one run about the effects of its variant and its seed, in
    nats. None for fewer than two seeds or variants, which show no difference whatever its size.

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
