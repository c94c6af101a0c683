"""Families of variants against each other: the mean over a family's variants, paired by seed.

    y_sf = mean over the variants v of family f of y_sv

Families are told apart as variants are, by intervals that hold for all pairs of families at once.
They count as what they are here: the noise is that of seeds, so a difference is one between these
variants, and not between all that might belong to a family.

How far the variants of a study lie apart, all together: mean, spread and range of each number.

Of V means over S seeds of which none differs, noise alone makes a range of about

    E[max - min of V standard normal numbers]  noise / sqrt(S)

A range that is no larger says nothing of the variants.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from attnlab.analysis.statistics import separation
from attnlab.analysis.statistics.intervals import Comparison, Functions, Method, tiers
from attnlab.analysis.statistics.paired import Estimate
from attnlab.analysis.verdict import Verdict

QUANTITIES = (  # key of summary.json, label, unit
    ("accuracy", "accuracy", "fraction"),
    ("step_time", "time of a training step", "seconds"),
    ("total_time", "time of a run", "seconds"),
    ("peak_memory_bytes", "peak memory", "bytes"),
)
PARAMETERS = (("total", "parameters"), ("active", "active parameters"))


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


@dataclass(frozen=True, kw_only=True)
class Spread:
    """One number of every variant that is compared: the mean over its seeds."""

    label: str
    unit: str  # "nats", "fraction", "seconds", "bytes", or "" for a count
    mean: float
    deviation: float  # sample standard deviation over the variants
    lowest: tuple[str, float]  # variant and number
    highest: tuple[str, float]

    @property
    def range(self) -> float:
        return self.highest[1] - self.lowest[1]


def spreads_of(verdict: Verdict) -> tuple[Spread, ...]:
    """Of loss, accuracy, times, memory and parameters, where at least two variants have them."""
    variants = [v for v in verdict.table.variants if v.name in verdict.means]
    split = verdict.metric.removesuffix("_loss")
    found = [_spread("loss", "nats", dict(verdict.means))]
    for key, label, unit in QUANTITIES:
        key = f"{split}_{key}" if key == "accuracy" else key
        values = {v.name: v.numbers[key].mean for v in variants if key in v.numbers}
        found.append(_spread(label, unit, values))
    sizes = [
        (label, {v.name: float(v.parameters[part]) for v in variants if part in v.parameters})
        for part, label in PARAMETERS
    ]
    for i, (label, values) in enumerate(sizes):
        if i == 0 or values != sizes[0][1]:  # a dense model's are all active
            found.append(_spread(label, "", values))
    return tuple(spread for spread in found if spread is not None)


def by_chance(verdict: Verdict) -> float | None:
    """The range of the mean losses that noise alone would make; None where no noise is known."""
    if verdict.noise is None:
        return None
    return _expected_range(len(verdict.functions)) * verdict.noise / math.sqrt(len(verdict.seeds))


def _spread(label: str, unit: str, values: dict[str, float]) -> Spread | None:
    estimate = Estimate.of(list(values.values()))
    if estimate is None or estimate.spread is None:
        return None
    lowest, highest = (end(values, key=lambda name: values[name]) for end in (min, max))
    return Spread(
        label=label,
        unit=unit,
        mean=estimate.mean,
        deviation=estimate.spread,
        lowest=(lowest, values[lowest]),
        highest=(highest, values[highest]),
    )


def _expected_range(count: int) -> float:
    """Of so many standard normal numbers.

    >>> [round(_expected_range(count), 3) for count in (2, 5, 13)]
    [1.128, 2.326, 3.336]
    """
    x, step = np.linspace(-9, 9, 18_001, retstep=True)
    below = ndtr(x)
    return float(np.sum(1 - below**count - (1 - below) ** count) * step)
