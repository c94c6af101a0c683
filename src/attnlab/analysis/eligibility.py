"""Who enters the comparison, with which seeds; and who does not, and why.

A variant that diverged with any seed is out: its mean over the seeds that survived would flatter
it. So is one whose loss set off the alarm. A run that failed (an exception) or has not been run
says nothing of the mechanism: its seed is left out for all variants, which keeps the blocks
complete, unless that leaves too few seeds; then the variant that stands in the way is out. Too few
are two, where the baseline and another variant share three; else one, where any two share two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attnlab.analysis.table import Table, Variant

ENOUGH = 3  # seeds; with two, only differences of a hundred times the spread of a run are found

Losses = Mapping[str, Mapping[int, float]]  # variant: {seed: loss}


@dataclass(frozen=True, kw_only=True)
class Entry:
    metric: str  # "test_loss" or "final_loss"
    losses: Losses  # over all seeds that a variant finished
    seeds: tuple[int, ...]  # that all of them finished
    left_out: Mapping[str, str]
    incomplete: tuple[int, ...]  # seeds that some finished and others did not


def entry(table: Table) -> Entry:
    """Sort the variants of a study."""
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
    return Entry(
        metric=metric,
        losses=losses,
        seeds=seeds,
        left_out={name: reason for name, reason in left_out.items() if reason},
        incomplete=tuple(sorted(every.difference(seeds))),
    )


def _reason(variant: Variant) -> str:
    """Why the variant cannot be compared; empty where it can."""
    planned = len(variant.runs)
    diverged = [run for run in variant.runs if run.status == "diverged"]
    if diverged:
        seeds = _listed([run.seed for run in diverged])
        why = diverged[0].reason or "no reason recorded"
        return f"diverged with {seeds} (of {planned}): {why}"
    for run in variant.finished:
        if run.summary.get("alarms"):
            return f"set off an alarm with seed {run.seed}: {run.summary['alarms'][0]}"
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
    """Those that have so many seeds in common, without the others that stand in the way of it."""
    kept = {name: found for name, found in losses.items() if len(found) >= seeds}
    while kept and len(_common(kept)) < seeds:
        del kept[_in_the_way(kept)]
    return kept


def _in_the_way(losses: Losses) -> str:
    """The variant without which the others share the most seeds; of equal ones the last."""

    def without(name: str) -> int:
        return len(_common({other: found for other, found in losses.items() if other != name}))

    return max(reversed(list(losses)), key=lambda name: (without(name), -len(losses[name])))


def _common(losses: Losses) -> tuple[int, ...]:
    found = [set(by_seed) for by_seed in losses.values()]
    return tuple(sorted(set.intersection(*found))) if found else ()


def _listed(seeds: Sequence[int]) -> str:
    return ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(map(str, seeds))
