"""Means over seeds, and differences paired by seed or by block of the text.

    d_s = a_s - b_s        mean(d) ± t(0.975, n - 1) sd(d) / sqrt(n)

All variants share batches and the initial values of shared weights at a seed, so the error that
they have in common cancels in d_s. Student 1908. sd is the sample standard deviation (n - 1).

One interval covers the true difference 95 % of the time. Several unadjusted intervals find a
difference where there is none far more often than 5 % of the time: `comparisons` adjusts them.

**On this text.** The held-out text is a sample of texts. Its blocks are resampled with the block
bootstrap (Künsch 1989): circular runs of blocks, since neighbouring ones are alike, with the same
draws for all variants. The spread of a difference over the draws is its error of the text.

Shapes: V variants, B blocks of the text, R draws.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # which imports its parts at first use: processes that train need none
from numpy.typing import NDArray

CONFIDENCE = 0.95
_NORMAL = 1.96  # quantile of that confidence
_DRAWS = 1000


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The mean of a number over the finished seeds of a variant."""

    mean: float
    spread: float | None  # sample standard deviation over seeds; None for one seed
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate | None":
        """Return the estimate from values; None if there are none.

        >>> Estimate.of([5.0, 5.2, 5.4]).mean
        5.2
        """
        if not values:
            return None
        with np.errstate(over="ignore"):  # of the perplexities of a run that went astray
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
        # the mean of equal values is their value, without rounding; an integer stays one
        mean = values[0] if len(set(values)) == 1 else math.fsum(values) / len(values)
        return cls(mean=mean, spread=spread, n=len(values))


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One variant minus another, paired by seed."""

    mean: float
    half_width: float | None  # of the 95 % t interval; None for one seed
    n: int  # seeds that both finished, or blocks of the text

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends of the interval; None for one seed."""
        if self.half_width is None:
            return None
        return self.mean - self.half_width, self.mean + self.half_width


def t_quantile(df: float, among: int = 1) -> float:
    """Return the t quantile of a two-sided 95 % interval, one of `among` that hold at once."""
    return float(scipy.special.stdtrit(df, 1 - (1 - CONFIDENCE) / (2 * among)))


def score_interval(fraction: float, n: int, among: int = 1) -> tuple[float, float]:
    """Return Wilson's interval (1927) of a fraction of n answers, one of `among`.

    >>> score_interval(1.0, 1000)
    (0.996..., 1.0)
    """
    share = t_quantile(math.inf, among) ** 2 / n
    centre = (fraction + share / 2) / (1 + share)
    half = math.sqrt(share * (fraction * (1 - fraction) + share / 4)) / (1 + share)
    return centre - half, centre + half


def paired_difference(
    first: Mapping[int, float], second: Mapping[int, float], among: int = 1
) -> Difference | None:
    """Return `first - second`, each `{seed: value}`, over the seeds in both; None for no seed.

    The interval is one of `among` that hold at once (Bonferroni).
    """
    estimate = Estimate.of([first[seed] - second[seed] for seed in first if seed in second])
    if estimate is None:
        return None
    half_width = None
    if estimate.spread is not None:
        half_width = t_quantile(estimate.n - 1, among) * estimate.spread / math.sqrt(estimate.n)
    return Difference(mean=estimate.mean, half_width=half_width, n=estimate.n)


def differences_on_text(
    loss_VB: NDArray[np.float64], tokens_B: NDArray[np.float64], reference: int
) -> list[Difference]:
    """Return each variant minus a reference, with the 95 % interval over the blocks of the text.

    Args:
        loss_VB: nats/token of each variant in each block, in the order of the text.
        tokens_B: tokens in each block.
        reference: the row to which others are compared.
    """
    blocks = len(tokens_B)
    length = max(1, round(blocks ** (1 / 3)))  # of a run of blocks, by Hall 1995
    rng = np.random.default_rng(0)
    starts = rng.integers(blocks, size=(_DRAWS, math.ceil(blocks / length)))
    drawn = (starts[..., None] + np.arange(length)).reshape(_DRAWS, -1)[:, :blocks] % blocks
    count_RB = np.zeros((_DRAWS, blocks))
    np.add.at(count_RB, (np.arange(_DRAWS)[:, None], drawn), tokens_B[drawn])
    difference_VB = loss_VB - loss_VB[reference]
    mean_V = difference_VB @ tokens_B / tokens_B.sum()
    drawn_RV = count_RB @ difference_VB.T / count_RB.sum(1, keepdims=True)
    half_V = _NORMAL * drawn_RV.std(0, ddof=1)
    return [
        Difference(mean=float(mean), half_width=float(half), n=blocks)
        for mean, half in zip(mean_V, half_V, strict=True)
    ]
