"""The verdict: which variants are distinguishable, and with what error.

It is computed from complete blocks alone (`eligibility`), by Tukey's or Holm's procedure
(`separation`). A function under several names (`settings.same_settings`), or on several kernels,
counts once, and its names get the same result.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from attnlab.analysis.eligibility import Eligible, eligible
from attnlab.analysis.settings import kernels_in, same_settings, without_kernels
from attnlab.analysis.statistics import separation
from attnlab.analysis.statistics.intervals import Comparison, Functions, Method, tiers
from attnlab.analysis.statistics.power import detectable
from attnlab.analysis.statistics.separation import Layout
from attnlab.analysis.table import Table


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The comparison of the eligible variants, over the seeds that all of them finished."""

    table: Table
    metric: str  # the loss compared: "test_loss" if all runs have one, else "final_loss"
    margin: float  # nats/token; differences within it count as equivalent
    order: tuple[str, ...]  # the variants compared, the best mean of `metric` first
    means: Mapping[str, float]  # of `metric` over `seeds`
    left_out: Mapping[str, str]  # variant: the reason why it is not compared
    seeds: tuple[int, ...]  # finished by every variant in `order`
    method: Method
    why: str  # the method in words, or the reason why there is no verdict
    tiers: Mapping[str, int]  # from 1: not distinguishable from the best; empty without a verdict
    pairs: Mapping[tuple[str, str], Comparison]  # both orders
    functions: tuple[tuple[str, ...], ...]  # the names of each function, best first
    residual_sd: float | None  # standard deviation per run, seed effects removed, nats/token
    detectable: float | None  # minimum detectable difference (80 % power), nats/token

    @property
    def best(self) -> str | None:
        """The variant with the lowest mean, from which others may not be distinguishable."""
        return self.order[0] if self.order else None

    @property
    def baseline(self) -> str | None:
        """The baseline of the study, if it is compared."""
        return self.table.study.baseline if self.table.study.baseline in self.means else None

    @property
    def to_best(self) -> Mapping[str, Comparison]:
        """Each other variant minus the best."""
        return self._to(self.best)

    @property
    def to_baseline(self) -> Mapping[str, Comparison]:
        """Each other variant minus the baseline; empty if the baseline is not compared."""
        return self._to(self.baseline)

    def worse(self, first: str, second: str) -> bool:
        """True if the first variant is distinguishably worse than the second."""
        pair = self.pairs.get((first, second))
        return pair is not None and pair.separable and pair.mean > 0

    def same_function(self, first: str, second: str) -> bool:
        """True if the two are names of one function, or gave the same losses."""
        return any(first in names and second in names for names in self.functions)

    def same_work(self, first: str, second: str) -> bool:
        """True if the two are one function with the same kernels, which cost the same."""
        kernels = {v.name: kernels_in(v.config) for v in self.table.variants}
        return self.same_function(first, second) and kernels[first] == kernels[second]

    def _to(self, other: str | None) -> Mapping[str, Comparison]:
        return {name: pair for (name, second), pair in self.pairs.items() if second == other}


def verdict_of(table: Table) -> Verdict:
    """Compare the variants of a study, as far as it has come."""
    entered = eligible(table)
    losses = {
        name: {seed: found[seed] for seed in entered.seeds}
        for name, found in entered.losses.items()
    }
    means = {name: math.fsum(found.values()) / len(entered.seeds) for name, found in losses.items()}
    order = sorted(means, key=lambda name: means[name])
    configs = {
        variant.name: without_kernels(variant.config) or {"function": variant.name}
        for variant in table.variants
    }
    functions = Functions.of(losses, same_settings({name: configs[name] for name in order}))
    layout = functions.layout()
    method: Method = "none" if layout is None else separation.method_for(layout)
    pairs = functions.compare(layout, method, table.study.margin)
    residual_sd = None if layout is None else math.sqrt(float(layout.pooled))
    smallest = None
    if layout is not None and residual_sd is not None and method != "none":
        smallest = detectable(residual_sd, layout.variants, layout.seeds, method)
    return Verdict(
        table=table,
        metric=entered.metric,
        margin=table.study.margin,
        order=tuple(order),
        means={name: means[name] for name in order},
        left_out=entered.left_out,
        seeds=entered.seeds,
        method=method,
        why=_why(entered, functions, layout, method),
        tiers={} if layout is None else tiers(order, lambda a, b: pairs[a, b].separable),
        pairs=pairs,
        functions=tuple(tuple(names) for names in functions.groups),
        residual_sd=residual_sd,
        detectable=smallest,
    )


def _why(entered: Eligible, functions: Functions, layout: Layout | None, method: Method) -> str:
    missing = ""
    if entered.incomplete and entered.seeds:
        which = ", ".join(map(str, entered.incomplete))
        missing = f" Only seeds that every variant finished are used; omitted: {which}."
    if layout is None:
        return _why_not(entered, functions) + missing
    over = f"{layout.variants} different functions and {layout.seeds} seeds"
    if layout.variants == 2:
        return f"Two functions are compared by a paired t test over {layout.seeds} seeds.{missing}"
    if method == "tukey":
        return (
            f"Seed-blocked Tukey HSD over {over}; intervals widened to Welch-Bonferroni's where "
            f"those are wider.{missing}"
        )
    spreads = np.sqrt(layout.own_V)
    noisiest = functions.groups[int(spreads.argmax())][0]
    return (
        f"Holm-adjusted paired t tests over {over}: the residual standard deviation of {noisiest} "
        f"is far above the others' ({spreads.max():.2g} nats/token; median "
        f"{np.median(spreads):.2g}), so a pooled one would make most intervals wider.{missing}"
    )


def _why_not(entered: Eligible, functions: Functions) -> str:
    if not entered.losses:
        return "No verdict: no variant has a finished run that can be compared."
    if len(entered.losses) == 1:
        return f"No verdict: {next(iter(entered.losses))} is the only variant that can be compared."
    if len(entered.seeds) < 2:
        return "No verdict: one seed gives no estimate of the error."
    names = ", ".join(functions.groups[0])
    return f"No verdict: {names} gave the same losses; there is only one function to compare."
