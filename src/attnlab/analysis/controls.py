"""A/A controls: variants that are the same function under two names, and must not be separated.

Their settings differ only in the name, or in the name and the kernel. A kernel computes the same
function in another way, so losses on different kernels agree within the error and not to the last
bit. A function counts once in the comparison, as the mean of its losses: two equal columns would
make the residual standard deviation too small. Whether the names of one function are
distinguishable is judged separately, by the residual standard deviation of all variants.

Names that a study tunes are searched on seeds of their own, and trained with recipes of their own.
They count as two functions, and a verdict that separates them has made a false claim.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, cast

from attnlab.analysis.costs import COUNTED, TIMED
from attnlab.analysis.numbers import quantity
from attnlab.analysis.sentences import several
from attnlab.analysis.settings import as_computed, covering_windows, kernels_in, same_settings
from attnlab.analysis.table import Table
from attnlab.analysis.verdict import Verdict

OF_BATCH = ("steps", "log_every", "eval_every", "checkpoint_every")  # follow from the batch size
PRICES = (("step_time", "seconds", "/step", TIMED), ("peak_memory_bytes", "bytes", "", COUNTED))


@dataclass(frozen=True, kw_only=True)
class Control:
    """Variants whose settings differ only in the name, the kernel or the recipe."""

    names: tuple[str, ...]
    same_recipe: bool  # False: their losses may differ by what the recipes differ in
    tuned: bool = False  # each has a recipe that was searched for it
    kernels: tuple[str, ...] = ()  # by name, if they differ; else empty
    largest_difference: float | None  # at any seed, nats/token; None if they share no seed
    ties: bool | None  # True: the comparison does not separate them; None without a verdict
    note: str  # one sentence
    savings: str = ""  # time and memory that the kernels save

    @property
    def failed(self) -> bool:
        """True if the comparison separates what it must not."""
        return self.ties is False and (self.same_recipe or self.tuned)


def controls_of(verdict: Verdict) -> tuple[Control, ...]:
    """Return the groups of variants that are the same function up to the recipe."""
    recipe = _recipe(verdict.table)
    configs = {v.name: v.config for v in verdict.table.variants if v.config}
    functions = {name: _without(as_computed(of), recipe) for name, of in configs.items()}
    groups = same_settings(functions)
    return tuple(_control(names, configs, verdict) for names in groups if len(names) > 1)


def differing(names: Sequence[str], configs: Mapping[str, Any]) -> tuple[str, ...]:
    """Return, for each name, the kernels that not all of them have.

    >>> differing(("a", "b"), {"a": {"kernel": "math"}, "b": {"kernel": "flash"}})
    ('math', 'flash')
    """
    found = [dict.fromkeys(kernels_in(configs[name])) for name in names]
    common = set.intersection(*map(set, found))
    return tuple(", ".join(k for k in of_one if k not in common) or "the rest" for of_one in found)


def savings(names: Sequence[str], kernels: Sequence[str], table: Table) -> str:
    """Return what each kernel saves compared with that of the first name; empty if unmeasured."""
    if len(table.devices) > 1:
        return ""
    numbers = {v.name: v.numbers for v in table.variants}
    first, sentences = names[0], list[str]()
    for name, kernel in zip(names[1:], kernels[1:], strict=True):
        both = [price for price in PRICES if all(price[0] in numbers[n] for n in (first, name))]
        parts = [
            _saved(numbers[first][key].mean, numbers[name][key].mean, unit, per, resolution)
            for key, unit, per, resolution in both
        ]
        if parts:
            who = f"{name} (kernel {kernel}) compared with {first} (kernel {kernels[0]})"
            sentences.append(f"{who}: {'; '.join(parts)}.")
    return " ".join(sentences)


def _control(names: Sequence[str], configs: Mapping[str, Any], verdict: Verdict) -> Control:
    recipe, searched = _recipe(verdict.table), verdict.tuning.allowance
    same_recipe = len(same_settings({n: as_computed(configs[n]) for n in names})) == 1
    same_kernel = len(same_settings({n: _without(configs[n], recipe) for n in names})) == 1
    tuned = not same_recipe and all(name in searched for name in names)
    kernels = () if same_kernel or _alike(names, configs) else differing(names, configs)
    by_seed = [v.by_seed(verdict.metric) for v in verdict.table.variants if v.name in names]
    differences = [
        abs(first[seed] - second[seed])
        for first, second in combinations(by_seed, 2)
        for seed in first.keys() & second.keys()
    ]
    pairs = [verdict.pairs.get(pair) for pair in combinations(names, 2)]
    judged = verdict.judged and all(pair is not None for pair in pairs)
    ties = not any(pair and pair.separable for pair in pairs) if judged else None
    largest = max(differences, default=None)
    who = f"{several(names)} are the same function"
    windows = [n for n in names if covering_windows(configs[n])]
    if kernels:
        who += f" on different kernels ({', '.join(dict.fromkeys(kernels))})"
    elif windows and not same_kernel:
        who += f" (the window of {several(windows)} covers the whole sequence)"
    return Control(
        names=tuple(names),
        same_recipe=same_recipe,
        tuned=tuned,
        kernels=kernels,
        largest_difference=largest,
        ties=ties,
        note=_note(who, largest, ties, same_recipe=same_recipe, tuned=tuned),
        savings=savings(names, kernels, verdict.table) if kernels else "",
    )


def _alike(names: Sequence[str], configs: Mapping[str, Any]) -> bool:
    return len({kernels_in(configs[name]) for name in names}) == 1


def _note(
    who: str, largest: float | None, ties: bool | None, *, same_recipe: bool, tuned: bool
) -> str:
    if not (same_recipe or tuned):
        return (
            f"{who}, with different learning rates: a difference between them is due to the "
            "learning rate."
        )
    if tuned:
        who += ", each tuned on a seed of its own"
    if largest is None:
        return f"{who}; they have not finished a seed in common yet."
    if largest == 0:
        return f"{who}, and their losses are equal to the last bit."
    apart = f"their losses differ by up to {largest:.2g} nats/token at a seed"
    if ties is False:
        why = "the search or the error of a run" if tuned else "something else"
        why += " is not what it is taken for" if tuned else " differs between these runs"
        return (
            f"{who}, but the comparison separates them ({apart}): {why}, so do not trust this "
            "verdict."
        )
    end = ", and they are not distinguishable" if ties else ""
    return f"{who}; {apart}{end}."


def _saved(before: float, after: float, unit: str, per: str, resolution: float) -> str:
    """Return `1.2 ms/step less (3.1 instead of 4.3)`, or that both are equal.

    Equal is what differs by at most `resolution`, relative.
    """
    what = {"seconds": "time", "bytes": "peak memory"}[unit]
    ends = f"{quantity(after, unit)} instead of {quantity(before, unit)}"
    if abs(after - before) <= resolution * max(before, after):
        return f"the same {what} within {resolution:.0%} ({ends})"
    how = "less" if after < before else "more"
    by = f"{quantity(abs(after - before), unit)}{per}"
    return f"{by} {how}{'' if unit == 'seconds' else ' ' + what} ({ends})"


def _recipe(table: Table) -> tuple[str, ...]:
    """Return the paths of the learning rate, and of what else a study tunes."""
    if table.study.tuning is None:
        return ("train.learning_rate",)
    settings: Iterable[str] = table.study.tuning.get("settings") or ()
    steps = OF_BATCH if "train.batch_size" in settings else ()
    return (
        *("train.learning_rate", "train.warmup_steps", *settings),
        *(f"train.{name}" for name in steps),
    )


def _without(settings: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Any]:
    found = dict(settings)
    for path in paths:
        name, _, rest = path.partition(".")
        if not rest:
            found.pop(name, None)
        elif isinstance(inside := found.get(name), Mapping):
            found[name] = _without(cast("Mapping[str, Any]", inside), [rest])
    return found
