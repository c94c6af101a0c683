"""Means of variants and the errors of their differences, from all finished runs.

    y_vs = mean_v + seed_s + e_vs        var(e_vs) = variance_v

Any layout will do: a variant may lack seeds that others have. Spikes are set aside, and the seed
effect is removed where that reduces the error (`layout`).

A variance estimated from three or four runs is often far too small, and one variance for all is
wrong where a variant trains near its limit of stability. As in moderated t tests (Smyth 2004), each
variance is an average of its own estimate and of a typical one, the median over variants, and never
below that:

    variance_v = max(typical, (p typical + d_v own_v) / (p + d_v))       f_v = d_v + p

with d_v = runs of v - 1. The p degrees of freedom that the typical variance is worth follow from
how much the own variances differ: at most 3, and less than 0 for two variants and where they
differ widely, since a few of many variances then are too small by chance.

A ladder compares the same families of variants at each size and training length, each a comparison
of its own. There the variance of a family at one of them is

    typical_vc = scale_c relative_v

(`relative_variances`): how noisy a family is follows from all comparisons, the scale of one from
its own runs, and p from what this product leaves unexplained. The difference of two means has

    error^2 = variance_i / n_i + variance_j / n_j        f by Welch 1947, Satterthwaite 1946

Shapes: V variants, N runs, G groups of variants.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy
from numpy.typing import NDArray

from attnlab.analysis.statistics.layout import (
    Layout,
    Losses,
    Spike,
    is_paired,
    spikes_in,
    typical_variance,
)
from attnlab.analysis.statistics.quantiles import all_pairs

Array = NDArray[np.float64]
PRIOR_LESS, PRIOR_LEAST, PRIOR_MOST = 1.5, -1.0, 3.0
LEAST_OF_OWN = 0.3  # part of a variant's own degrees of freedom that p takes away at most
USUAL_COUNT, FEWER_OF_MANY = 13, 0.3  # of more variants, some are too small by chance more often
PRIOR_OF_TWO = -0.25  # two variances do not tell how much they differ
FEWEST_COMPARISONS = 6  # that tell how the variances of families differ


@dataclass(frozen=True, kw_only=True)
class Relative:
    """Ratios of the variances of variants within a comparison, as far as many of them tell."""

    variance: Mapping[str, float]  # by variant, relative to the typical one of its comparison
    prior: float  # degrees of freedom that it is worth for each variant


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Means of at least two variants with at least two runs each, and their errors."""

    names: tuple[str, ...]
    runs: tuple[int, ...]  # by variant, without spikes
    mean_V: Array  # nats/token; differences between them are what is estimated
    weight_VN: Array  # mean_V = weight_VN @ losses of the runs
    variance_N: Array  # of each run, seed effects removed if paired
    part_V: Array  # variance of each mean
    df_V: Array
    df: float  # of the residuals of all runs
    own_V: Array  # variance of a run, from the variant's own runs alone
    typical: float  # variance of a run of a typical variant
    paired: bool
    spikes: tuple[Spike, ...]
    relative: Relative | None  # how the variances differ, if other comparisons told it

    @cached_property
    def difference_VV(self) -> Array:
        """Mean of one variant (row) minus mean of another (column)."""
        return self.mean_V[:, None] - self.mean_V[None, :]

    @cached_property
    def deviation_V(self) -> Array:
        """Standard deviation of a run of each variant."""
        return np.sqrt(self.part_V * np.array(self.runs))

    @cached_property
    def error_VV(self) -> Array:
        """Standard error of each difference."""
        weighted_VN = self.weight_VN * np.sqrt(self.variance_N)
        gram_VV = weighted_VN @ weighted_VN.T
        own_V = np.diag(gram_VV)
        return np.sqrt(np.maximum(own_V[:, None] + own_V[None, :] - 2 * gram_VV, 0))

    @cached_property
    def df_VV(self) -> Array:
        """Degrees of freedom of each standard error."""
        return self._welch(self.df_V)

    def df_to(self, control: int) -> Array:
        """Return the degrees of freedom of the differences of all variants to one of them.

        The noise of the control is in all of them, so that its degrees of freedom are those of its
        own runs, which the other variants may say nothing about.
        """
        df_V = self.df_V.copy()
        df_V[control] = min(df_V[control], self.runs[control] - 1)
        return self._welch(df_V)[:, control]

    def correlation_to(self, control: int) -> float:
        """Return a correlation that no two differences to the control fall below.

        Lower correlations make wider intervals (Slepian 1962), and steps of 0.05 few tables.
        """
        own = self.part_V[control]
        most = np.delete(self.part_V, control).max()
        correlation = own / (own + most) if own + most > 0 else 0.5
        return float(np.clip(np.floor(correlation * 20) / 20, 0.0, 0.95))

    def _welch(self, df_V: Array) -> Array:
        sum_VV = self.part_V[:, None] + self.part_V[None, :]
        each_V = self.part_V**2 / df_V
        each_VV = each_V[:, None] + each_V[None, :]
        found_VV = np.full_like(sum_VV, self.df)
        np.divide(sum_VV**2, each_VV, out=found_VV, where=each_VV > 0)
        return np.minimum(found_VV, self.df)  # no pair knows more than all runs together

    def averaged(self, groups: Mapping[str, Sequence[str]]) -> "Noise":
        """Return the means of groups of variants, and the errors of their differences."""
        place = {name: v for v, name in enumerate(self.names)}
        average_GV = np.zeros((len(groups), len(self.names)))
        for g, members in enumerate(groups.values()):
            for name in members:
                average_GV[g, place[name]] += 1 / len(members)
        part_G = average_GV**2 @ self.part_V
        spread_G = average_GV**4 @ (self.part_V**2 / self.df_V)
        df_G = np.divide(part_G**2, spread_G, out=np.ones_like(part_G), where=spread_G > 0)
        return replace(
            self,
            names=tuple(groups),
            runs=tuple(sum(self.runs[place[n]] for n in members) for members in groups.values()),
            mean_V=average_GV @ self.mean_V,
            weight_VN=average_GV @ self.weight_VN,
            part_V=part_G,
            df_V=df_G,
        )


def fit(losses: Losses, relative: Relative | None = None) -> Noise:
    """Estimate means and noise. Every variant has at least two runs."""
    assert len(losses) >= 2
    assert all(len(of_variant) >= 2 for of_variant in losses.values())
    layout = Layout.of(losses)
    spikes = tuple(spikes_in(layout))
    if spikes:
        gone = {(spike.variant, spike.seed) for spike in spikes}
        layout = Layout.of(
            {
                name: {seed: loss for seed, loss in of.items() if (name, seed) not in gone}
                for name, of in losses.items()
            }
        )
    paired = is_paired(layout)
    weight_VN = layout.weight_VN(paired)
    own_V, df_V = layout.own_variances(paired), layout.runs_V - 1
    if relative is None:
        relative_V, prior = np.ones_like(own_V), _prior(own_V, df_V)
    else:
        relative_V = np.array([relative.variance[name] for name in layout.names])
        prior = np.asarray(relative.prior)
    typical = typical_variance(own_V / relative_V, df_V)
    variance_V = _moderated(own_V, df_V, typical * relative_V, prior)
    return Noise(
        names=layout.names,
        runs=tuple(int(n) for n in layout.runs_V),
        mean_V=weight_VN @ layout.loss_N,
        weight_VN=weight_VN,
        variance_N=variance_V[layout.variant_N],
        part_V=variance_V / layout.runs_V,
        df_V=np.maximum(df_V + prior, 0.5),
        df=float(max(df_V.sum() - (len(layout.seeds) - 1 if paired else 0), 1)),
        own_V=own_V,
        typical=float(typical),
        paired=paired,
        spikes=spikes,
        relative=relative,
    )


def relative_variances(comparisons: Sequence[Losses], family: Mapping[str, str]) -> Relative | None:
    """Return how the variances of families differ, from comparisons of the same families.

    log own_vc = log scale_c + log relative_v + noise is fitted by least squares, and the effects of
    the families are shrunk by the share of them that is noise. None where that does not explain
    the variances (p = 0 or less), or for fewer than six comparisons. Each has two variants at
    least, with two runs or more; `family` maps a variant to its family.
    """
    if len(comparisons) < FEWEST_COMPARISONS:
        return None
    found = [fit(losses) for losses in comparisons]
    families = sorted({family[name] for noise in found for name in noise.names})
    log_CF, chance_CF = np.full((2, len(found), len(families)), np.nan)
    for c, noise in enumerate(found):
        place = [families.index(family[name]) for name in noise.names]
        df_V = np.array(noise.runs) - 1
        log_CF[c, place] = _log_variances(noise.own_V, df_V)
        chance_CF[c, place] = scipy.special.polygamma(1, df_V / 2)
    known_CF, by_chance = np.isfinite(log_CF), float(np.nanmean(chance_CF))
    effect_F = np.zeros(len(families))
    for _ in range(20):  # once is enough where no family is missing anywhere
        effect_F = effect_F + np.nanmean(_within(log_CF - effect_F), axis=0)
    effect_F = effect_F - effect_F.mean()
    of_chance = by_chance * float((1 / known_CF.sum(0)).mean())
    kept = max(0.0, 1 - of_chance / max(float(effect_F.var(ddof=1)), 1e-300))
    left_CF = _within(log_CF - kept * effect_F)
    free = float(known_CF.sum()) - len(found) - kept * (len(families) - 1)
    prior = float(worth(np.nansum(left_CF**2) / free, by_chance, free))
    if prior <= 0:
        return None
    relative = dict(zip(families, np.exp(kept * effect_F).tolist(), strict=True))
    return Relative(
        variance={name: relative[family[name]] for losses in comparisons for name in losses},
        prior=prior,
    )


def _within(log_CF: Array) -> Array:
    """Return values minus the mean of their comparison."""
    return log_CF - np.nanmean(log_CF, axis=1, keepdims=True)


def missed_by_search(
    allowance_V: Array, search_noise_V: Array, deviation_V: Array, level: float
) -> Array:
    """Return the loss (nats/token) that each search may have missed, by shape and by noise.

    Args:
        allowance_V: nats/token that the shape of the curve can hide.
        search_noise_V: standard deviations of a run by which noise misleads the search.
        deviation_V: standard deviation of a run, nats/token. Leading axes are separate studies.
        level: error rate of the comparisons.
    """
    quantile = all_pairs(deviation_V.shape[-1]).quantile(level, np.inf)
    return np.hypot(allowance_V, search_noise_V * quantile * deviation_V)


def pair_noise(own_RV: Array, df: float, prior: float | None = None) -> tuple[Array, Array]:
    """Return sqrt(variance_1 + variance_2) of the first two variants, and its degrees of freedom.

    Both are computed from own variances of runs as `fit` does without pairing, for R studies whose
    variants all have `df` + 1 runs.
    """
    df_V = np.full(own_RV.shape[-1], df)
    typical_R1 = typical_variance(own_RV, df_V)[..., None]
    found_R = _prior(own_RV, df_V) if prior is None else np.full(len(own_RV), prior)
    prior_R1 = found_R[..., None]
    first_R, second_R = np.moveaxis(_moderated(own_RV, df_V, typical_R1, prior_R1)[..., :2], -1, 0)
    f_R = np.maximum(df + prior_R1[..., 0], 0.5)
    total_R = first_R + second_R
    pair_R = total_R**2 * f_R / (first_R**2 + second_R**2)
    return np.sqrt(total_R), np.minimum(pair_R, df_V.sum())


def _prior(own_V: Array, df_V: Array) -> Array:
    """Return the degrees of freedom that the typical variance is worth for each variant.

    True variances with a scaled inverse chi2 distribution of p degrees of freedom make log own_V
    vary by trigamma(d / 2) + trigamma(p / 2). The dispersion is taken high, by its own error. Of
    more than 13 variants, what p takes away grows with the logarithm of their number.
    """
    log_V = _log_variances(own_V, df_V)
    free = own_V.shape[-1] - 1
    found = worth(log_V.var(-1, ddof=1), scipy.special.polygamma(1, df_V / 2).mean(), free)
    of_many = 1 + FEWER_OF_MANY * np.log(max(1.0, own_V.shape[-1] / USUAL_COUNT))
    found = np.where(found < 0, of_many, 1.0) * found
    found = np.maximum(found, -LEAST_OF_OWN * of_many * df_V.mean())
    return np.minimum(found, PRIOR_OF_TWO) if free < 2 else found


def _log_variances(own_V: Array, df_V: Array) -> Array:
    """Return the logarithms of variances, less what few degrees of freedom add on average."""
    most_V1 = own_V.max(-1, keepdims=True)
    log_V = np.log(np.maximum(own_V, np.maximum(1e-6 * most_V1, 1e-300)))
    return log_V - scipy.special.digamma(df_V / 2) + np.log(df_V / 2)


def worth(dispersion: Array | float, by_chance: float, free: float) -> Array:
    """Return p from the variance of log variances, the part of it by chance, and its freedom."""
    excess = np.maximum(dispersion * (1 + 2 / np.sqrt(free)) - by_chance, 1e-3)
    found = (1 + np.sqrt(1 + 2 * excess)) / excess  # trigamma(x) ~ 1 / x + 1 / (2 x^2)
    return np.clip(found - PRIOR_LESS, PRIOR_LEAST, PRIOR_MOST)


def _moderated(own_V: Array, df_V: Array, typical: Array, prior: Array) -> Array:
    weight = np.maximum(prior, 0.0)
    return np.maximum((weight * typical + df_V * own_V) / (weight + df_V), typical)
