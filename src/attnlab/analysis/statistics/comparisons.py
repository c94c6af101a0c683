"""Simultaneous comparisons of variants: all pairs, with the baseline, with the best; letters.

For a difference d = mean_i - mean_j with standard error e and f degrees of freedom (`noise`), each
family of intervals holds for all of its members at once with 95 % confidence:

    all pairs       d +- q(V, f) / sqrt(2) e     Tukey 1949, Kramer 1956, Games and Howell 1976
    to a baseline   d +- c(V - 1, f) e           Dunnett 1955
    to the best     mean_i - min of the others, one-sided Dunnett intervals with each variant as the
                    control, constrained to contain 0 (Hsu 1981, Edwards and Hsu 1983), and t(f) e
                    at least: else one of two equal variants is the best in 10 % of studies
    this pair alone d +- t(f) e

Tuning adds its own error. A variant whose search may have missed its best settings by up to A is
at its best up to A better than it was seen. The runs of the search are others than those of the
verdict, so that the two errors are independent, and the published interval of i - j is

    [d - sqrt(h^2 + A_i^2), d + sqrt(h^2 + A_j^2)]        A^2 = allowance^2 + (n q s)^2

with the half-width h of the seeds. The allowance is what the shape of the curve can hide from the
search, s the standard deviation of a run, q the all-pairs quantile of normal noise, and n the
`search_noise`: by how many standard deviations the noise of its runs misleads it. A comparison
holds both parts. Without tuning every A is 0, and a statement holds for the recipe as it was.

**Letters** (a compact letter display, Piepho 2004): two variants share a letter exactly if the
interval of their difference contains 0.

Shapes: V variants.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from attnlab.analysis.statistics.layout import Losses
from attnlab.analysis.statistics.letters import letter_display
from attnlab.analysis.statistics.noise import Noise, Relative, fit, missed_by_search
from attnlab.analysis.statistics.quantiles import Maximum, all_pairs, one_sided, to_one

Array = NDArray[np.float64]
ERROR = 0.05  # family-wise


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One variant minus another, in nats/token. Negative: the first is better."""

    mean: float
    half_width: float | None  # of the seeds, simultaneous 95 %; None without a verdict
    alone: float | None  # half-width for this pair alone, without the others
    first_allowance: float = 0.0  # by which tuning may have missed the best of the first variant
    second_allowance: float = 0.0
    p: float | None = None  # adjusted: the largest error rate at which the interval excludes 0
    margin: float = 0.0  # nats/token; differences within it count as equivalent
    deviation: float | None = None  # standard deviation per run of the two, root mean square

    @property
    def low(self) -> float | None:
        """Lower end of the published interval, of seeds and tuning."""
        return None if self.half_width is None else self._low(self.half_width)

    @property
    def high(self) -> float | None:
        """Upper end of the published interval, of seeds and tuning."""
        return None if self.half_width is None else self._high(self.half_width)

    @property
    def alone_low(self) -> float | None:
        """Lower end of the interval for this pair alone."""
        return None if self.alone is None else self._low(self.alone)

    @property
    def alone_high(self) -> float | None:
        """Upper end of the interval for this pair alone."""
        return None if self.alone is None else self._high(self.alone)

    @property
    def separable(self) -> bool:
        """True if the published interval excludes 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def equivalent(self) -> bool:
        """True if the published interval lies within the margin."""
        return self.low is not None and -self.margin < self.low and self.not_worse

    @property
    def not_worse(self) -> bool:
        """True if the first variant is not worse by the margin or more (non-inferior)."""
        return self.high is not None and self.high < self.margin

    def _low(self, half: float) -> float:
        return self.mean - math.hypot(half, self.first_allowance)

    def _high(self, half: float) -> float:
        return self.mean + math.hypot(half, self.second_allowance)


@dataclass(frozen=True, kw_only=True)
class ToBest:
    """A variant minus the best of the others: below 0 it may be the best, and by how much."""

    low: float  # 0 or less; 0: certainly not the best
    high: float  # 0 or more; 0: certainly the best


@dataclass(frozen=True)
class Comparisons:
    """All comparisons of a study; each is computed when it is asked for."""

    noise: Noise
    allowance_V: Array
    baseline: str | None
    margin: float
    level: float

    @property
    def names(self) -> tuple[str, ...]:
        """The variants, in the order given."""
        return self.noise.names

    @cached_property
    def means(self) -> dict[str, float]:
        """The mean of each variant, whose differences are compared."""
        return dict(zip(self.names, self.noise.mean_V.tolist(), strict=True))

    @cached_property
    def half_VV(self) -> Array:
        """Half-width of the seeds, simultaneous over all pairs."""
        quantile = all_pairs(len(self.names)).quantile(self.level, self.noise.df_VV)
        return np.maximum(quantile * self.noise.error_VV, self._alone_VV)

    @cached_property
    def low_VV(self) -> Array:
        """Lower ends of the published intervals, row minus column."""
        return self.noise.difference_VV - np.hypot(self.half_VV, self.allowance_V[:, None])

    @cached_property
    def high_VV(self) -> Array:
        """Upper ends of the published intervals, row minus column."""
        return self.noise.difference_VV + np.hypot(self.half_VV, self.allowance_V[None, :])

    @cached_property
    def separable_VV(self) -> NDArray[np.bool_]:
        """True where the published interval excludes 0."""
        return (self.low_VV > 0) | (self.high_VV < 0)

    @cached_property
    def pairs(self) -> dict[tuple[str, str], Comparison]:
        """Every variant minus every other, in both directions."""
        p_VV = self._p(all_pairs(len(self.names)), self.separable_VV, np.s_[:])
        columns = map(self._comparisons, range(len(self.names)), self.half_VV.T, p_VV.T)
        rows = zip(self.names, zip(*columns, strict=True), strict=True)
        found = {(one, other): of[j] for one, of in rows for j, other in enumerate(self.names)}
        return {pair: of for pair, of in found.items() if pair[0] != pair[1]}

    @cached_property
    def to_baseline(self) -> dict[str, Comparison]:
        """Every other variant minus the baseline, by Dunnett's intervals; empty without one."""
        if self.baseline not in self.names:
            return {}
        b = self.names.index(self.baseline)
        distribution = to_one(len(self.names) - 1, self.noise.correlation_to(b))
        df_V = self.noise.df_to(b)
        half_V = distribution.quantile(self.level, df_V) * self.noise.error_VV[:, b]
        # the wider quantile of all pairs covers the baseline's comparisons, too
        half_V = np.clip(half_V, self._alone_VV[:, b], self.half_VV[:, b])
        difference_V = self.noise.difference_VV[:, b]
        separable_V = difference_V - np.hypot(half_V, self.allowance_V) > 0
        separable_V |= difference_V + np.hypot(half_V, self.allowance_V[b]) < 0
        p_V = self._p(distribution, separable_V, np.s_[:, b])
        found = dict(zip(self.names, self._comparisons(b, half_V, p_V), strict=True))
        return {name: found[name] for name in self.names if name != self.baseline}

    @cached_property
    def to_best(self) -> dict[str, ToBest]:
        """Every variant minus the best of the others, by Hsu's constrained intervals."""
        count = len(self.names)
        half_VV = np.zeros((count, count))  # row: the control
        for i in range(count):
            quantile = one_sided(count - 1, self.noise.correlation_to(i))
            half_VV[i] = quantile.quantile(self.level, self.noise.df_VV[i])
        half_VV = np.maximum(half_VV * self.noise.error_VV, self._alone_VV)
        difference_VV = self.noise.difference_VV
        apart = ~np.eye(count, dtype=bool)
        # i may be better than the best of the others by as much as this
        lost_VV = difference_VV - np.hypot(half_VV, self.allowance_V[:, None])
        best_V = np.nextafter(np.where(apart, lost_VV, -np.inf).max(1), -np.inf)  # a tie is open
        candidate_V = best_V < 0
        worst_VV = difference_VV + np.hypot(half_VV.T, self.allowance_V[None, :])
        ends = np.where(apart & candidate_V[None, :], worst_VV, -np.inf).max(1)
        high_V = np.where(candidate_V & (candidate_V.sum() == 1), 0.0, np.maximum(ends, 0.0))
        low_V = np.minimum(best_V, 0.0)
        return {
            name: ToBest(low=float(low), high=float(high))
            for name, low, high in zip(self.names, low_V, high_V, strict=True)
        }

    @cached_property
    def letters(self) -> dict[str, tuple[str, ...]]:
        """The letters of each variant: two share one exactly if they are not distinguishable."""
        order = np.argsort(self.noise.mean_V, kind="stable")
        same_VV = ~self.separable_VV[np.ix_(order, order)]
        found = letter_display(same_VV)
        of = {self.names[v]: letters for v, letters in zip(order, found, strict=True)}
        return {name: of[name] for name in self.names}

    def within(
        self, name: str, first: Mapping[int, float], second: Mapping[int, float]
    ) -> Comparison:
        """Compare the losses by seed of two names of a function, by the noise of `name`."""
        if dict(first) == dict(second):
            return Comparison(mean=0.0, half_width=0.0, alone=0.0, p=1.0, margin=self.margin)
        v = self.names.index(name)
        mean = float(np.mean(list(first.values())) - np.mean(list(second.values())))
        run = self.noise.part_V[v] * self.noise.runs[v]  # variance of a run
        error = float(np.sqrt(run * (1 / len(first) + 1 / len(second))))
        distribution, df = all_pairs(len(self.names)), self.noise.df_V[v]
        half = float(distribution.quantile(self.level, df)) * error
        return Comparison(
            mean=mean,
            half_width=half,
            alone=float(scipy.special.stdtrit(df, 1 - self.level / 2)) * error,
            p=float(distribution.beyond(abs(mean) / error if error else np.inf, df)),
            margin=self.margin,
        )

    def _comparisons(self, j: int, half_V: Array, p_V: Array) -> list[Comparison]:
        """Return every variant minus variant `j`."""
        square_V = self.noise.deviation_V**2
        columns = {
            "mean": self.noise.difference_VV[:, j],
            "half_width": half_V,
            "alone": self._alone_VV[:, j],
            "first_allowance": self.allowance_V,
            "p": p_V,
            "deviation": np.sqrt((square_V + square_V[j]) / 2),
        }
        shared = {"second_allowance": float(self.allowance_V[j]), "margin": self.margin}
        values = zip(*(column.tolist() for column in columns.values()), strict=True)
        return [Comparison(**dict(zip(columns, of, strict=True)), **shared) for of in values]

    @cached_property
    def _alone_VV(self) -> Array:
        df, place = np.unique(self.noise.df_VV, return_inverse=True)  # there are few
        quantile_N = scipy.special.stdtrit(df, 1 - self.level / 2)
        return quantile_N[place].reshape(self.noise.df_VV.shape) * self.noise.error_VV

    def _p(self, distribution: Maximum, separable: NDArray[np.bool_], at: Any) -> Array:
        """Return the largest error rate at which each interval excludes 0, of all or a column."""
        noise = self.noise
        difference, error, df = noise.difference_VV[at], noise.error_VV[at], noise.df_VV[at]
        first_VV, second_VV = np.broadcast_arrays(self.allowance_V[:, None], self.allowance_V)
        allowance = np.where(difference > 0, first_VV[at], second_VV[at])
        beyond = np.sqrt(np.maximum(difference**2 - allowance**2, 0))
        t = np.divide(beyond, error, out=np.where(beyond > 0, 1e9, 0.0), where=error > 0)
        p = np.clip(distribution.beyond(t, df), 2 * scipy.special.stdtr(df, -t), 1.0)
        # rounding in the table never contradicts an interval
        below = np.nextafter(self.level, 0)
        return np.where(separable, np.minimum(p, below), np.maximum(p, self.level))


def compare(
    losses: Losses,
    *,
    baseline: str | None = None,
    allowance: Mapping[str, float] | None = None,
    search_noise: Mapping[str, float] | None = None,
    margin: float = 0.01,
    level: float = ERROR,
    relative: Relative | None = None,
) -> Comparisons:
    """Compare variants from all of their runs.

    Args:
        losses: nats/token by variant and seed; at least two variants, each with at least two runs.
            Names of one function are one variant: give it once.
        baseline: the variant to which Dunnett's intervals compare.
        allowance: nats/token that the shape of its curve may have hidden from the search of a
            variant; 0 for a variant that is not named.
        search_noise: standard deviations of a run by which noise misleads the search of a variant;
            0 for a variant that is not named.
        margin: nats/token; differences within it count as equivalent.
        level: error rate of each family of intervals.
        relative: variances of the variants relative to each other, where other comparisons of the
            same families tell them (`noise.relative_variances`).
    """
    noise = fit(losses, relative)
    shape_V, noise_V = (
        np.array([(given or {}).get(name, 0.0) for name in noise.names])
        for given in (allowance, search_noise)
    )
    assert (shape_V >= 0).all(), "an allowance is a loss that tuning may have missed"
    allowance_V = missed_by_search(shape_V, noise_V, noise.deviation_V, level)
    return Comparisons(noise, allowance_V, baseline, margin, level)
