"""A study that adds seeds while its verdict is open, with the error of one that does not.

The verdict is looked at with S_1 < S_2 < ... < S_K seeds, which are known before the first run;
only variants whose comparisons are open get the seeds of the next look.
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

    Args:
        first: seeds at the first look.
        most: seeds at the last look.
        runs: the largest number of runs of a variant.
        level: the error rate of each look.
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
