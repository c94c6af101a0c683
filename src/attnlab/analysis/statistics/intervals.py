"""Pairwise comparisons: difference, simultaneous interval, p value; and tiers.

Shapes: S seeds, V functions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

import numpy as np

from attnlab.analysis.statistics import separation
from attnlab.analysis.statistics.paired import Difference, paired_difference
from attnlab.analysis.statistics.separation import Layout

Method = Literal["tukey", "holm", "none"]
Column = Mapping[int, float]  # {seed: loss}
Pairs = Mapping[tuple[str, str], "Comparison"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One variant minus another, in nats/token. Negative: the first is better."""

    mean: float
    low: float | None  # simultaneous 95 % interval over all pairs; None without a verdict
    high: float | None
    p: float | None  # adjusted for all pairs
    n: int  # seeds
    separable: bool  # distinguishable: p < 0.05, and the simultaneous interval excludes 0
    equivalent: bool  # the simultaneous interval lies within the study's margin
    paired_low: float | None  # unadjusted paired t interval: 95 % for this pair alone
    paired_high: float | None


@dataclass(frozen=True, kw_only=True)
class Functions:
    """The functions among the variants of a study: one with several names counts once."""

    losses: Mapping[str, Column]  # variant: {seed: loss}, over the same seeds
    groups: Sequence[Sequence[str]]  # names of one function
    columns: Sequence[Column]  # of each group

    @classmethod
    def of(cls, losses: Mapping[str, Column], same: Sequence[Sequence[str]]) -> "Functions":
        """Group `same`, the names of equal settings, further by equal losses."""
        found: dict[tuple[float, ...], list[str]] = {}
        for names in same:
            columns = {tuple(losses[name].values()) for name in names}
            mean = np.mean(list(columns), axis=0) if len(columns) > 1 else columns.pop()
            found.setdefault(tuple(map(float, mean)), []).extend(names)
        seeds = next(iter(losses.values()), {})
        columns = [dict(zip(seeds, column, strict=True)) for column in found]
        return cls(losses=losses, groups=tuple(found.values()), columns=columns)

    def layout(self) -> Layout | None:
        """Return the two-way layout; None for fewer than two functions or two seeds."""
        losses_SV = np.array([list(column.values()) for column in self.columns]).T
        return Layout(losses_SV) if min(losses_SV.shape, default=0) > 1 else None

    def compare(self, layout: Layout | None, method: Method, margin: float) -> Pairs:
        """Compare every variant with every other, in both directions."""
        place = {name: v for v, names in enumerate(self.groups) for name in names}
        if layout is None or method == "none":
            return {
                (one, other): _unjudged(self.losses[one], self.losses[other])
                for one, other in permutations(self.losses, 2)
            }
        half_VV = separation.half_width_VV(layout, method)
        p_VV = separation.p_VV(layout, method)
        pairs: dict[tuple[str, str], Comparison] = {}
        for one, other in permutations(self.losses, 2):
            v, w = place[one], place[other]
            if v == w:
                plain = _paired(self.losses[one], self.losses[other])
                half, p = _within(plain, layout)
            else:
                plain = _paired(self.columns[v], self.columns[w])
                half, p = float(half_VV[v, w]), float(p_VV[v, w])
            pairs[one, other] = _judged(plain, half, p, margin)
        return pairs


def _judged(plain: Difference, half: float, p: float, margin: float) -> Comparison:
    low, high = plain.mean - half, plain.mean + half
    separable = p < separation.ERROR
    if separable:  # what Holm's later steps separate has no interval beyond 0
        low, high = (max(low, 0.0), high) if plain.mean > 0 else (low, min(high, 0.0))
    paired_low, paired_high = plain.interval or (None, None)
    return Comparison(
        mean=plain.mean,
        low=low,
        high=high,
        p=p,
        n=plain.n,
        separable=separable,
        equivalent=-margin < low and high < margin,
        paired_low=paired_low,
        paired_high=paired_high,
    )


def _unjudged(one: Column, other: Column) -> Comparison:
    plain = _paired(one, other)
    paired_low, paired_high = plain.interval or (None, None)
    return Comparison(
        mean=plain.mean,
        low=None,
        high=None,
        p=None,
        n=plain.n,
        separable=False,
        equivalent=False,
        paired_low=paired_low,
        paired_high=paired_high,
    )


def _within(plain: Difference, layout: Layout) -> tuple[float, float]:
    """Return half width and p for two names of one function, by the pooled variance."""
    if plain.mean == 0 and plain.half_width == 0:
        return 0.0, 1.0  # equal to the last bit
    p = separation.tukey_p(np.array(plain.mean), layout)
    return float(separation.tukey_half_width(layout)), float(p)


def _paired(one: Column, other: Column) -> Difference:
    plain = paired_difference(one, other)
    assert plain is not None, "no seed in common"
    return plain


def tiers(order: Sequence[str], separable: Callable[[str, str], bool]) -> dict[str, int]:
    """Return the tier of each variant, from 1. `order` has the best first.

    A tier holds the best of the remaining variants, and those not distinguishable from it. That
    relation is not transitive: two of one tier may be distinguishable from each other, though
    neither is from the best of the tier.

    >>> tiers(["a", "b", "c", "d"], lambda one, other: abs(ord(one) - ord(other)) > 1)
    {'a': 1, 'b': 1, 'c': 2, 'd': 2}
    """
    found: dict[str, int] = {}
    rest, tier = list(order), 0
    while rest:
        tier, best = tier + 1, rest[0]
        found |= {name: tier for name in rest if name == best or not separable(best, name)}
        rest = [name for name in rest if name not in found]
    return {name: found[name] for name in order}
