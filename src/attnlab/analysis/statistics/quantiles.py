"""Distributions of the largest of several studentised differences, for simultaneous intervals.

    all_pairs(V)             max over pairs of |Z_i - Z_j| / sqrt(2)      studentised range, Tukey
    to_one(k, correlation)   max over k of |Z_i|, equally correlated      Dunnett 1955
    one_sided(k, correlation)  max over k of Z_i, equally correlated      Hsu 1981

each divided by sqrt(chi2_f / f), the error of an estimated standard deviation with f degrees of
freedom. The numerator has one factor, so its distribution is one integral; the quotient has

    P(X / s > x) = E_X[ P(chi2_f < f (X / x)^2) ]

A table over f and x is made once per distribution, and read for any number of pairs: comparing 200
variants makes 19,900 of them. scipy has these distributions one value at a time.
"""

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_Z = np.linspace(-8.0, 8.0, 321)  # of the common factor
_Z_WEIGHT = np.exp(-(_Z**2) / 2) / np.sqrt(2 * np.pi) * (_Z[1] - _Z[0])
_STEP = 0.01  # of log x, so that the quotient is a convolution
_LOG_X = np.arange(np.log(0.02), np.log(2000.0), _STEP)
_NUMERATORS = int(np.log(10.0 / 0.02) / _STEP)  # the numerator is below 10
_X = np.exp(_LOG_X[:_NUMERATORS])
_NODES = np.arange(41)
_INVERSE_F = 0.001 + 0.999 * (_NODES / 40) ** 2  # 1 / degrees of freedom, from 1,000 to 1


@dataclass(frozen=True)
class Maximum:
    """The distribution of a studentised maximum; `cdf` is that of its numerator at `_X`."""

    cdf: tuple[float, ...]

    def beyond(self, x: ArrayLike, f: ArrayLike) -> Array:
        """Return the probability of a value above `x >= 0` with `f` degrees of freedom."""
        return self._beyond(np.log(np.maximum(x, 1e-300)), self._place(f))

    def quantile(self, level: float, f: ArrayLike) -> Array:
        """Return the value that is exceeded with probability `level`."""
        return np.exp(np.interp(self._place(f), _NODES, self._quantiles(level)))

    def _place(self, f: ArrayLike) -> Array:
        f = np.clip(f, 1.0, 1000.0)
        return 40 * np.sqrt((1 / f - 0.001) / 0.999)

    def _quantiles(self, level: float) -> Array:
        found = self._of_level.get(level)
        if found is None:
            # sf descends along x, and np.interp wants ascending abscissae
            found = np.array(
                [np.interp(-np.log(level), -row, _LOG_X) for row in self._log_beyond_FX]
            )
            self._of_level[level] = found
        return found

    def _beyond(self, log_x: Array, place: Array) -> Array:
        x_place = (log_x - _LOG_X[0]) / (_LOG_X[1] - _LOG_X[0])
        x_place = np.clip(x_place, 0, len(_LOG_X) - 1.001)
        i, j = place.astype(int), x_place.astype(int)
        i = np.minimum(i, len(_INVERSE_F) - 2)
        u, v, table = place - i, x_place - j, self._log_beyond_FX
        low = (1 - v) * table[i, j] + v * table[i, j + 1]
        high = (1 - v) * table[i + 1, j] + v * table[i + 1, j + 1]
        return np.exp((1 - u) * low + u * high)

    @cached_property
    def _of_level(self) -> dict[float, Array]:
        return {}

    @cached_property
    def _log_beyond_FX(self) -> Array:
        mass = np.diff(np.array(self.cdf), prepend=0.0)
        # P(chi2_f < f (X / x)^2) depends on log X - log x; X is in the middle of its step
        offset = _STEP * (np.arange(-len(_LOG_X) + 1, _NUMERATORS) - 0.5)
        f = 1 / _INVERSE_F[:, None]
        ratio_FO = scipy.special.chdtr(f, f * np.exp(2 * offset))
        beyond = [np.convolve(mass[::-1], row, "valid")[::-1] for row in ratio_FO]
        return np.log(np.maximum(beyond, 1e-300))


@cache
def all_pairs(count: int) -> Maximum:
    """Return the distribution of the largest difference between `count` independent means."""
    below_Z = scipy.special.ndtr(_Z)
    below_XZ = scipy.special.ndtr(_Z - np.sqrt(2) * _X[:, None])
    inside_XZ = np.maximum(below_Z - below_XZ, 0) ** (count - 1)
    return _made(count * inside_XZ @ _Z_WEIGHT)


@cache
def to_one(count: int, correlation: float = 0.5) -> Maximum:
    """Return the distribution of the largest absolute value of `count` correlated differences."""
    upper, lower = map(scipy.special.ndtr, _conditional(correlation))
    return _made(np.maximum(upper - lower, 0) ** count @ _Z_WEIGHT)


@cache
def one_sided(count: int, correlation: float = 0.5) -> Maximum:
    """Return the distribution of the largest of `count` correlated differences."""
    log_below = scipy.special.log_ndtr(_conditional(correlation)[0])
    return _made(np.exp(count * log_below) @ _Z_WEIGHT, start=0.0)


def _conditional(correlation: float) -> tuple[Array, Array]:
    """Return both ends, given the common factor, of an interval of half-width x."""
    own = np.sqrt(1 - correlation)
    shift = np.sqrt(correlation) * _Z
    return (_X[:, None] + shift) / own, (-_X[:, None] + shift) / own


def _made(cdf_X: Array, start: float | None = None) -> Maximum:
    cdf_X = np.maximum.accumulate(np.clip(cdf_X, 0, 1))
    if start is not None:  # negative maxima are no nearer to exceeding a positive value than 0
        cdf_X[0] = start
    return Maximum(tuple((cdf_X / cdf_X[-1]).tolist()))
