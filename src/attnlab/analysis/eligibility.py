"""Eligibility: the variants and runs that enter the comparison, and the reasons for the others.

A variant that diverged with any seed is excluded, since its mean over the remaining seeds would be
biased in its favour. So is one whose loss raised an alarm, or is not finite. A run that failed with
an exception, or has not been run, carries no information about the mechanism: the other runs of its
variant count, and so do all runs of the others. A variant needs two, the fewest that show an error.
A variant that reads another text than the baseline by design is shown, and not compared.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attnlab.analysis.fairness import on_other_text
from attnlab.analysis.table import Table, Variant

FEWEST = 2  # runs per variant

Losses = Mapping[str, Mapping[int, float]]  # variant: {seed: loss}


@dataclass(frozen=True, kw_only=True)
class Eligible:
    """The losses that are compared."""

    metric: str  # "test_loss" or "final_loss"
    losses: Losses  # every finished run of the eligible variants
    left_out: Mapping[str, str]  # variant: the reason why it is not compared

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that at least one eligible variant finished."""
        return tuple(sorted({seed for found in self.losses.values() for seed in found}))

    @property
    def incomplete(self) -> Mapping[str, int]:
        """The number of finished runs of each variant that lacks seeds of others."""
        every = len(self.seeds)
        return {name: len(of) for name, of in self.losses.items() if len(of) < every}


@dataclass(frozen=True, kw_only=True)
class Functions:
    """The functions among the variants: one with several names counts once."""

    losses: Losses  # by variant
    names: tuple[tuple[str, ...], ...]
    columns: Losses  # by the first name of each function: mean over its names

    @classmethod
    def of(cls, losses: Losses, same: Sequence[Sequence[str]]) -> "Functions":
        """Group `same`, the names of equal settings, further by equal losses."""
        found: dict[tuple[tuple[int, float], ...], list[str]] = {}
        for names in same:
            at: dict[int, dict[float, None]] = {}
            for name in names:
                for seed, loss in losses[name].items():
                    at.setdefault(seed, {})[loss] = None
            column = tuple((seed, math.fsum(of) / len(of)) for seed, of in sorted(at.items()))
            found.setdefault(column, []).extend(names)
        groups = tuple(tuple(names) for names in found.values())
        columns = {names[0]: dict(column) for names, column in zip(groups, found, strict=True)}
        return cls(losses=losses, names=groups, columns=columns)

    def first(self) -> dict[str, str]:
        """Return the first name of the function of each variant."""
        return {name: names[0] for names in self.names for name in names}


def eligible(table: Table) -> Eligible:
    """Return the losses of a study that can be compared."""
    other = on_other_text(table.study, [variant.name for variant in table.variants])
    left_out = {v.name: _reason(v) or other.get(v.name, "") for v in table.variants}
    able = [variant for variant in table.variants if not left_out[variant.name]]
    tested = all(run.summary.get("test_loss") is not None for v in able for run in v.finished)
    metric = "test_loss" if able and tested else "final_loss"
    losses = {variant.name: variant.by_seed(metric) for variant in able}
    for name in [name for name, found in losses.items() if not found]:
        left_out[name] = "its finished runs have no loss"
        del losses[name]
    enough = {name: found for name, found in losses.items() if len(found) >= FEWEST}
    if len(enough) > 1:  # else there is no verdict, and all are shown
        for variant in table.variants:
            if variant.name in losses and variant.name not in enough:
                left_out[variant.name] = _missing(variant, len(losses[variant.name]))
        losses = enough
    return Eligible(
        metric=metric,
        losses=losses,
        left_out={name: reason for name, reason in left_out.items() if reason},
    )


def _reason(variant: Variant) -> str:
    """Return the reason why a variant cannot be compared; empty if it can."""
    planned = len(variant.runs)
    diverged = [run for run in variant.runs if run.status == "diverged"]
    if diverged:
        seeds = _listed([run.seed for run in diverged])
        why = diverged[0].reason or "no reason recorded"
        return f"diverged with {seeds} (of {planned}): {why}"
    for run in variant.finished:
        if run.summary.get("alarms"):
            return f"raised an alarm with seed {run.seed}: {run.summary['alarms'][0]}"
    for run in variant.finished:
        if run.summary.get("final_loss", 0.0) is None:  # as a record has what is not finite
            return f"finished seed {run.seed} with a validation loss that is not finite"
    if variant.finished:
        return ""
    if variant.failures:
        why = variant.failures[0].reason or "no reason recorded"
        return f"failed with {len(variant.failures)} of {planned} seeds, and finished none: {why}"
    return "no seed has finished"


def _missing(variant: Variant, finished: int) -> str:
    said = f"finished {finished} of {len(variant.runs)} seeds"
    if variant.failures:
        why = variant.failures[0].reason or "no reason recorded"
        said += f" ({len(variant.failures)} failed: {why})"
    return f"{said}; an error needs at least {FEWEST}"


def _listed(seeds: Sequence[int]) -> str:
    return ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(map(str, seeds))
