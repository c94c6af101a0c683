"""Scaling: the loss of each family of a ladder against FLOPs, parameters, tokens and seconds.

A power law (`statistics.power_law`) is fitted to each family along

    FLOPs, seconds    of training, on the frontier: the lower convex hull of the loss over log x
    parameters        outside embedding and head, at the longest training
    tokens            at the largest size

**Intervals** are of a bootstrap over seeds: the mean of each variant is drawn from the t
distribution of its estimate, with the moderated variance of its size and length (`noise`), in
logarithms, so that none is negative. Three seeds drawn with replacement would cover far too little.
All families share the draws, and frontiers stay those of the means. Seed effects that a comparison
removes are removed here, too: they cancel in differences. The noise of times is left out.

**Crossover** of two families: the x within the range of both at which their lines cross. It is
shown where 95 % of the draws have one, and there is none where at most 5 % have.

Variants are compared, by the same rules as in any study, with those of their own size and length.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np

from attnlab.analysis.eligibility import FEWEST
from attnlab.analysis.rates import LadderRate, ladder_rates
from attnlab.analysis.statistics.noise import fit as fit_noise
from attnlab.analysis.statistics.power_law import (
    LEVEL,
    Array,
    Fit,
    Interval,
    Point,
    Speedup,
    fit_of,
    interval_of,
    speedup,
)
from attnlab.analysis.table import Table, Variant
from attnlab.analysis.verdict import Verdict
from attnlab.record import Cell, Rung, cells_of

Quantity = Literal["flops", "parameters", "tokens", "seconds"]
TRAINING: tuple[Quantity, ...] = ("flops", "seconds")  # with a frontier
DRAWS = 2000
MOST_LOG = 5.0  # of the ratio of a draw to its mean


@dataclass(frozen=True, kw_only=True)
class Crossover:
    """The place at which the lines of two families cross."""

    families: tuple[str, str]
    measured: bool  # the ranges of both overlap
    share: float | None  # of the draws that have one in the measured range; None without draws
    x: float | None  # of the estimate; None if it has none
    interval: Interval | None

    @property
    def shown(self) -> bool:
        """True if there is one."""
        return self.x is not None and self.interval is not None and (self.share or 0) >= 1 - LEVEL

    @property
    def excluded(self) -> bool:
        """True if there is none in the measured range."""
        return self.measured and self.x is None and self.share is not None and self.share <= LEVEL


@dataclass(frozen=True, kw_only=True)
class Along:
    """All families along one quantity."""

    fits: Mapping[str, Fit]
    speedups: Mapping[str, Speedup]
    crossovers: tuple[Crossover, ...]


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """The families of a ladder."""

    baseline: str  # family
    families: tuple[str, ...]  # in the study's order
    cells: Mapping[Cell, Verdict]  # the comparisons within each size and length
    along: Mapping[Quantity, Along]  # quantities that were recorded
    missing: Mapping[str, tuple[str, ...]]  # family: variants without a loss that is compared
    rates: tuple[LadderRate, ...]  # empty where no recipe was searched
    timed: bool  # all runs used one device, so that their seconds are comparable

    @property
    def errors(self) -> str:
        """The errors that the intervals of differences hold, in words."""
        tuned = any(any(verdict.tuning.allowance.values()) for verdict in self.cells.values())
        return f"seeds{' and tuning' * tuned}"


def cells_of_table(table: Table) -> dict[Cell, Table]:
    """Return the table of each size and training length of a ladder, the baseline's first.

    Variants are compared within one of them only. A study that is no ladder has one, its own.
    """
    study, names = table.study, [variant.name for variant in table.variants]
    cells = cells_of(names, study.baseline, study.rungs)
    if not study.ladder or not cells:
        return {Cell("", "", tuple(names), study.baseline): table}
    return {
        cell: replace(
            table,
            study=replace(
                study,
                variants=cell.variants,
                baseline=cell.baseline,
                hypotheses=study.hypotheses if cell == cells[0] else (),
            ),
            variants=tuple(v for v in table.variants if v.name in cell.variants),
        )
        for cell in cells
    }


def scaling_of(whole: Table, cells: Mapping[Cell, Verdict]) -> Scaling | None:
    """Return the laws of a ladder's families; None for a study of one size and length.

    Args:
        whole: the study.
        cells: the comparisons within each size and length, of `cells_of_table`.
    """
    every, variants = whole.study.rungs, {variant.name: variant for variant in whole.variants}
    rungs = {name: rung for name, rung in every.items() if name in variants}
    if len(cells) < 2 or not rungs:
        return None
    drawn = _drawn(cells)
    families = tuple(dict.fromkeys(rung.family for rung in rungs.values()))
    baseline = every[whole.study.baseline].family if whole.study.baseline in every else families[0]
    missing = {
        family: tuple(n for n, rung in rungs.items() if rung.family == family and n not in drawn)
        for family in families
    }
    along = dict[Quantity, Along]()
    timed = len(whole.devices) < 2
    for quantity in ("flops", "parameters", "tokens", "seconds")[: 4 if timed else 3]:
        fits = dict[str, Fit]()
        for family in families:
            points = [
                Point(name, rung.size, rung.budget, x, float(drawn[name][0]))
                for name, rung in rungs.items()
                if rung.family == family
                and name in drawn
                and (x := _x(variants[name], quantity)) is not None
            ]
            chosen = _chosen(quantity, points)
            found = fit_of(
                family,
                chosen,
                drawn,
                others=[p for p in points if p not in chosen] if quantity in TRAINING else (),
                left_out="budget" if quantity == "tokens" else "size",
            )
            if found is not None:
                fits[family] = found
        if fits:
            missed = _allowances(cells, rungs)
            along[quantity] = _along(fits, baseline, missed)
    return Scaling(
        baseline=baseline,
        families=families,
        cells=cells,
        along=along,
        missing={family: names for family, names in missing.items() if names},
        rates=ladder_rates(whole),
        timed=timed,
    )


def _drawn(cells: Mapping[Cell, Verdict]) -> dict[str, Array]:
    """Return the mean loss of each variant that is compared, and its draws (R)."""
    rng, found = np.random.default_rng(0), dict[str, Array]()
    several = all(count >= FEWEST for verdict in cells.values() for count in verdict.runs.values())
    if not several:
        return {n: np.array([of]) for verdict in cells.values() for n, of in verdict.means.items()}
    for verdict in cells.values():
        for name, (mean, error, df) in _estimates(verdict).items():
            log_R = np.clip(rng.standard_t(df, DRAWS) * error / mean, -MOST_LOG, MOST_LOG)
            found[name] = mean * np.exp(np.concatenate([[0.0], log_R]))
    return found


def _estimates(verdict: Verdict) -> dict[str, tuple[float, float, float]]:
    """Return mean, standard error and its degrees of freedom by variant, of two runs or more each.

    A variant that is alone has the variance of its own runs.
    """
    losses = {v.name: v.by_seed(verdict.metric) for v in verdict.table.variants}
    losses = {name: losses[name] for name in verdict.means}
    if len(losses) < 2:
        own = {name: np.array([*of.values()]) for name, of in losses.items()}
        return {
            name: (float(of_S.mean()), float(of_S.std(ddof=1) / len(of_S) ** 0.5), len(of_S) - 1)
            for name, of_S in own.items()
        }
    noise = fit_noise(losses, verdict.relative)
    each = zip(noise.names, noise.mean_V, np.sqrt(noise.part_V), noise.df_V, strict=True)
    return {name: (float(mean), float(error), float(df)) for name, mean, error, df in each}


def _x(variant: Variant, quantity: Quantity) -> float | None:
    """Return the x of a variant, a mean over its finished seeds; None if it was not recorded."""
    if quantity == "parameters":
        parts = variant.parameters
        return parts["total"] - parts["embedding"] - parts.get("head", 0) if parts else None
    key = {"flops": "training_flops", "tokens": "tokens", "seconds": "train_time"}[quantity]
    values = list(variant.by_seed(key).values())
    return math.fsum(values) / len(values) if values and min(values) > 0 else None


def _chosen(quantity: Quantity, points: Sequence[Point]) -> list[Point]:
    """Return the points that are fitted, ascending in x."""
    in_order = sorted(points, key=lambda point: (point.x, point.loss))
    if quantity in TRAINING:
        return _hull(in_order)
    same = "budget" if quantity == "parameters" else "size"
    sets = dict[str, list[Point]]()
    for point in in_order:
        sets.setdefault(getattr(point, same), []).append(point)
    # the longest training, or the largest size, has the lowest loss
    return min(sets.values(), key=lambda of: min(p.loss for p in of), default=[])


def _hull(in_order: Sequence[Point]) -> list[Point]:
    """Return the lower convex hull of the loss over log x, as far as the loss falls."""
    kept = list[Point]()
    for point in in_order:
        if kept and point.loss >= kept[-1].loss:
            continue
        while len(kept) > 1 and _slope(kept[-2], point) <= _slope(kept[-2], kept[-1]):
            kept.pop()
        kept.append(point)
    return kept


def _slope(first: Point, second: Point) -> float:
    along = math.log(second.x / first.x)
    return (second.loss - first.loss) / along if along > 0 else -math.inf


def _allowances(cells: Mapping[Cell, Verdict], rungs: Mapping[str, Rung]) -> dict[str, float]:
    """Return what tuning may have missed of each family, nats/token: the median over its cells."""
    found = dict[str, list[float]]()
    for verdict in cells.values():
        for name, missed in verdict.tuning.allowance.items():
            if name in rungs:
                found.setdefault(rungs[name].family, []).append(missed)
    return {family: float(np.median(of)) for family, of in found.items()}


def _along(fits: Mapping[str, Fit], baseline: str, missed: Mapping[str, float]) -> Along:
    others = [family for family in fits if family != baseline]
    return Along(
        fits=fits,
        speedups={
            family: speedup(fits[family], fits[baseline], missed, len(others))
            for family in others
            if baseline in fits
        },
        crossovers=tuple(crossover(one, other) for one, other in combinations(fits.values(), 2)),
    )


def crossover(one: Fit, other: Fit) -> Crossover:
    """Return the place at which two families cross, within the range of both."""
    low, high = max(one.range[0], other.range[0]), min(one.range[1], other.range[1])
    names = one.family, other.family
    if low >= high:
        return Crossover(families=names, measured=False, share=None, x=None, interval=None)
    log_I = np.linspace(math.log(low), math.log(high), 65)
    difference_IR = one.measured(log_I) - other.measured(log_I)
    changes_IR = np.sign(difference_IR[1:]) != np.sign(difference_IR[:-1])
    has_R, place_R = changes_IR.any(0), changes_IR.argmax(0)
    before_R, after_R = (
        np.take_along_axis(difference_IR, place_R[None] + step, 0)[0] for step in (0, 1)
    )
    gap_R = np.where(has_R, before_R - after_R, 1.0)
    root_R = log_I[place_R] + (log_I[1] - log_I[0]) * before_R / gap_R
    x = math.exp(root_R[0]) if has_R[0] else None
    if len(has_R) < 2:
        return Crossover(families=names, measured=True, share=None, x=x, interval=None)
    share = float(has_R[1:].mean())
    ends = interval_of(np.exp(root_R[1:][has_R[1:]]), LEVEL) if share > 0 else None
    return Crossover(families=names, measured=True, share=share, x=x, interval=ends)
