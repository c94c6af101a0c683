"""The variants of a study as groups: spread over all, means of families, size against loss.

The spread of each number is over all variants that are compared. Of V means over S seeds with no
true difference, the residual standard deviation alone makes an expected range of about

    E[max - min of V standard normal numbers]  residual standard deviation / sqrt(S)

A family is compared by the mean over its variants, with intervals that hold for all pairs of
families at once. The error is that of seeds and tuning: a difference is one between these variants,
not between all that might belong to a family.

A variant and the baseline differ in loss and in size. The two are shown side by side, and put in
words where the interval of the loss allows it. Their ratio would mean nothing: of two variants that
are worse by as much, it prefers the larger.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from attnlab.analysis.eligibility import eligible
from attnlab.analysis.sentences import listed
from attnlab.analysis.statistics.comparisons import Comparison, Comparisons
from attnlab.analysis.statistics.noise import fit
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
    loss: float  # mean over its variants, nats/token
    letters: tuple[str, ...]  # shared with families that are not distinguishable from it
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
class SizeAndLoss:
    """One variant against the baseline: parameters of the whole model, and loss."""

    name: str
    parameters: int
    more: int  # than the baseline has; negative for fewer
    difference: Comparison  # loss minus that of the baseline

    @property
    def trade(self) -> str:
        """The exchange of size for loss in words."""
        size = "as large" if not self.more else "smaller" if self.more < 0 else "larger"
        if self.difference.separable:
            return f"{size}, {'better' if self.difference.mean < 0 else 'worse'}"
        if self.difference.not_worse:
            return f"{size}, not worse"
        return f"{size}, n.s."


def families_of(verdict: Verdict) -> Families | None:
    """Compare the families of a study; None if the study names none."""
    named = verdict.table.study.families
    if not named:
        return None
    kept = {f: tuple(v for v in names if v in verdict.means) for f, names in named.items()}
    left_out = {f: tuple(v for v in names if v not in kept[f]) for f, names in named.items()}
    kept = {family: names for family, names in kept.items() if names}
    means = {
        f: math.fsum(verdict.means[v] for v in names) / len(names) for f, names in kept.items()
    }
    reference = next((f for f in kept if verdict.baseline in kept[f]), None)
    found = _compared(kept, reference, verdict) if verdict.judged and len(kept) > 1 else None
    return Families(
        families=tuple(
            Family(
                name=family,
                variants=kept[family],
                loss=means[family],
                letters=found.letters[family] if found else (),
                to_reference=found.pairs.get((family, reference)) if found and reference else None,
            )
            for family in sorted(kept, key=lambda family: means[family])
        ),
        reference=reference,
        left_out={family: names for family, names in left_out.items() if names},
    )


def _compared(
    kept: Mapping[str, Sequence[str]], reference: str | None, verdict: Verdict
) -> Comparisons:
    """Compare the means of families; the allowance of one is the mean of its variants'."""
    noise = fit(eligible(verdict.table).losses, verdict.relative).averaged(kept)
    allowance_F = np.array(
        [
            math.fsum(verdict.tuning.allowance.get(name, 0.0) for name in names) / len(names)
            for names in kept.values()
        ]
    )
    return Comparisons(noise, allowance_F, reference, verdict.margin, verdict.level)


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
    runs = math.fsum(verdict.runs.values()) / len(verdict.runs)
    return _expected_range(len(verdict.functions)) * verdict.residual_sd / math.sqrt(runs)


def sizes_of(verdict: Verdict) -> tuple[SizeAndLoss, ...]:
    """Return size and loss of every variant against the baseline, the lowest loss first."""
    sizes = {v.name: v.parameters["total"] for v in verdict.table.variants if v.parameters}
    if verdict.baseline not in sizes:
        return ()
    found = [
        SizeAndLoss(
            name=name,
            parameters=sizes[name],
            more=sizes[name] - sizes[verdict.baseline],
            difference=pair,
        )
        for name, pair in verdict.to_baseline.items()
        if name in sizes
    ]
    return tuple(sorted(found, key=lambda it: it.difference.mean))


def dominating(found: Sequence[SizeAndLoss], verdict: Verdict) -> str:
    """Return a sentence on the variants that are smaller than the baseline and not worse."""
    if not verdict.judged:
        return verdict.why
    smaller = [it.name for it in found if it.more < 0 and it.difference.not_worse]
    if smaller:
        have, are = ("has", "is") if len(smaller) == 1 else ("have", "are")
        return (
            f"{listed(smaller)} {have} fewer parameters than {verdict.baseline} and {are} not "
            f"worse by {verdict.margin:g} nats/token."
        )
    return (
        f"No variant with fewer parameters than {verdict.baseline} is shown not to be worse by "
        f"{verdict.margin:g} nats/token."
    )


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
    below = scipy.special.ndtr(x)
    return float(np.sum(1 - below**count - (1 - below) ** count) * step)
