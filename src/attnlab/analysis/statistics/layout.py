"""The runs of a study as vectors, and two decisions on them: which runs are spikes, and pairing.

    y_vs = mean_v + seed_s + e_vs

**Spikes.** A run so far from the others of its variant that noise like theirs makes such a run in
less than one of `1 / SPIKE_LEVEL` studies is set aside: a variant has at least four runs then, and
loses at most one. Of two variants alone, the level is a quarter. It is named wherever the verdict
is.

**Pairing.** All variants read the same batches at a seed. Where that makes their losses move
together, the seed effect is removed. Where it does not, removing it costs degrees of freedom, and
where only some variants move together, it understates the error of the others. It is removed if

    the F test of seeds is significant at `PAIRING_LEVEL`,
    differences vary less than half as much as of independent runs, in the median pair,
    no variants move together beyond that: the first principal component of what is left, each
    variant scaled to unit variance, explains no more than the `STRUCTURE_LEVEL` quantile of it
    for independent runs, and
    the median variance of what is left is at least `STEADY` times their upper quartile: the noise
    of a few variants is in every seed effect, and hides that of the others.

The decisions use residuals alone, which do not depend on the differences between variants.

Shapes: V variants, S seeds, N runs, R simulated studies, or the rank of the seed effects.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import scipy
from numpy.typing import NDArray

Array = NDArray[np.float64]
Losses = Mapping[str, Mapping[int, float]]  # variant: {seed: loss}

SPIKE_LEVEL = 0.0002
PAIRING_LEVEL = 0.03
STRUCTURE_LEVEL = 0.95
STEADY = 0.2
_LEAST_FOR_SPIKES = 4  # runs
_PRIOR = 3.0  # degrees of freedom of the typical variance beside a variant's own


@dataclass(frozen=True, kw_only=True)
class Spike:
    """A run that is far from the other runs of its variant."""

    variant: str
    seed: int
    loss: float
    others: float  # mean loss of the variant's other runs
    deviations: float  # (loss - others) in units of the noise of a run


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The runs as vectors."""

    names: tuple[str, ...]
    seeds: tuple[int, ...]
    loss_N: Array
    variant_N: NDArray[np.intp]
    seed_N: NDArray[np.intp]

    @classmethod
    def of(cls, losses: Losses) -> "Layout":
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
        value_R, vector_SR = self._normal
        return (vector_SR / value_R) @ (self.centred_NS @ vector_SR).T

    @property
    def seed_rank(self) -> int:
        """Degrees of freedom of the seed effects: one less than seeds that connect all variants."""
        return len(self._normal[0])

    @cached_property
    def centred_NS(self) -> Array:
        """The matrix of seeds, less its mean over the runs of each variant."""
        return self.seed_NS - (self.average_VN @ self.seed_NS)[self.variant_N]

    @cached_property
    def _normal(self) -> tuple[Array, Array]:
        """Eigenvalues above 0, and eigenvectors, of the matrix of the normal equations."""
        value_S, vector_SS = np.linalg.eigh(self.centred_NS.T @ self.centred_NS)
        kept_S = value_S > 1e-9
        return value_S[kept_S], vector_SS[:, kept_S]

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
        squares_NN = (keep_NN - self.centred_NS @ self.seed_effect_SN) ** 2
        share_VV = member_NV.T.astype(float) @ squares_NN @ member_NV
        return np.maximum(np.linalg.lstsq(share_VV, squares_V, rcond=1e-9)[0], 0.0)


def is_paired(layout: Layout) -> bool:
    """True if the seed effect is to be removed."""
    plain_N, blocked_N = layout.residual_N(False), layout.residual_N(True)
    rank = layout.seed_rank
    df = len(layout.loss_N) - len(layout.names) - rank
    if df < 1 or rank < len(layout.seeds) - 1 or rank < 1:
        return False  # nothing would be left, or the seeds do not connect all variants
    removed = float(plain_N @ plain_N - blocked_N @ blocked_N) / rank
    left = float(blocked_N @ blocked_N) / df
    if left <= 1e-18 * removed:  # rounding alone
        return removed > 0
    if scipy.special.fdtrc(rank, df, removed / left) > PAIRING_LEVEL:
        return False
    if _variance_ratio(layout, plain_N) >= 0.5:
        return False
    own_V = layout.own_variances(True)
    if typical_variance(own_V, layout.runs_V - 1) < STEADY * np.quantile(own_V, 0.75):
        return False
    return not _structured(layout, blocked_N)


def _structured(layout: Layout, blocked_N: Array) -> bool:
    """True if some variants still move together when the seed effect is removed."""
    table_VS = np.zeros((len(layout.names), len(layout.seeds)))
    table_VS[layout.variant_N, layout.seed_N] = blocked_N
    # of two variants, or of two seeds, both are 1 but for rounding
    return _share(table_VS) > _usual_share(*table_VS.shape) + 1e-9


def _share(table_VS: Array) -> float:
    """Return the share of the first principal component, each variant scaled to unit variance."""
    size_V1 = np.sqrt((table_VS**2).sum(1, keepdims=True))
    scaled_VS = table_VS / np.maximum(size_V1, 1e-300)
    values = np.linalg.eigvalsh(scaled_VS.T @ scaled_VS)
    return float(values[-1] / max(values.sum(), 1e-300))


@cache
def _usual_share(variants: int, seeds: int) -> float:
    """Return the `STRUCTURE_LEVEL` quantile of that share for independent runs."""
    noise_RVS = np.random.default_rng(0).standard_normal((200, variants, seeds))
    noise_RVS -= noise_RVS.mean(1, keepdims=True)
    noise_RVS -= noise_RVS.mean(2, keepdims=True)
    return float(np.quantile([_share(noise_VS) for noise_VS in noise_RVS], STRUCTURE_LEVEL))


def _variance_ratio(layout: Layout, plain_N: Array) -> float:
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


def spikes_in(layout: Layout) -> Iterator[Spike]:
    """Yield the spiked runs, at most one per variant."""
    y_N, n_V = layout.loss_N - _shared_by_medians(layout), layout.runs_V
    deviation_N = y_N - (layout.average_VN @ y_N)[layout.variant_N]
    squares_V = np.bincount(layout.variant_N, deviation_N**2)
    own_V, n_N = squares_V / (n_V - 1), n_V[layout.variant_N]
    typical_V, level = np.full_like(own_V, typical_variance(own_V, n_V - 1)), SPIKE_LEVEL
    if len(n_V) == 2:  # the median hardly depends on this variant; the other one may be quieter
        typical_V, level = own_V[::-1], SPIKE_LEVEL / 4
    away_N = deviation_N * n_N / (n_N - 1)  # from the mean of the variant's other runs
    left_N = np.maximum(squares_V[layout.variant_N] - deviation_N * away_N, 0)
    df_N = _PRIOR + n_N - 2
    error_N = np.sqrt((_PRIOR * typical_V[layout.variant_N] + left_N) / df_N * n_N / (n_N - 1))
    bound_N = scipy.special.stdtrit(df_N, 1 - level / 2 / len(y_N)) * error_N
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


def _shared_by_medians(layout: Layout) -> Array:
    """Return the seed effect of each run by medians, which a spike does not move; or zeros."""
    table_VS = np.full((len(layout.names), len(layout.seeds)), np.nan)
    table_VS[layout.variant_N, layout.seed_N] = layout.loss_N
    median = np.nanmedian if np.isnan(table_VS).any() else np.median  # which takes a tenth
    table_VS -= median(table_VS, axis=1, keepdims=True)
    plain_N = table_VS[layout.variant_N, layout.seed_N]
    if _variance_ratio(layout, layout.residual_N(False)) >= 0.5:
        return np.zeros_like(plain_N)
    return median(table_VS, axis=0)[layout.seed_N]


def typical_variance(own_V: Array, df_V: Array) -> Array:
    """Return the median of the variances, each divided by its expected median.

    It is their mean for two variants, and where the median is 0, as of seeds that gave equal
    losses, which tell nothing of the error.
    """
    mean = np.average(own_V, weights=df_V, axis=-1)
    if own_V.shape[-1] < 3:
        return mean
    median_V = (1 - 2 / (9 * df_V)) ** 3  # of chi2 / degrees of freedom, Wilson and Hilferty 1931
    median = np.median(own_V / median_V, axis=-1)
    return np.where(median > 0, median, mean)
