"""Which variants can be told apart, and how sure one may be of it: the statistics of a study.

Read from the complete blocks alone (`entry`), by Tukey's or Holm's procedure (`separation`). One
function under several names (`settings.same_settings`), or on several kernels (`kernels`), counts
once, and gets the same result.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from attnlab.analysis.eligibility import Entry, entry
from attnlab.analysis.settings import kernels_in, same_settings, without_kernels
from attnlab.analysis.statistics import separation
from attnlab.analysis.statistics.intervals import Comparison, Functions, Method, tiers
from attnlab.analysis.statistics.power import detectable
from attnlab.analysis.statistics.separation import Layout
from attnlab.analysis.table import Table


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The comparison of those variants that can be compared, over the seeds that all finished."""

    table: Table
    metric: str  # what it is read from: "test_loss" where the runs have one, else "final_loss"
    margin: float  # nats; differences within it are practically nothing
    order: tuple[str, ...]  # the variants compared, best mean of `metric` first
    means: Mapping[str, float]  # of `metric` over `seeds`
    left_out: Mapping[str, str]  # variant: why it is not compared
    seeds: tuple[int, ...]  # those that every variant in `order` finished
    method: Method
    why: str  # why this method, or why there is no verdict
    tiers: Mapping[str, int]  # from 1, not separable from the best; empty without a verdict
    pairs: Mapping[tuple[str, str], Comparison]  # both orders
    functions: tuple[tuple[str, ...], ...]  # names of one function together, best first
    noise: float | None  # standard deviation of one run about variant and seed effects, nats
    detectable: float | None  # smallest difference found with power 0.8 at these seeds, nats

    @property
    def best(self) -> str | None:
        """The lowest mean; whether others can be told from it is another question."""
        return self.order[0] if self.order else None

    @property
    def baseline(self) -> str | None:
        """The study's, where it is among the variants compared."""
        return self.table.study.baseline if self.table.study.baseline in self.means else None

    @property
    def to_best(self) -> Mapping[str, Comparison]:
        return self._to(self.best)

    @property
    def to_baseline(self) -> Mapping[str, Comparison]:
        return self._to(self.baseline)

    def worse(self, first: str, second: str) -> bool:
        """Whether the first is separably worse than the second."""
        pair = self.pairs.get((first, second))
        return pair is not None and pair.separable and pair.mean > 0

    def same_function(self, first: str, second: str) -> bool:
        """Whether the two are names of one function, or gave the same losses."""
        return any(first in names and second in names for names in self.functions)

    def same_work(self, first: str, second: str) -> bool:
        """Whether they are one function by the same kernels, and so cost the same."""
        kernels = {v.name: kernels_in(v.config) for v in self.table.variants}
        return self.same_function(first, second) and kernels[first] == kernels[second]

    def _to(self, other: str | None) -> Mapping[str, Comparison]:
        return {name: pair for (name, second), pair in self.pairs.items() if second == other}


def verdict_of(table: Table) -> Verdict:
    """The statistics of a study, as far as it has come."""
    entered = entry(table)
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
    noise = None if layout is None else math.sqrt(float(layout.pooled))
    smallest = None
    if layout is not None and noise is not None and method != "none":
        smallest = detectable(noise, layout.variants, layout.seeds, method)
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
        noise=noise,
        detectable=smallest,
    )


def _why(entered: Entry, functions: Functions, layout: Layout | None, method: Method) -> str:
    missing = ""
    if entered.incomplete and entered.seeds:
        which = ", ".join(map(str, entered.incomplete))
        missing = f" Only seeds that every variant finished count; not so: {which}."
    if layout is None:
        return _why_not(entered, functions) + missing
    over = f"{layout.variants} different functions and {layout.seeds} seeds"
    if layout.variants == 2:
        return f"Two functions are compared by a paired t test over {layout.seeds} seeds.{missing}"
    if method == "tukey":
        return (
            f"Seed-blocked Tukey HSD over {over}, with no interval narrower than the own spreads "
            f"of its two variants make it.{missing}"
        )
    spreads = np.sqrt(layout.own_V)
    noisiest = functions.groups[int(spreads.argmax())][0]
    return (
        f"Holm-adjusted paired t tests over {over}: {noisiest} is far noisier than the rest "
        f"({spreads.max():.2g} against {np.median(spreads):.2g} nats), so that a common spread "
        f"would hide more.{missing}"
    )


def _why_not(entered: Entry, functions: Functions) -> str:
    if not entered.losses:
        return "No verdict: no variant has a finished run that can be compared."
    if len(entered.losses) == 1:
        return f"No verdict: {next(iter(entered.losses))} has nothing to be compared with."
    if len(entered.seeds) < 2:
        return "No verdict: one seed shows no noise, so no difference can be told from it."
    names = ", ".join(functions.groups[0])
    return f"No verdict: {names} gave the same losses; there is only one function to compare."
