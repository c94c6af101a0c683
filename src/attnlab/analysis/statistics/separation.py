"""Tests of all pairs of variants, with a family-wise error of at most 5 %.

The data are a two-way layout: every variant is trained with every seed.

    y_sv = mean + seed_s + variant_v + e_sv        r_sv = y_sv - y_s. - y_.v + y_..

A seed shifts all variants alike (same batches, same initial values), so its effect is removed, and
the residuals r estimate the error. Their pooled variance has (S - 1)(V - 1) degrees of freedom. The
residual variance of one variant alone is estimated by Grubbs 1948, who subtracts from its sum of
squares the share of the others:

    pooled = sum(r^2) / ((S - 1)(V - 1))
    own_v  = max(0, V / (V - 2) (sum_s r_sv^2 / (S - 1) - pooled / V))

Of two procedures, a study gets the one with the narrower interval for its median pair. By "tukey",
two variants are distinguishable if both hold:

    Tukey:  |d| > q(0.95; V, df) / sqrt(2)   sqrt(2 pooled / S)      seed-blocked HSD, Tukey 1949
    own:    |d| > t(1 - 0.025 / (V - 1); f)  sqrt((own_i + own_j) / S)       f by Welch 1947

and the interval is the wider of the two. Tukey's alone assumes equal variances. No test can check
that with three seeds, and one variant with five times the standard deviation of the others then
makes a false claim in one study of four; "own", a Bonferroni bound over the V - 1 comparisons of
one variant, prevents that. Where the variance of a few variants is far above the others', it
inflates the pooled variance, and "holm" has more power: paired t tests (Holm 1979), which assume no
common variance. Which interval is narrower depends on the residuals alone, not on the differences.

The family-wise error was simulated for 2 to 13 variants, 3 to 10 seeds and standard deviations of
one, half or all but one of the variants up to thirty times the others': at most 5.2 %. The tests
repeat the corners.

Shapes: S seeds, V variants, P pairs; leading axes are separate studies, so that a simulation of
thousands is one call.
"""

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

Array = NDArray[np.float64]


ERROR = 0.05  # family-wise

Method = Literal["tukey", "holm"]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Layout:
    """The losses `losses_SV` of at least two variants with at least two seeds each."""

    losses_SV: Array

    def __post_init__(self) -> None:
        assert self.seeds >= 2, "one seed gives no variance"
        assert self.variants >= 2, "one variant has no pair"

    @property
    def seeds(self) -> int:
        return self.losses_SV.shape[-2]

    @property
    def variants(self) -> int:
        return self.losses_SV.shape[-1]

    @cached_property
    def difference_VV(self) -> Array:
        """Mean of one variant (row) minus mean of another (column), in nats/token."""
        mean_V = self.losses_SV.mean(-2)
        return mean_V[..., :, None] - mean_V[..., None, :]

    @property
    def df(self) -> int:
        """Degrees of freedom of the pooled variance."""
        return (self.seeds - 1) * (self.variants - 1)

    @cached_property
    def pooled(self) -> Array:
        """Residual variance per run, effects of seed and variant removed, pooled over variants."""
        return self._squares_V.sum(-1) / self.df

    @cached_property
    def own_V(self) -> Array:
        """Residual variance per run of each variant alone; of two variants, the pooled one."""
        V, pooled_1 = self.variants, self.pooled[..., None]
        if V == 2:
            return np.repeat(pooled_1, 2, axis=-1)
        shares_V = self._squares_V / (self.seeds - 1)
        return np.maximum(0, V / (V - 2) * (shares_V - pooled_1 / V))

    @cached_property
    def paired_VV(self) -> Array:
        """Sample variance over seeds of the difference of two variants."""
        y_SV = self.losses_SV
        return (y_SV[..., :, None] - y_SV[..., None, :]).var(-3, ddof=1)

    @cached_property
    def _squares_V(self) -> Array:
        y_SV = self.losses_SV
        centred_SV = y_SV - y_SV.mean(-1, keepdims=True)
        residual_SV = centred_SV - centred_SV.mean(-2, keepdims=True)
        return np.square(residual_SV).sum(-2)


def method_for(layout: Layout) -> Method:
    """Return the procedure with the narrower interval for the median pair of one study."""
    return "holm" if _holm_is_narrower(layout) else "tukey"


def half_width_VV(layout: Layout, method: Method) -> Array:
    """Return the half width of each simultaneous 95 % interval, in nats/token.

    It is the wider of Tukey's and own, or Bonferroni's for "holm".
    """
    if method == "tukey":
        return np.maximum(tukey_half_width(layout)[..., None, None], own_half_width_VV(layout))
    return _bonferroni(layout) * np.sqrt(layout.paired_VV / layout.seeds)


def p_VV(layout: Layout, method: Method) -> Array:
    """Return p values of one study, adjusted for all pairs; distinguishable: p < 0.05."""
    return _holm_p_VV(layout) if method == "holm" else _tukey_p_VV(layout)


def separable_VV(layout: Layout) -> Bools:
    """Return which pairs are distinguishable, each study by the procedure that suits it."""
    tukey = np.abs(layout.difference_VV) > half_width_VV(layout, "tukey")
    holm = _holm_p_VV(layout) < ERROR
    return np.where(_holm_is_narrower(layout)[..., None, None], holm, tukey)


def tukey_half_width(layout: Layout) -> Array:
    """Return the half width of Tukey's interval, the same for all pairs."""
    return _studentized_range(layout.variants, layout.df) * np.sqrt(layout.pooled / layout.seeds)


def own_half_width_VV(layout: Layout) -> Array:
    """Return the half width of the interval from the residual variances of the two variants."""
    variance_VV, df_VV = _welch(layout)
    quantile_VV = stdtrit(df_VV, 1 - ERROR / 2 / (layout.variants - 1))
    return quantile_VV * np.sqrt(variance_VV)


def _holm_is_narrower(layout: Layout) -> Bools:
    rows, columns = np.triu_indices(layout.variants, 1)
    tukey_P = half_width_VV(layout, "tukey")[..., rows, columns]
    holm_P = half_width_VV(layout, "holm")[..., rows, columns]
    # for two variants, both are the same interval up to rounding
    return np.median(holm_P, axis=-1) < (1 - 1e-9) * np.median(tukey_P, axis=-1)


def _welch(layout: Layout) -> tuple[Array, Array]:
    """Return the variance of each difference, and its Welch-Satterthwaite degrees of freedom."""
    own_V, S = layout.own_V, layout.seeds
    first_VV, second_VV = own_V[..., :, None], own_V[..., None, :]
    sum_VV, squares_VV = first_VV + second_VV, first_VV**2 + second_VV**2
    most_VV = np.full_like(sum_VV, 2.0 * (S - 1))
    df_VV = np.divide((S - 1) * sum_VV**2, squares_VV, out=most_VV, where=squares_VV > 0)
    return sum_VV / S, df_VV


def tukey_p(difference: Array, layout: Layout) -> Array:
    """Return the probability of so large a difference in one study without true differences."""
    from scipy.stats import studentized_range  # half a second of import

    ranges = _ratio(np.abs(difference), np.sqrt(layout.pooled / layout.seeds))
    # beyond 1000 the probability is 0 to any digit, but the quadrature fails
    return studentized_range.sf(np.minimum(ranges, 1e3), layout.variants, layout.df)


def _tukey_p_VV(layout: Layout) -> Array:
    """Return the p values of "tukey" for one study."""
    difference_VV = layout.difference_VV
    rows, columns = np.triu_indices(layout.variants, 1)
    tukey_VV = np.ones_like(difference_VV)
    tukey_VV[rows, columns] = tukey_p(difference_VV[rows, columns], layout)
    tukey_VV[columns, rows] = tukey_VV[rows, columns]
    variance_VV, df_VV = _welch(layout)
    own_VV = 2 * stdtr(df_VV, -_ratio(np.abs(difference_VV), np.sqrt(variance_VV)))
    return np.maximum(tukey_VV, np.minimum(1, (layout.variants - 1) * own_VV))


def _holm_p_VV(layout: Layout) -> Array:
    """Return the smallest p times the number of pairs, the next times one less, ...; monotone."""
    rows, columns = np.triu_indices(layout.variants, 1)
    error_VV = np.sqrt(layout.paired_VV / layout.seeds)
    t_P = _ratio(np.abs(layout.difference_VV), error_VV)[..., rows, columns]
    p_P = 2 * stdtr(layout.seeds - 1, -t_P)
    order_P = np.argsort(p_P, axis=-1)
    stepped_P = np.take_along_axis(p_P, order_P, -1) * np.arange(p_P.shape[-1], 0, -1)
    np.put_along_axis(p_P, order_P, np.maximum.accumulate(stepped_P, -1), -1)
    holm_VV = np.ones_like(error_VV)
    holm_VV[..., rows, columns] = holm_VV[..., columns, rows] = np.minimum(1, p_P)
    return holm_VV


def _ratio(difference: Array, error: Array) -> Array:
    """Return the difference in units of its error: 0 for no difference, infinite for no error."""
    difference, error = np.broadcast_arrays(difference, error)
    beyond = np.where(difference > 0, np.inf, 0.0)
    return np.divide(difference, error, out=beyond, where=error > 0)


def _bonferroni(layout: Layout) -> float:
    """Return the t quantile that bounds the family-wise error over all pairs."""
    pairs = layout.variants * (layout.variants - 1) // 2
    return float(stdtrit(layout.seeds - 1, 1 - ERROR / 2 / pairs))


@cache
def _studentized_range(variants: int, df: int) -> float:
    """Return the 0.95 quantile q; for two variants, the t quantile times sqrt(2)."""
    from scipy.stats import studentized_range  # half a second of import

    return float(studentized_range.ppf(1 - ERROR, variants, df))
