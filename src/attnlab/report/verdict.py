"""What the numbers allow one to say, in sentences made from the numbers alone."""

from collections.abc import Iterable

from attnlab.analysis.table import Table, Variant
from attnlab.report.units import UNKNOWN, estimate

ONE_SEED = "One seed: no verdict; run with --seeds 3 for error bars"


def headline(table: Table) -> str:
    """The first in rank, with its spread."""
    if not table.ranked:
        return "No run has finished yet."
    best = table.ranked[0]
    tied = [variant for variant in table.ranked[1:] if variant.rank == 1]
    names = names_of([best, *tied])
    loss = estimate(best.numbers["final_loss"])
    if best.numbers["final_loss"].spread is None:
        over = f"seed {best.finished[0].seed} alone"
    else:
        over = f"{best.numbers['final_loss'].n} seeds, mean ± standard deviation"
    equal = " each, exactly equal" if tied else ""
    verb = "have" if tied else "has"
    return f"{names} {verb} the lowest validation loss: {loss} nats a token{equal} ({over})."


def verdict(table: Table) -> str:
    """Which variants the seeds tell from the best, and which they do not."""
    if not table.ranked:
        return ""
    if table.most_seeds == 1:
        several = len(table.study.seeds) > 1
        return "One seed so far: no verdict yet." if several else ONE_SEED
    best, *others = table.ranked
    if not others:
        return "One variant has finished: nothing to compare it with yet."

    unknown: list[Variant] = []
    near: list[Variant] = []
    worse: list[Variant] = []
    better: list[Variant] = []  # on the seeds in common, where the best has finished fewer
    for other in others:
        if other.to_best is None or other.to_best.separable is None:
            unknown.append(other)
        elif not other.to_best.separable:
            near.append(other)
        else:
            (worse if other.to_best.mean > 0 else better).append(other)
    groups = [
        (f"Not separable from {best.name}, the 95 % interval of the difference includes 0", near),
        (f"Worse than {best.name}, the interval leaves out 0", worse),
        (f"Better than {best.name} on the seeds that both finished", better),
        (f"Fewer than two seeds in common with {best.name}", unknown),
    ]
    said = [f"{claim}: {names_of(group)}." for claim, group in groups if group]
    if len(others) > 1 and len(unknown) < len(others):
        said.append(
            "The intervals are paired by seed and hold one comparison at a time: among several, "
            "one may leave out 0 by chance."
        )
    return " ".join(said)


def unfinished(table: Table) -> list[str]:
    """A line for each diverged or failed run, and one for what is still to run."""
    lines = [
        f"{variant.name}, seed {run.seed}: {run.status}: {run.reason or 'no reason recorded'} "
        f"({len(variant.finished)} of {len(variant.runs)} seeds finished)"
        for variant, run in table.failures
    ]
    if table.remaining:
        names = [
            variant
            for variant in table.variants
            if any(run.status in ("absent", "partial") for run in variant.runs)
        ]
        lines.append(
            f"still to run: {table.remaining} of {len(table.runs)} runs ({names_of(names)})"
        )
    return lines


def seeds_of(variant: Variant) -> str:
    return f"{len(variant.finished)}/{len(variant.runs)}"


def mechanism_of(variant: Variant) -> str:
    return variant.mechanism or UNKNOWN


def names_of(variants: Iterable[Variant]) -> str:
    return ", ".join(variant.name for variant in variants)
