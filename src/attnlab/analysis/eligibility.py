"""Eligibility: the variants and seeds that enter the comparison, and the reasons for the others.

A variant that diverged with any seed is excluded, since its mean over the remaining seeds would be
biased in its favour. So is one whose loss raised an alarm. A run that failed with an exception, or
has not been run, carries no information about the mechanism: its seed is omitted for all variants,
which keeps the blocks complete, unless too few seeds would remain; then the variant that prevents
more is excluded. Fewer than three seeds are too few if the baseline and another variant share
three; otherwise, fewer than two if any two variants share two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attnlab.analysis.table import Table, Variant

ENOUGH = 3  # seeds; with two, the minimum detectable difference is 100 residual deviations

Losses = Mapping[str, Mapping[int, float]]  # variant: {seed: loss}


@dataclass(frozen=True, kw_only=True)
class Eligible:
    """The losses that are compared."""

    metric: str  # "test_loss" or "final_loss"
    losses: Losses  # of the eligible variants, over all seeds that each finished
    seeds: tuple[int, ...]  # finished by all eligible variants
    left_out: Mapping[str, str]  # variant: the reason why it is not compared
    incomplete: tuple[int, ...]  # seeds that only some finished


def eligible(table: Table) -> Eligible:
    """Return the losses of a study that can be compared."""
    left_out = {variant.name: _reason(variant) for variant in table.variants}
    able = [variant for variant in table.variants if not left_out[variant.name]]
    tested = all(run.summary.get("test_loss") is not None for v in able for run in v.finished)
    metric = "test_loss" if able and tested else "final_loss"
    losses = {variant.name: variant.by_seed(metric) for variant in able}
    for name in [name for name, found in losses.items() if not found]:
        left_out[name] = "its finished runs have no loss"
        del losses[name]
    compared = _sharing(losses, ENOUGH)
    baseline = table.study.baseline
    if len(compared) < 2 or (baseline in losses and baseline not in compared):
        compared = _sharing(losses, min(2, max(map(len, losses.values()), default=0)))
    for name in losses:
        if name not in compared:
            left_out[name] = _missing(table, name, losses[name])
    losses = compared
    seeds = _common(losses)
    every = {seed for found in losses.values() for seed in found}
    return Eligible(
        metric=metric,
        losses=losses,
        seeds=seeds,
        left_out={name: reason for name, reason in left_out.items() if reason},
        incomplete=tuple(sorted(every.difference(seeds))),
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
    if variant.finished:
        return ""
    if variant.failures:
        why = variant.failures[0].reason or "no reason recorded"
        return f"failed with {len(variant.failures)} of {planned} seeds, and finished none: {why}"
    return "no seed has finished"


def _missing(table: Table, name: str, finished: Mapping[int, float]) -> str:
    variant = next(variant for variant in table.variants if variant.name == name)
    said = f"finished {len(finished)} of {len(variant.runs)} seeds"
    if variant.failures:
        why = variant.failures[0].reason or "no reason recorded"
        said += f" ({len(variant.failures)} failed: {why})"
    return f"{said}, too few in common with the others"


def _sharing(losses: Losses, seeds: int) -> Losses:
    """Return variants that share at least `seeds` seeds, without those that prevent it."""
    kept = {name: found for name, found in losses.items() if len(found) >= seeds}
    while kept and len(_common(kept)) < seeds:
        del kept[_preventing(kept)]
    return kept


def _preventing(losses: Losses) -> str:
    """Return the variant without which the others share the most seeds; of ties, the last."""

    def without(name: str) -> int:
        return len(_common({other: found for other, found in losses.items() if other != name}))

    return max(reversed(list(losses)), key=lambda name: (without(name), -len(losses[name])))


def _common(losses: Losses) -> tuple[int, ...]:
    found = [set(by_seed) for by_seed in losses.values()]
    return tuple(sorted(set.intersection(*found))) if found else ()


def _listed(seeds: Sequence[int]) -> str:
    return ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(map(str, seeds))
