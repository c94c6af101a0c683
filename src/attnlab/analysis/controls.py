"""A/A controls: variants that are the same function under two names, and so must tie.

They are recognised by their settings, which differ in nothing but the name. In the layout they
count once, as the mean of their losses: two columns of the same numbers would make the noise look
smaller than it is. Whether they tie is judged apart, by the noise of the whole layout.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from attnlab.analysis.settings import same_settings
from attnlab.analysis.verdict import Verdict


@dataclass(frozen=True, kw_only=True)
class Control:
    """Variants whose settings differ in nothing but the name (and perhaps the learning rate)."""

    names: tuple[str, ...]
    same_rate: bool  # False: tuned to different learning rates, so they need not tie
    largest_difference: float | None  # at any seed, nats; None where no seed is shared
    ties: bool | None  # whether the comparison leaves them together; None where it has no verdict
    note: str  # one sentence


def controls_of(verdict: Verdict) -> tuple[Control, ...]:
    """Every group of variants that are the same function, but perhaps for the learning rate."""
    configs = {v.name: v.config for v in verdict.table.variants if v.config}
    groups = same_settings({name: _without_rate(config) for name, config in configs.items()})
    return tuple(_control(names, configs, verdict) for names in groups if len(names) > 1)


def _control(names: Sequence[str], configs: Mapping[str, Any], verdict: Verdict) -> Control:
    same_rate = len(same_settings({name: configs[name] for name in names})) == 1
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
    return Control(
        names=tuple(names),
        same_rate=same_rate,
        largest_difference=largest,
        ties=ties,
        note=_note(names, same_rate, largest, ties),
    )


def _note(names: Sequence[str], same_rate: bool, largest: float | None, ties: bool | None) -> str:
    who = f"{', '.join(names[:-1])} and {names[-1]}"
    if not same_rate:
        return (
            f"{who} are the same function, tuned to different learning rates: a difference between "
            "them is one of the learning rate."
        )
    if largest is None:
        return f"{who} are the same function; they have not finished a seed in common yet."
    if largest == 0:
        return f"{who} are the same function, and their losses are equal to the last bit."
    apart = f"their losses differ by up to {largest:.2g} nats at a seed"
    if ties is False:
        return (
            f"{who} are the same function, and yet the comparison separates them ({apart}): "
            "something else differs between these runs, so do not trust this verdict."
        )
    end = ", which is within the noise" if ties else ""
    return f"{who} are the same function; {apart}{end}."


def _without_rate(config: Mapping[str, Any]) -> dict[str, Any]:
    train = {key: value for key, value in config.get("train", {}).items() if key != "learning_rate"}
    return {**config, "train": train}
