"""A study that adds seeds while its verdict is open, with the error of one that does not.

The verdict is looked at with S_1 < S_2 < ... < S_K seeds, which are known before the first run.
Each look uses the error rate 0.05 / K (Bonferroni over the looks, which holds for any noise and for
variants with different numbers of seeds), so that all looks together make a false claim in at most
5 % of studies. Intervals of such a study have that level at every look, whenever it stops.

A comparison with the best variant, or with the baseline, is open while its interval contains 0 and
does not lie within the margin. It is not open if the difference is within what tuning may have
missed: no number of seeds decides that.
"""

from collections.abc import Mapping

import numpy as np

from attnlab.analysis.statistics.comparisons import ERROR, Comparison, Comparisons, compare
from attnlab.analysis.statistics.layout import Losses

LOOKS = 3  # at most


def looks(first: int, most: int) -> tuple[int, ...]:
    """Return the numbers of seeds at which the verdict is looked at.

    >>> looks(4, 10), looks(4, 5), looks(4, 4)
    ((4, 7, 10), (4, 5), (4,))
    """
    assert 2 <= first <= most, "at least two seeds, and no fewer later"
    steps = np.linspace(first, most, LOOKS).round().astype(int).tolist()
    return tuple(dict.fromkeys(steps))


def level_of(first: int, most: int) -> float:
    """Return the error rate of each look.

    >>> level_of(4, 4), round(level_of(4, 10), 4)
    (0.05, 0.0167)
    """
    return ERROR / len(looks(first, most))


def next_seeds(
    losses: Losses,
    *,
    first: int,
    most: int,
    baseline: str | None = None,
    allowance: Mapping[str, float] | None = None,
    search_noise: Mapping[str, float] | None = None,
    margin: float = 0.01,
) -> dict[str, int]:
    """Return the number of seeds that each open variant needs next; empty if all is decided.

    Args:
        losses: nats/token by variant and seed, as for `compare`.
        first: seeds at the first look, which every variant has.
        most: seeds at the last look.
        baseline: the variant whose comparisons must be decided, beside those with the best.
        allowance, search_noise: what tuning may have missed, as for `compare`.
        margin: nats/token; differences within it count as equivalent.
    """
    sizes = looks(first, most)
    found = compare(
        losses,
        baseline=baseline,
        allowance=allowance,
        search_noise=search_noise,
        margin=margin,
        level=ERROR / len(sizes),
    )
    wanted = dict[str, int]()
    for name in open_variants(found):
        larger = [size for size in sizes if size > len(losses[name])]
        if larger:
            wanted[name] = larger[0]
    return wanted


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
