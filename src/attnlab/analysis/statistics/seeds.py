"""Numbers of seeds: what a number can detect, what would decide a study, and adding them in looks.

**Power.** For a difference of size d between two variants, with standard deviation s per run and S
runs each,

    power(d) = E[ Phi((d - sqrt(h^2 + A^2)) / (s sqrt(2 / S))) ]

where h is the half-width of the pair's simultaneous interval and A the allowance for tuning of the
worse one. Means and the variances that h is computed from are independent, so the expectation is
over h alone: an average over simulated studies of equal variances.

**Looks.** A study may add seeds while its verdict is open, with the error of one that does not. The
verdict is looked at with S_1 < S_2 < ... < S_K seeds, which are known before the first run; only
variants whose comparisons are open get the seeds of the next look. Each look uses the error rate
0.05 / K (Bonferroni over the looks, which holds for any noise and for variants with different
numbers of seeds), so that all looks together make a false claim in at most 5 % of studies.
Intervals of such a study have that level at every look, whenever it stops.

A comparison with the best variant, or with the baseline, is open while its interval contains 0 and
does not lie within the margin. It is not open if the difference is within what tuning may have
missed: no number of seeds decides that.

Shapes: R simulated studies, V variants.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

from attnlab.analysis.statistics.comparisons import ERROR, Comparison, Comparisons, compare
from attnlab.analysis.statistics.layout import Losses
from attnlab.analysis.statistics.noise import FEWEST_COMPARISONS, pair_noise, worth
from attnlab.analysis.statistics.quantiles import all_pairs

Array = NDArray[np.float64]
POWER = 0.8
LEVEL = 0.05
MOST_SEEDS = 100
LOOKS = 3  # at most
_NUMBERS = 20_000  # variances that are simulated; enough for two digits


class Compared(NamedTuple):
    """Variants that are to be compared with one another, and what is known of their losses."""

    variants: int
    level: float  # error rate of the comparisons
    residual_sd: float | None = None  # of one run, nats/token; None if unknown
    allowance: float = 0.0  # nats/token that tuning may have missed; 0 if unknown


@dataclass(frozen=True, kw_only=True)
class Power:
    """The smallest difference between two variants that is found with a probability of 80 %.

    Of several groups of variants that are compared it is that of the group where it is largest.
    """

    standard_deviations: float | None  # in residual SDs, without allowance; None: no comparisons
    nats: float | None = None  # nats/token, with the allowance; None if it is unknown
    residual_sd: float | None = None  # of one run, seed effects removed, nats/token
    residual_sd_source: str | None = None  # where `residual_sd` comes from
    allowance: float | None = None  # nats/token that tuning may have missed; None if unknown
    variants: int  # that are compared with one another; the most, where groups of them are
    shared: str = ""  # what these share, in words; empty where all variants are compared
    tuned: bool = False  # if so, tuning adds to what is detectable

    def to_json(self) -> dict[str, Any]:
        """Return the power as JSON values, in nats/token."""
        return {
            "nats": self.nats,
            "standard_deviations": self.standard_deviations,
            "residual_sd": self.residual_sd,
            "residual_sd_source": self.residual_sd_source,
            "allowance": self.allowance,
            "variants_compared": self.variants,
        }


def power_of(
    groups: Sequence[Compared],
    seeds: int,
    prior: float | None,
    *,
    source: str,
    shared: str,
    tuned: bool,
) -> Power:
    """Return the power of groups of variants; `prior` is as for `detectable`."""
    in_sds = [detectable(1.0, n, seeds, level=level, prior=prior) for n, level, *_ in groups]
    in_nats = [
        None if sd is None else detectable(sd, n, seeds, allowance, level, prior)
        for n, level, sd, allowance in groups
    ]
    worst = max(range(len(groups)), key=lambda place: (in_nats[place] or 0, in_sds[place] or 0))
    return Power(
        standard_deviations=max(filter(None, in_sds), default=None),
        nats=in_nats[worst],
        residual_sd=groups[worst].residual_sd,
        residual_sd_source=None if groups[worst].residual_sd is None else source,
        allowance=groups[worst].allowance or None,
        variants=max(group.variants for group in groups),
        shared=shared,
        tuned=tuned,
    )


def expected_prior(variants: Sequence[int], seeds: int) -> float | None:
    """Return what `relative_variances` finds the typical variance worth if all variances are equal.

    `variants` has the number of each comparison of a ladder. None where they tell nothing.
    """
    if seeds < 2 or len(variants) < FEWEST_COMPARISONS:
        return None
    by_chance = float(scipy.special.polygamma(1, (seeds - 1) / 2))
    found = float(worth(by_chance, by_chance, sum(variants) - len(variants)))
    return found if found > 0 else None


def detectable(
    spread: float,
    variants: int,
    seeds: int,
    allowance: float = 0.0,
    level: float = LEVEL,
    prior: float | None = None,
) -> float | None:
    """Return the minimum detectable difference at 80 % power, with error rate `level` in all.

    `spread` is the standard deviation per run and `allowance` what tuning may have missed; the
    result has their unit. None for fewer than two seeds or variants. `prior` are the degrees of
    freedom that a typical variance is worth, if more than these variants tell them.

    >>> round(detectable(0.01, variants=11, seeds=5), 3)
    0.033
    """
    if seeds < 2 or variants < 2:
        return None
    if not spread > 0:
        return allowance
    half_R = np.hypot(spread * _half_of_unit_spread(variants, seeds, level, prior), allowance)
    error = spread * math.sqrt(2 / seeds)
    low, high = 0.0, float(half_R.max()) + 10 * error
    if not math.isfinite(high):
        return math.inf
    for _ in range(40):
        middle = (low + high) / 2
        if float(np.mean(scipy.special.ndtr((middle - half_R) / error))) < POWER:
            low = middle
        else:
            high = middle
    return high


def seeds_to_decide(
    difference: float, spread: float, variants: int, allowance: float = 0.0
) -> int | None:
    """Return the fewest seeds that separate a true `difference` with 80 % power.

    None if more than 100 would be needed, or no number: the difference is within the allowance.

    >>> seeds_to_decide(0.03, spread=0.01, variants=5)
    5
    """
    low, high = 2, MOST_SEEDS
    found = detectable(spread, variants, high, allowance)
    if found is None or not math.isfinite(found) or abs(difference) < found:
        return None
    while low < high:
        middle = (low + high) // 2
        enough = detectable(spread, variants, middle, allowance)
        if enough is not None and abs(difference) >= enough:
            high = middle
        else:
            low = middle + 1
    return low


@cache
def _half_of_unit_spread(variants: int, seeds: int, level: float, prior: float | None) -> Array:
    """Return half-widths in simulated studies whose runs have standard deviation 1."""
    shown = min(variants, 20)  # of more, the prior degrees of freedom hardly depend on it
    studies = max(_NUMBERS // shown, 200)
    df = seeds - 1
    own_RV = np.random.default_rng(0).chisquare(df, (studies, shown)) / df
    error_R, df_R = pair_noise(own_RV, float(df), prior)
    return all_pairs(variants).quantile(level, df_R) * error_R * math.sqrt(1 / seeds)


def looks(first: int, most: int) -> tuple[int, ...]:
    """Return the numbers of seeds at which the verdict is looked at.

    >>> looks(4, 10), looks(4, 5), looks(4, 4)
    ((4, 7, 10), (4, 5), (4,))
    """
    assert 1 <= first <= most, "no fewer seeds later"
    steps = np.linspace(first, most, LOOKS if most > first else 1).round().astype(int).tolist()
    return tuple(dict.fromkeys(steps))


def level_of(first: int, most: int, among: int = 1) -> float:
    """Return the error rate of each look, on each of `among` texts whose errors add up.

    >>> level_of(4, 4), round(level_of(4, 10), 4), level_of(4, 4, 2)
    (0.05, 0.0167, 0.025)
    """
    return ERROR / len(looks(first, most)) / among


def looked_at(first: int, most: int, runs: int, level: float) -> str:
    """Return a sentence on the rule, for a report.

    `first` and `most` are as for `looks`; a variant has at most so many `runs`.
    """
    planned = looks(first, most)
    taken = sum(size <= runs for size in planned)
    return (
        f"Seeds were added while the verdict was open (group-sequential): looks at "
        f"{', '.join(map(str, planned))} seeds, {taken} of {len(planned)} taken, each with error "
        f"rate {level:.4f}, so that all together have {level * len(planned):g}."
    )


def seeds_needed(  # noqa: PLR0913  the arguments of `compare`, and two numbers of seeds
    losses: Losses,
    ended: Mapping[str, int],
    *,
    first: int,
    most: int,
    baseline: str | None = None,
    allowance: Mapping[str, float] | None = None,
    search_noise: Mapping[str, float] | None = None,
    margin: float = 0.01,
    among: int = 1,
) -> dict[str, int]:
    """Return the number of seeds that each variant has at the end, as far as the losses tell.

    At each look, variants whose comparisons are open get the seeds of the next one. The looks are
    replayed from the first, so that the same losses make the same decisions whenever they are read.

    Args:
        losses: nats/token by variant and seed; a run that failed or diverged has none.
        ended: how many of a variant's first seeds have ended, whatever their outcome.
        first: seeds at the first look, which every variant has.
        most: seeds at the last look.
        baseline: the variant whose comparisons must be decided, beside those with the best.
        allowance, search_noise: what tuning may have missed, as for `compare`.
        margin: nats/token; differences within it count as equivalent.
        among: texts whose errors add up.
    """
    sizes = dict.fromkeys(ended, first)
    for size in looks(first, most)[1:]:
        if any(ended[name] < sizes[name] for name in sizes):
            break
        seen = {
            name: {seed: loss for seed, loss in of.items() if seed < sizes[name]}
            for name, of in losses.items()
        }
        seen = {name: of for name, of in seen.items() if len(of) > 1}
        if len(seen) < 2:
            break
        found = compare(
            seen,
            baseline=baseline,
            allowance=allowance,
            search_noise=search_noise,
            margin=margin,
            level=level_of(first, most, among),
        )
        named = open_variants(found)
        if not named:
            break
        sizes |= dict.fromkeys(named, size)
    return sizes


def open_variants(found: Comparisons) -> tuple[str, ...]:
    """Return the variants in comparisons that are open, in the order given."""
    best = min(found.means, key=lambda name: found.means[name])
    named = dict[str, None]()
    for name in found.names:
        if name != best and _open(found.pairs[name, best]):
            named |= {name: None, best: None}
    for name, pair in found.to_baseline.items():
        if found.baseline is not None and _open(pair):
            named |= {name: None, found.baseline: None}
    return tuple(name for name in found.names if name in named)


def _open(pair: Comparison) -> bool:
    missed = pair.first_allowance if pair.mean > 0 else pair.second_allowance
    return not (pair.separable or pair.equivalent) and abs(pair.mean) > missed
