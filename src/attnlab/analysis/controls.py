"""A/A controls: variants that are the same function under two names, and so must tie.

They are recognised by their settings, which differ in nothing but the name; or in the kernel, which
computes the same in another way (`kernels`), so that they agree within the noise and not to the
last bit. In the layout they count once, as the mean of their losses: two columns of the same
numbers would make the noise look smaller than it is. Whether they tie is judged apart, by the noise
of the whole layout.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from attnlab.analysis.costs import COUNTED, TIMED
from attnlab.analysis.numbers import quantity
from attnlab.analysis.settings import kernels_in, same_settings, without_kernels
from attnlab.analysis.table import Table
from attnlab.analysis.verdict import Verdict

PRICES = (("step_time", "seconds", "a step", TIMED), ("peak_memory_bytes", "bytes", "", COUNTED))


@dataclass(frozen=True, kw_only=True)
class Control:
    """Variants whose settings differ in nothing but the name, the kernel or the learning rate."""

    names: tuple[str, ...]
    same_rate: bool  # False: tuned to different learning rates, so they need not tie
    kernels: tuple[str, ...] = ()  # by name, where they differ; else empty
    largest_difference: float | None  # at any seed, nats; None where no seed is shared
    ties: bool | None  # whether the comparison leaves them together; None where it has no verdict
    note: str  # one sentence
    bought: str = ""  # what the kernels save, in time and memory


def controls_of(verdict: Verdict) -> tuple[Control, ...]:
    """Every group of variants that are the same function, but perhaps for the learning rate."""
    configs = {v.name: v.config for v in verdict.table.variants if v.config}
    functions = {name: _without_rate(without_kernels(of)) for name, of in configs.items()}
    groups = same_settings(functions)
    return tuple(_control(names, configs, verdict) for names in groups if len(names) > 1)


def _control(names: Sequence[str], configs: Mapping[str, Any], verdict: Verdict) -> Control:
    same_rate = len(same_settings({n: without_kernels(configs[n]) for n in names})) == 1
    same_kernel = len(same_settings({n: _without_rate(configs[n]) for n in names})) == 1
    kernels = () if same_kernel else differing(names, configs)
    by_seed = [v.by_seed(verdict.metric) for v in verdict.table.variants if v.name in names]
    differences = [
        abs(first[seed] - second[seed])
        for first, second in combinations(by_seed, 2)
        for seed in first.keys() & second.keys()
    ]
    pairs = [verdict.pairs.get(pair) for pair in combinations(names, 2)]
    judged = verdict.method != "none" and all(pair is not None for pair in pairs)
    ties = not any(pair and pair.separable for pair in pairs) if judged else None
    largest = max(differences, default=None)
    who = f"{', '.join(names[:-1])} and {names[-1]} are the same function"
    if kernels:
        who += f" on different kernels ({', '.join(kernels)})"
    return Control(
        names=tuple(names),
        same_rate=same_rate,
        kernels=kernels,
        largest_difference=largest,
        ties=ties,
        note=_note(who, same_rate, largest, ties),
        bought=bought(names, kernels, verdict.table) if kernels else "",
    )


def _note(who: str, same_rate: bool, largest: float | None, ties: bool | None) -> str:
    if not same_rate:
        return (
            f"{who}, tuned to different learning rates: a difference between "
            "them is one of the learning rate."
        )
    if largest is None:
        return f"{who}; they have not finished a seed in common yet."
    if largest == 0:
        return f"{who}, and their losses are equal to the last bit."
    apart = f"their losses differ by up to {largest:.2g} nats at a seed"
    if ties is False:
        return (
            f"{who}, and yet the comparison separates them ({apart}): "
            "something else differs between these runs, so do not trust this verdict."
        )
    end = ", which is within the noise" if ties else ""
    return f"{who}; {apart}{end}."


def _without_rate(config: Mapping[str, Any]) -> dict[str, Any]:
    train = {key: value for key, value in config.get("train", {}).items() if key != "learning_rate"}
    return {**config, "train": train}


def differing(names: Sequence[str], configs: Mapping[str, Any]) -> tuple[str, ...]:
    """By name, the kernels that not all have.

    >>> differing(("a", "b"), {"a": {"kernel": "math"}, "b": {"kernel": "flash"}})
    ('math', 'flash')
    """
    found = [dict.fromkeys(kernels_in(configs[name])) for name in names]
    common = set.intersection(*map(set, found))
    return tuple(", ".join(k for k in of_one if k not in common) or "the rest" for of_one in found)


def bought(names: Sequence[str], kernels: Sequence[str], table: Table) -> str:
    """What each kernel saves against that of the first name. Empty where nothing was measured."""
    if len(table.devices) > 1:
        return ""
    numbers = {v.name: v.numbers for v in table.variants}
    first, said = names[0], list[str]()
    for name, kernel in zip(names[1:], kernels[1:], strict=True):
        both = [price for price in PRICES if all(price[0] in numbers[n] for n in (first, name))]
        parts = [
            _saved(numbers[first][key].mean, numbers[name][key].mean, unit, per, resolution)
            for key, unit, per, resolution in both
        ]
        if parts:
            who = f"{name} (kernel {kernel}) against {first} (kernel {kernels[0]})"
            said.append(f"{who}: {'; '.join(parts)}.")
    return " ".join(said)


def _saved(before: float, after: float, unit: str, per: str, resolution: float) -> str:
    """`1.2 ms a step less (3.1, not 4.3)`, or that it is the same within the resolution."""
    what = {"seconds": "time", "bytes": "peak memory"}[unit]
    ends = f"{quantity(after, unit)}, not {quantity(before, unit)}"
    if abs(after - before) <= resolution * max(before, after):
        return f"the same {what} within {resolution:.0%} ({ends})"
    how = "less" if after < before else "more"
    by = " ".join(filter(None, (quantity(abs(after - before), unit), per)))
    return f"{by} {how}{'' if unit == 'seconds' else ' ' + what} ({ends})"
