"""Families of variants against each other: the mean over a family's variants, paired by seed.

    y_sf = mean over the variants v of family f of y_sv

Families are told apart as variants are, by intervals that hold for all pairs of families at once.
They count as what they are here: the noise is that of seeds, so a difference is one between these
variants, and not between all that might belong to a family.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from attnlab.analysis.statistics import separation
from attnlab.analysis.statistics.intervals import Comparison, Functions, Method
from attnlab.analysis.statistics.paired import Estimate
from attnlab.analysis.statistics.tiers import tiers
from attnlab.analysis.verdict import Verdict


@dataclass(frozen=True, kw_only=True)
class Family:
    """Variants that have something in common, as far as they are compared."""

    name: str
    variants: tuple[str, ...]
    loss: Estimate  # of the family's mean, over seeds
    tier: int | None  # from 1; None without a verdict
    to_reference: Comparison | None  # to the family of the baseline; None for that one itself


@dataclass(frozen=True, kw_only=True)
class Families:
    """The families of a study, the best mean first."""

    families: tuple[Family, ...]
    reference: str | None  # the family that has the study's baseline
    left_out: Mapping[str, tuple[str, ...]]  # family: variants that are not compared


def families_of(verdict: Verdict) -> Families | None:
    """None where the study names no families."""
    named = verdict.table.study.families
    if not named:
        return None
    kept = {f: tuple(v for v in names if v in verdict.means) for f, names in named.items()}
    left_out = {f: tuple(v for v in names if v not in kept[f]) for f, names in named.items()}
    by_seed = {v.name: v.by_seed(verdict.metric) for v in verdict.table.variants}
    losses = {
        family: {
            seed: sum(by_seed[name][seed] for name in names) / len(names) for seed in verdict.seeds
        }
        for family, names in kept.items()
        if names
    }
    reference = next((f for f in losses if verdict.baseline in kept[f]), None)
    functions = Functions.of(losses, [[family] for family in losses])
    layout = functions.layout()
    method: Method = "none" if layout is None else separation.method_for(layout)
    pairs = functions.compare(layout, method, verdict.margin)
    found = {family: Estimate.of(list(column.values())) for family, column in losses.items()}
    means = {family: estimate.mean for family, estimate in found.items() if estimate is not None}
    order = sorted(means, key=lambda family: means[family])
    tier_of = {} if layout is None else tiers(order, lambda a, b: pairs[a, b].separable)
    return Families(
        families=tuple(
            Family(
                name=family,
                variants=kept[family],
                loss=estimate,
                tier=tier_of.get(family),
                to_reference=pairs.get((family, reference)) if reference else None,
            )
            for family in order
            if (estimate := found[family]) is not None
        ),
        reference=reference,
        left_out={family: names for family, names in left_out.items() if names},
    )
