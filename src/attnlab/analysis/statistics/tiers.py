"""Tiers: the best and all that cannot be told from it, then the best of the rest, and so on."""

from collections.abc import Callable, Sequence


def tiers(order: Sequence[str], separable: Callable[[str, str], bool]) -> dict[str, int]:
    """The tier of each variant, from 1. `order` has the best first.

    Not being separable does not carry over: two of one tier may be separable from each other,
    though neither is from the tier's best.

    >>> tiers(["a", "b", "c", "d"], lambda one, other: abs(ord(one) - ord(other)) > 1)
    {'a': 1, 'b': 1, 'c': 2, 'd': 2}
    """
    found: dict[str, int] = {}
    rest, tier = list(order), 0
    while rest:
        tier, best = tier + 1, rest[0]
        found |= {name: tier for name in rest if name == best or not separable(best, name)}
        rest = [name for name in rest if name not in found]
    return {name: found[name] for name in order}
