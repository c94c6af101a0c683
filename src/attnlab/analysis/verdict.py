"""The verdict: which variants are distinguishable, and with what error of seeds and of tuning.

All finished runs of the eligible variants count (`eligibility`). A function under several names
(`settings.same_settings`), or on several kernels, counts once, and its names get the same result.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import permutations
from typing import Literal

import numpy as np

from attnlab.analysis.eligibility import FEWEST, Eligible, Functions, Losses, eligible
from attnlab.analysis.fairness import n_texts
from attnlab.analysis.rates import Tuning, tuning_of
from attnlab.analysis.sentences import noise_in_words, several
from attnlab.analysis.settings import (
    as_computed,
    covering_windows,
    kernels_in,
    same_settings,
)
from attnlab.analysis.statistics.comparisons import Comparison, Comparisons, ToBest, compare
from attnlab.analysis.statistics.layout import Spike
from attnlab.analysis.statistics.noise import Relative
from attnlab.analysis.statistics.seeds import detectable, level_of, looked_at
from attnlab.analysis.table import Table, Variant, variant_of

Method = Literal["unpaired", "paired", "none"]
Pairs = Mapping[tuple[str, str], Comparison]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The comparison of the eligible variants, over all of their finished runs."""

    table: Table
    metric: str  # the loss compared: "test_loss" if all runs have one, else "final_loss"
    margin: float  # nats/token; differences within it count as equivalent
    order: tuple[str, ...]  # the variants compared, the best mean of `metric` first
    means: Mapping[str, float]  # of `metric`, as it is compared: without spikes
    left_out: Mapping[str, str]  # variant: the reason why it is not compared
    seeds: tuple[int, ...]  # finished by some variant in `order`
    runs: Mapping[str, int]  # the number of finished runs of each variant in `order`
    spikes: tuple[Spike, ...]  # runs that are set aside
    method: Method
    why: str  # the method in words, or the reason why there is no verdict
    letters: Mapping[str, tuple[str, ...]]  # shared if not distinguishable; empty without verdict
    pairs: Pairs  # every variant minus every other, simultaneous over all pairs
    to_baseline: Mapping[str, Comparison]  # every other minus the baseline, by Dunnett's intervals
    hsu: Mapping[str, ToBest]  # every variant minus the best of the others; empty without verdict
    functions: tuple[tuple[str, ...], ...]  # the names of each function, best first
    residual_sd: float | None  # standard deviation per run of a typical variant, nats/token
    tuning: Tuning  # which variants were tuned, and what tuning may have missed
    detectable: float | None  # minimum detectable difference (80 % power), nats/token
    relative: Relative | None  # how variances differ, where the other sizes of a ladder tell it

    @property
    def best(self) -> str | None:
        """The variant with the lowest mean, from which others may not be distinguishable."""
        return self.order[0] if self.order else None

    @property
    def baseline(self) -> str | None:
        """The baseline of the study, if it is compared."""
        return self.table.study.baseline if self.table.study.baseline in self.means else None

    @property
    def judged(self) -> bool:
        """True if there is a verdict: intervals for every pair."""
        return self.method != "none"

    @property
    def level(self) -> float:
        """The error rate of each family of intervals: smaller with added seeds or several texts."""
        return level_of(*self.table.study.numbers_of_seeds, among=n_texts(self.table.study))

    @cached_property
    def to_best(self) -> Mapping[str, Comparison]:
        """Each other variant minus the one with the lowest mean, simultaneous over all pairs."""
        return {name: pair for (name, second), pair in self.pairs.items() if second == self.best}

    @property
    def leaders(self) -> tuple[tuple[str, ...], ...]:
        """The functions that may be the best one, by Hsu's intervals; empty without a verdict."""
        if not self.judged:
            return ()
        return tuple(names for names in self.functions if self.hsu[names[0]].low < 0)

    def set_aside(self, name: str) -> tuple[int, ...]:
        """The seeds of a variant whose runs are set aside as outliers."""
        seeds = {spike.seed: self._function[spike.variant] for spike in self.spikes}
        return tuple(seed for seed, of in seeds.items() if self._function.get(name) == of)

    @cached_property
    def counted(self) -> Table:
        """The table without the runs that are set aside."""

        def without(variant: Variant) -> Variant:
            if not (gone := self.set_aside(variant.name)):
                return variant
            kept = tuple(run for run in variant.runs if run.seed not in gone)
            return variant_of(variant.name, variant.folder, kept)

        return replace(self.table, variants=tuple(map(without, self.table.variants)))

    def worse(self, first: str, second: str) -> bool:
        """True if the first variant is distinguishably worse than the second."""
        pair = self._pair(first, second)
        return pair is not None and pair.separable and pair.mean > 0

    def not_worse(self, first: str, second: str) -> bool:
        """True if the first variant is shown not to be worse than the second by the margin."""
        if first == second or self.same_function(first, second):
            return True
        pair = self._pair(first, second)
        return pair is not None and pair.not_worse

    def same_function(self, first: str, second: str) -> bool:
        """True if the two are names of one function, or gave the same losses."""
        return self._function[first] == self._function[second]

    def same_work(self, first: str, second: str) -> bool:
        """True if the two are one function with the same kernels, which cost the same."""
        return self.same_function(first, second) and self._kernels[first] == self._kernels[second]

    @cached_property
    def _function(self) -> Mapping[str, int]:
        return {name: place for place, names in enumerate(self.functions) for name in names}

    @cached_property
    def _kernels(self) -> Mapping[str, tuple[object, ...]]:
        """The kernels of each variant, and its windows that are computed as such needlessly."""
        return {
            v.name: (*kernels_in(v.config), *covering_windows(v.config))
            for v in self.table.variants
        }

    def _pair(self, first: str, second: str) -> Comparison | None:
        """Return the interval of the pair: Dunnett's to the baseline, else that of all pairs."""
        if second == self.baseline and first in self.to_baseline:
            return self.to_baseline[first]
        return self.pairs.get((first, second))


def verdict_of(table: Table, relative: Relative | None = None) -> Verdict:
    """Compare the variants of a study, as far as it has come.

    `relative` tells how their variances differ, where other comparisons of the study show it.
    """
    entered = eligible(table)
    configs = {
        variant.name: as_computed(variant.config) or {"function": variant.name}
        for variant in table.variants
        if variant.name in entered.losses
    }
    functions = Functions.of(entered.losses, same_settings(configs))
    tuning, margin = tuning_of(table, tuple(entered.losses)), table.study.margin
    found, first = _compare(functions, table, tuning, relative), functions.first()
    if found is not None:
        missed = dict(zip(found.names, found.allowance_V.tolist(), strict=True))
        missed = {name: missed[first[name]] for name in tuning.allowance}
        tuning = replace(tuning, allowance=missed, search_noise={})
        means = {name: found.means[first[name]] for name in entered.losses}
    else:
        means = {name: math.fsum(of.values()) / len(of) for name, of in entered.losses.items()}
    order = tuple(sorted(means, key=lambda name: means[name]))
    to_baseline, pairs = _compared(functions, found, table.study.baseline, margin)
    return Verdict(
        table=table,
        metric=entered.metric,
        margin=margin,
        order=order,
        means={name: means[name] for name in order},
        left_out=entered.left_out,
        seeds=entered.seeds,
        runs={name: len(of) for name, of in entered.losses.items()},
        spikes=found.noise.spikes if found else (),
        method="none" if found is None else "paired" if found.noise.paired else "unpaired",
        why=_why(table, entered, functions, found),
        letters={name: found.letters[first[name]] for name in order} if found else {},
        pairs=pairs,
        to_baseline=to_baseline,
        hsu={name: found.to_best[first[name]] for name in order} if found else {},
        functions=tuple(sorted(functions.names, key=lambda names: means[names[0]])),
        residual_sd=math.sqrt(found.noise.typical) if found else None,
        tuning=tuning,
        detectable=_detectable(found) if found else None,
        relative=relative,
    )


def pairs_of(losses: Losses, verdict: Verdict) -> Pairs:
    """Compare other losses of the variants of a verdict, such as those at another length.

    Names with the same losses are one function. The allowance for tuning is that of the verdict.
    """
    functions = Functions.of(losses, [(name,) for name in losses])
    found = _compare(functions, verdict.table, verdict.tuning, verdict.relative)
    return _compared(functions, found, verdict.baseline, verdict.margin)[1]


def _compare(
    functions: Functions, table: Table, tuning: Tuning, relative: Relative | None
) -> Comparisons | None:
    """Compare the functions; None where there are too few of them, or too few runs of one."""
    enough = all(len(column) >= FEWEST for column in functions.columns.values())
    if len(functions.names) < 2 or not enough:
        return None
    found = compare(
        functions.columns,
        baseline=functions.first().get(table.study.baseline or ""),
        allowance=tuning.of_functions(tuning.allowance, functions.names),
        search_noise=tuning.of_functions(tuning.search_noise, functions.names),
        margin=table.study.margin,
        level=level_of(*table.study.numbers_of_seeds, among=n_texts(table.study)),
        relative=relative,
    )
    return found if found.noise.typical > 0 else None


def _compared(
    functions: Functions, found: Comparisons | None, baseline: str | None, margin: float
) -> tuple[Mapping[str, Comparison], Pairs]:
    """Return every variant minus the baseline, and minus every other."""
    losses, first = functions.losses, functions.first()
    if found is None:
        means = {name: math.fsum(of.values()) / len(of) for name, of in losses.items()}
        pairs = {
            (one, other): Comparison(
                mean=means[one] - means[other], half_width=None, alone=None, margin=margin
            )
            for one, other in permutations(losses, 2)
        }
        return {one: pair for (one, other), pair in pairs.items() if other == baseline}, pairs

    def pair(one: str, other: str) -> Comparison:
        if first[one] != first[other]:
            return found.pairs[first[one], first[other]]
        return found.within(first[one], losses[one], losses[other])

    pairs = {(one, other): pair(one, other) for one, other in permutations(losses, 2)}
    if baseline is None or baseline not in losses:
        return {}, pairs
    to_baseline = {
        name: found.to_baseline.get(first[name], pairs[name, baseline])
        for name in losses
        if name != baseline
    }
    return to_baseline, pairs


def _detectable(found: Comparisons) -> float | None:
    return detectable(
        math.sqrt(found.noise.typical),
        variants=len(found.names),
        seeds=int(np.median(found.noise.runs)),
        allowance=float(np.median(found.allowance_V)),
        level=found.level,
        prior=found.noise.relative.prior if found.noise.relative else None,
    )


def _why(table: Table, entered: Eligible, functions: Functions, found: Comparisons | None) -> str:
    if found is None:
        return _why_not(entered, functions)
    noise = found.noise
    each = sorted({len(column) for column in functions.columns.values()})
    runs = f"{each[0]} to {each[-1]}" if len(each) > 1 else str(each[0])
    over = f"{len(functions.names)} different functions with {runs} runs each"
    said = [
        f"Tukey-Kramer's intervals for all pairs, Dunnett's to the baseline and Hsu's to the best, "
        f"with moderated variances, over {over}."
    ]
    said += noise_in_words(noise)
    if table.study.most_seeds is not None:
        said.append(looked_at(*table.study.numbers_of_seeds, each[-1], found.level))
    elif entered.incomplete:
        fewer = [f"{name} {n} of {len(entered.seeds)}" for name, n in entered.incomplete.items()]
        said.append(f"Finished seeds: {', '.join(fewer)}; all finished runs count.")
    return " ".join(said)


def _why_not(entered: Eligible, functions: Functions) -> str:
    if not entered.losses:
        return "No verdict: no variant has a finished run that can be compared."
    if len(entered.losses) == 1:
        return f"No verdict: {next(iter(entered.losses))} is the only variant that can be compared."
    single = [name for name, column in functions.columns.items() if len(column) < FEWEST]
    if len(single) == len(functions.columns):
        return "No verdict: one seed gives no estimate of the error."
    if len(functions.columns) > 1 and not single:
        return "No verdict: the seeds of each variant gave equal losses: no estimate of the error."
    if single:
        return f"No verdict: one seed gives no estimate of the error of {several(single)}."
    return f"No verdict: {', '.join(functions.names[0])} gave the same losses: one function."
