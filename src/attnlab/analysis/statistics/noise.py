"""Means of variants and the errors of their differences, from all finished runs.

    y_vs = mean_v + seed_s + e_vs        var(e_vs) = variance_v

Any layout will do: a variant may lack seeds that others have. Two questions are decided from the
residuals, which do not depend on the differences between variants.

**Are runs of one seed alike?** All variants read the same batches at a seed. Where that makes their
losses move together, the seed effect is removed ("paired"); where it does not, removing it costs
degrees of freedom, and where only some variants move together it understates the error of the
others. It is removed only if the F test of seeds is significant at `PAIRING_LEVEL`, and differences
within most pairs vary less than half as much as two independent runs would.

**Is a variant as noisy as the others?** A variance estimated from three or four runs is often far
too small, and one variance for all is wrong where a variant trains near its limit of stability. As
in moderated t tests (Smyth 2004), each variance is an average of its own estimate and of a typical
one, the median over variants:

    variance_v = (p typical + d_v own_v) / (p + d_v)      d_v = runs of v - 1,  f_v = p + d_v

with p = `PRIOR` degrees of freedom for the typical one. The difference of two means then has

    error^2 = variance_i / n_i + variance_j / n_j      f by Welch 1947, Satterthwaite 1946

**Spikes.** A run so far from the others of its variant that noise as theirs would give it in less
than one of `1 / SPIKE_LEVEL` studies is set aside: a variant must have at least four runs, and
loses at most one. It is named wherever the verdict is.

Shapes: V variants, S seeds, N runs.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma, fdtrc, polygamma, stdtrit

Array = NDArray[np.float64]
Losses = Mapping[str, Mapping[int, float]]  # variant: {seed: loss}

PRIOR_LESS, PRIOR_LEAST, PRIOR_MOST = 1.5, -0.5, 3.0
PAIRING_LEVEL = 0.05
STRUCTURE_LEVEL = 0.95
SPIKE_LEVEL = 0.001
_LEAST_FOR_SPIKES = 4  # runs


@dataclass(frozen=True, kw_only=True)
class Spike:
    """A run that is far from the other runs of its variant."""

    variant: str
    seed: int
    loss: float
    others: float  # mean loss of the variant's other runs
    deviations: float  # (loss - others) in units of the noise of a run


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Means of at least two variants with at least two runs each, and their errors."""

    names: tuple[str, ...]
    runs: tuple[int, ...]  # by variant, without spikes
    mean_V: Array  # nats/token; differences between them are what is estimated
    weight_VN: Array  # mean_V = weight_VN @ losses of the runs
    variant_N: NDArray[np.intp]
    variance_V: Array  # of a run, seed effects removed if paired
    own_V: Array  # the same, from the variant's own runs alone
    typical: float
    df_V: Array
    paired: bool
    spikes: tuple[Spike, ...]

    @cached_property
    def difference_VV(self) -> Array:
        """Mean of one variant (row) minus mean of another (column)."""
        return self.mean_V[:, None] - self.mean_V[None, :]

    @cached_property
    def error_VV(self) -> Array:
        """Standard error of each difference."""
        weighted_VN = self.weight_VN * np.sqrt(self.variance_V[self.variant_N])
        gram_VV = weighted_VN @ weighted_VN.T
        own_V = np.diag(gram_VV)
        return np.sqrt(np.maximum(own_V[:, None] + own_V[None, :] - 2 * gram_VV, 0))

    @cached_property
    def df_VV(self) -> Array:
        """Degrees of freedom of each standard error."""
        part_V = self.variance_V / np.array(self.runs)
        sum_VV = part_V[:, None] + part_V[None, :]
        each_V = part_V**2 / self.df_V
        each_VV = each_V[:, None] + each_V[None, :]
        most = float(sum(self.runs) - len(self.runs))  # no pair knows more than all runs together
        found_VV = np.full_like(sum_VV, most)
        np.divide(sum_VV**2, each_VV, out=found_VV, where=each_VV > 0)
        return np.minimum(found_VV, most)


def fit(losses: Losses) -> Noise:
    """Estimate means and noise. Every variant has at least two runs."""
    assert len(losses) >= 2
    assert all(len(of_variant) >= 2 for of_variant in losses.values())
    layout = _Layout.of(losses)
    spikes = tuple(_spikes(layout))
    if spikes:
        gone = {(spike.variant, spike.seed) for spike in spikes}
        layout = _Layout.of(
            {
                name: {seed: loss for seed, loss in of.items() if (name, seed) not in gone}
                for name, of in losses.items()
            }
        )
    paired = _paired(layout)
    weight_VN = layout.weight_VN(paired)
    own_V, df_V = layout.own_variances(paired), layout.runs_V - 1
    typical, prior = _typical(own_V, df_V), _prior(own_V, df_V)
    return Noise(
        names=layout.names,
        runs=tuple(int(n) for n in layout.runs_V),
        mean_V=weight_VN @ layout.loss_N,
        weight_VN=weight_VN,
        variant_N=layout.variant_N,
        variance_V=_moderated(own_V, df_V, typical, prior),
        own_V=own_V,
        typical=typical,
        df_V=np.maximum(df_V + prior, 0.5),
        paired=paired,
        spikes=spikes,
    )


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """The runs as vectors."""

    names: tuple[str, ...]
    seeds: tuple[int, ...]
    loss_N: Array
    variant_N: NDArray[np.intp]
    seed_N: NDArray[np.intp]

    @classmethod
    def of(cls, losses: Losses) -> "_Layout":
        seeds = tuple(sorted({seed for found in losses.values() for seed in found}))
        place = {seed: i for i, seed in enumerate(seeds)}
        runs = [(v, place[s], y) for v, of in enumerate(losses.values()) for s, y in of.items()]
        variant, seed, loss = zip(*runs, strict=True)
        return cls(
            names=tuple(losses),
            seeds=seeds,
            loss_N=np.array(loss, float),
            variant_N=np.array(variant),
            seed_N=np.array(seed),
        )

    @cached_property
    def runs_V(self) -> Array:
        return np.bincount(self.variant_N, minlength=len(self.names)).astype(float)

    @cached_property
    def average_VN(self) -> Array:
        """The matrix that averages the runs of each variant."""
        member_VN = np.arange(len(self.names))[:, None] == self.variant_N
        return member_VN / self.runs_V[:, None]

    @cached_property
    def seed_NS(self) -> Array:
        return (self.seed_N[:, None] == np.arange(len(self.seeds))).astype(float)

    @cached_property
    def seed_effect_SN(self) -> Array:
        """The matrix that estimates the seed effects by least squares, their sum 0."""
        centred_NS = self.seed_NS - (self.average_VN @ self.seed_NS)[self.variant_N]
        return np.asarray(np.linalg.pinv(centred_NS, rcond=1e-9), np.float64)

    def weight_VN(self, paired: bool) -> Array:
        """Return the matrix whose product with the losses is the mean of each variant."""
        if not paired:
            return self.average_VN
        return self.average_VN - self.average_VN @ self.seed_NS @ self.seed_effect_SN

    def residual_N(self, paired: bool) -> Array:
        centred_N = self.loss_N - (self.average_VN @ self.loss_N)[self.variant_N]
        if not paired:
            return centred_N
        effect_N = self.seed_NS @ (self.seed_effect_SN @ self.loss_N)
        return centred_N - (effect_N - (self.average_VN @ effect_N)[self.variant_N])

    def own_variances(self, paired: bool) -> Array:
        """Return unbiased variances of a run of each variant, at least 0.

        Paired, the squares of a variant's residuals hold a share of all variances: with
        M = the matrix that makes residuals of losses, E[sum of squares of v] = sum over w of
        variance_w sum over the runs of v and w of M^2, a linear system (for complete layouts that
        of Grubbs 1948).
        """
        count = len(self.names)
        squares_V = np.bincount(self.variant_N, self.residual_N(paired) ** 2, count)
        if not paired:
            return squares_V / (self.runs_V - 1)
        member_NV = self.average_VN.T * self.runs_V > 0
        keep_NN = np.eye(len(self.loss_N)) - self.average_VN[self.variant_N]
        centred_NS = self.seed_NS - (self.average_VN @ self.seed_NS)[self.variant_N]
        squares_NN = (keep_NN - centred_NS @ self.seed_effect_SN) ** 2
        share_VV = member_NV.T.astype(float) @ squares_NN @ member_NV
        return np.maximum(np.linalg.lstsq(share_VV, squares_V, rcond=1e-9)[0], 0.0)


def _paired(layout: _Layout) -> bool:
    """True if the seed effect is to be removed."""
    plain_N, blocked_N = layout.residual_N(False), layout.residual_N(True)
    rank = np.linalg.matrix_rank(layout.seed_effect_SN, tol=1e-9)
    df = len(layout.loss_N) - len(layout.names) - rank
    if df < 1 or rank < 1:
        return False
    removed = float(plain_N @ plain_N - blocked_N @ blocked_N) / rank
    left = float(blocked_N @ blocked_N) / df
    if left <= 0:
        return removed > 0
    if fdtrc(rank, df, removed / left) > PAIRING_LEVEL:
        return False
    if _variance_ratio(layout, plain_N) >= 0.5:
        return False
    return not _structured(layout, blocked_N)


def _structured(layout: _Layout, blocked_N: Array) -> bool:
    """True if some variants still move together when the seed effect is removed."""
    table_VS = np.zeros((len(layout.names), len(layout.seeds)))
    table_VS[layout.variant_N, layout.seed_N] = blocked_N
    return _share(table_VS) > _usual_share(*table_VS.shape)


def _share(table_VS: Array) -> float:
    """Return the share of the first principal component, each variant scaled to unit variance."""
    size_V1 = np.sqrt((table_VS**2).sum(1, keepdims=True))
    scaled_VS = table_VS / np.maximum(size_V1, 1e-300)
    values = np.linalg.eigvalsh(scaled_VS.T @ scaled_VS)
    return float(values[-1] / max(values.sum(), 1e-300))


@cache
def _usual_share(variants: int, seeds: int) -> float:
    """Return the 0.8 quantile of that share for independent runs."""
    noise_RVS = np.random.default_rng(0).standard_normal((200, variants, seeds))
    noise_RVS -= noise_RVS.mean(1, keepdims=True)
    noise_RVS -= noise_RVS.mean(2, keepdims=True)
    return float(np.quantile([_share(noise_VS) for noise_VS in noise_RVS], STRUCTURE_LEVEL))


def _variance_ratio(layout: _Layout, plain_N: Array) -> float:
    """Return the median over pairs of var(y_i - y_j) / (var(y_i) + var(y_j)), at shared seeds."""
    table_VS = np.full((len(layout.names), len(layout.seeds)), np.nan)
    table_VS[layout.variant_N, layout.seed_N] = plain_N
    here_VS = np.isfinite(table_VS).astype(float)
    filled_VS = np.nan_to_num(table_VS)
    shared_VV = here_VS @ here_VS.T
    square_VV = filled_VS**2 @ here_VS.T
    product_VV = filled_VS @ filled_VS.T
    both_VV = square_VV + square_VV.T
    known = np.triu((shared_VV >= 2) & (both_VV > 0), 1)
    ratio = 1 - 2 * product_VV[known] / both_VV[known]
    return float(np.median(ratio)) if ratio.size else 1.0


def _typical(own_V: Array, df_V: Array) -> float:
    """Return the median of the variances, each divided by its expected median."""
    median_V = (1 - 2 / (9 * df_V)) ** 3  # of chi2 / degrees of freedom, Wilson and Hilferty 1931
    if len(own_V) < 3:
        return float(np.average(own_V, weights=df_V))
    return float(np.median(own_V / median_V))


def _prior(own_V: Array, df_V: Array) -> float:
    """Return the degrees of freedom that the typical variance is worth for each variant.

    True variances with a scaled inverse chi2 distribution of p degrees of freedom make log own_V
    vary by trigamma(d / 2) + trigamma(p / 2). The dispersion is taken high, by its own error.
    """
    if own_V.max() <= 0 or len(own_V) < 2:
        return 0.0
    log_V = np.log(np.maximum(own_V, 1e-6 * own_V.max())) - digamma(df_V / 2) + np.log(df_V / 2)
    observed = float(log_V.var(ddof=1)) * (1 + 2 / math.sqrt(len(own_V) - 1))
    excess = max(observed - float(polygamma(1, df_V / 2).mean()), 1e-3)
    found = (1 + math.sqrt(1 + 2 * excess)) / excess  # trigamma(x) ~ 1 / x + 1 / (2 x^2)
    return min(max(found - PRIOR_LESS, PRIOR_LEAST), PRIOR_MOST)


def _moderated(own_V: Array, df_V: Array, typical: float, prior: float) -> Array:
    weight = max(prior, 0.0)
    return np.maximum((weight * typical + df_V * own_V) / (weight + df_V), typical)


def _spikes(layout: _Layout) -> Iterator[Spike]:
    """Yield the spiked runs, at most one per variant."""
    y_N, n_V = layout.loss_N - _shared_by_medians(layout), layout.runs_V
    deviation_N = y_N - (layout.average_VN @ y_N)[layout.variant_N]
    squares_V = np.bincount(layout.variant_N, deviation_N**2)
    own_V, n_N = squares_V / (n_V - 1), n_V[layout.variant_N]
    # of two variants, the other one; of more, the median hardly depends on this one
    typical_V = own_V[::-1] if len(n_V) == 2 else np.full_like(own_V, _typical(own_V, n_V - 1))
    away_N = deviation_N * n_N / (n_N - 1)  # from the mean of the variant's other runs
    left_N = np.maximum(squares_V[layout.variant_N] - deviation_N * away_N, 0)
    prior = PRIOR_MOST
    df_N = prior + n_N - 2
    error_N = np.sqrt((prior * typical_V[layout.variant_N] + left_N) / df_N * n_N / (n_N - 1))
    bound_N = stdtrit(df_N, 1 - SPIKE_LEVEL / 2 / len(y_N)) * error_N
    for v in np.flatnonzero(n_V >= _LEAST_FOR_SPIKES):
        runs = np.flatnonzero(layout.variant_N == v)
        far = runs[np.argmax(np.abs(deviation_N[runs]))]
        if np.abs(away_N[far]) > bound_N[far]:
            loss = float(layout.loss_N[far])
            yield Spike(
                variant=layout.names[v],
                seed=layout.seeds[layout.seed_N[far]],
                loss=loss,
                others=float((layout.loss_N[runs].sum() - loss) / (n_V[v] - 1)),
                deviations=float(away_N[far] / max(error_N[far], 1e-300)),
            )


def _shared_by_medians(layout: _Layout) -> Array:
    """Return the seed effect of each run by medians, which a spike does not move; or zeros."""
    table_VS = np.full((len(layout.names), len(layout.seeds)), np.nan)
    table_VS[layout.variant_N, layout.seed_N] = layout.loss_N
    table_VS -= np.nanmedian(table_VS, axis=1, keepdims=True)
    plain_N = table_VS[layout.variant_N, layout.seed_N]
    if _variance_ratio(layout, layout.residual_N(False)) >= 0.5:
        return np.zeros_like(plain_N)
    return np.nanmedian(table_VS, axis=0)[layout.seed_N]
