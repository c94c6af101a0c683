"""The variants of a study as groups: spread over all, means of families, parameter efficiency.

The spread of each number is over all variants that are compared. Of V means over S seeds with no
true difference, the residual standard deviation alone makes an expected range of about

    E[max - min of V standard normal numbers]  residual standard deviation / sqrt(S)

A family is compared by the mean over its variants, paired by seed,

    y_sf = mean over the variants v of family f of y_sv

with intervals that hold for all pairs of families at once. The error is that of seeds: a
difference is one between these variants, not between all that might belong to a family.

The parameter efficiency of a variant is its gain per parameter of the whole model:

    gain        loss of the baseline - loss of the variant, paired by seed, nats/token
    efficiency  gain / millions of parameters

Its interval is that of the gain, which holds for all pairs at once, divided by the same number.
The gain per *additional* parameter would rank variants with fewer parameters and a lower loss last.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from attnlab.analysis.sentences import listed
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


@dataclass(frozen=True, kw_only=True)
class Spread:
    """One number of all variants that are compared: the spread of their means over seeds."""

    label: str
    unit: str  # "nats", "fraction", "seconds", "bytes", or "" for a count
    mean: float
    deviation: float  # sample standard deviation over the variants
    lowest: tuple[str, float]  # variant and number
    highest: tuple[str, float]

    @property
    def range(self) -> float:
        """Highest minus lowest number."""
        return self.highest[1] - self.lowest[1]


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """The parameter efficiency of one variant, in nats/token per million parameters."""

    name: str
    parameters: int
    more: int  # than the baseline has; negative for fewer
    mean: float  # positive: better than the baseline
    low: float | None  # None without a verdict
    high: float | None
    separable: bool


def families_of(verdict: Verdict) -> Families | None:
    """Compare the families of a study; None if the study names none."""
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


def spreads_of(verdict: Verdict) -> tuple[Spread, ...]:
    """Return the spread of each number that at least two variants have.

    The numbers are loss, accuracy, times, memory and parameters.
    """
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
        if i == 0 or values != sizes[0][1]:  # in a dense model, all parameters are active
            found.append(_spread(label, "", values))
    return tuple(spread for spread in found if spread is not None)


def range_by_chance(verdict: Verdict) -> float | None:
    """Return the range of mean losses expected without any true difference, in nats/token.

    None where the residual standard deviation is not known.
    """
    if verdict.residual_sd is None:
        return None
    return (
        _expected_range(len(verdict.functions))
        * verdict.residual_sd
        / math.sqrt(len(verdict.seeds))
    )


def efficiencies_of(verdict: Verdict) -> tuple[Efficiency, ...]:
    """Return the parameter efficiency of every variant but the baseline, the highest first."""
    sizes = {v.name: v.parameters["total"] for v in verdict.table.variants if v.parameters}
    if verdict.baseline not in sizes:
        return ()
    found = [
        Efficiency(
            name=name,
            parameters=sizes[name],
            more=sizes[name] - sizes[verdict.baseline],
            mean=-pair.mean / (sizes[name] / 1e6),
            low=None if pair.high is None else -pair.high / (sizes[name] / 1e6),
            high=None if pair.low is None else -pair.low / (sizes[name] / 1e6),
            separable=pair.separable,
        )
        for name, pair in verdict.to_baseline.items()
        if name in sizes
    ]
    return tuple(sorted(found, key=lambda it: -it.mean))


def caution(found: Sequence[Efficiency], verdict: Verdict) -> str:
    """Return a sentence on which of the efficiencies are distinguishable from 0."""
    if not verdict.tiers:
        return f"No efficiency is distinguishable from 0. {verdict.why}"
    distinguishable = [it.name for it in found if it.separable]
    if distinguishable:
        return f"Only those of {listed(distinguishable)} are distinguishable from 0."
    return f"None is distinguishable from 0, since no variant is from {verdict.baseline}."


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
    """Return the expected range of `count` standard normal numbers.

    >>> [round(_expected_range(count), 3) for count in (2, 5, 13)]
    [1.128, 2.326, 3.336]
    """
    x, step = np.linspace(-9, 9, 18_001, retstep=True)
    below = ndtr(x)
    return float(np.sum(1 - below**count - (1 - below) ** count) * step)
