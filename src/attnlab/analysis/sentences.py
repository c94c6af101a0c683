"""Phrases of which an analysis makes its sentences."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from attnlab.analysis.statistics.intervals import Comparison

Said = tuple[str, Sequence[str]]  # a short answer, and its evidence

MOST_NAMED = 6  # in a sentence


def apart(pair: Comparison) -> str:
    """How far two variants are apart, whichever is better, with the simultaneous interval."""
    if pair.low is None or pair.high is None:
        return f"{abs(pair.mean):.3f} nats (one seed: no interval)"
    if pair.mean < 0:
        return f"{-pair.mean:.3f} nats [{-pair.high:.3f}, {-pair.low:.3f}]"
    return f"{pair.mean:.3f} nats [{pair.low:.3f}, {pair.high:.3f}]"


def against(first: str, second: str, pair: Comparison) -> str:
    """A sentence on the first minus the second.

    >>> pair = Comparison(
    ...     mean=0.084, low=0.058, high=0.11, p=0.005, n=3, separable=True, equivalent=False,
    ...     paired_low=0.078, paired_high=0.09,
    ... )
    >>> against("mha", "linear", pair)
    'mha is worse than linear by 0.084 nats [0.058, 0.110].'
    """
    if pair.low is None or pair.high is None:
        return f"{first} minus {second} is {pair.mean:+.3f} nats on one seed, with no interval."
    if pair.low == pair.high == 0:
        return f"{first} and {second} have equal losses, to the last bit."
    if pair.separable:
        how = "worse" if pair.mean > 0 else "better"
        return f"{first} is {how} than {second} by {apart(pair)}."
    interval = f"difference {pair.mean:+.3f} nats [{pair.low:+.3f}, {pair.high:+.3f}]"
    if pair.equivalent:
        return f"{first} and {second} are practically equal: {interval}."
    return f"{first} cannot be told from {second}: {interval}."


def listed(names: Sequence[str]) -> str:
    """
    >>> listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def several(names: Sequence[str]) -> str:
    """The same, of many the first three and how many more.

    >>> several(list("abcdef")), several(list("abcdefg"))
    ('a, b, c, d, e and f', 'a, b, c and 4 others')
    """
    if len(names) <= MOST_NAMED:
        return listed(names)
    return listed([*names[:3], f"{len(names) - 3} others"])


def in_words(layers: Sequence[str]) -> str:
    """The mechanism of every layer: that of most, of equals the first, and where the others are.

    >>> in_words(["delta"] * 5 + ["mha"] + ["delta"] * 5 + ["mha"]), in_words(["mha", "mha"])
    ('delta, mha in layers 5 and 11', 'mha')
    """
    most = Counter(layers).most_common(1)[0][0]
    return with_others(most, {i: name for i, name in enumerate(layers) if name != most})


def with_others(default: str, others: Mapping[int, str]) -> str:
    """One mechanism, and others in some layers.

    >>> with_others("delta", {0: "identity", 8: "mha", 9: "mha", 10: "mha", 11: "mha"})
    'delta, identity in layer 0, mha in layers 8 to 11'
    """
    places: dict[str, list[int]] = {}
    for layer, name in sorted(others.items()):
        places.setdefault(name, []).append(layer)
    said = [f"{name} in {_where(layers)}" for name, layers in places.items()]
    return ", ".join([default, *said] if default else said)


def _where(layers: Sequence[int]) -> str:
    return f"layer{'s' * (len(layers) > 1)} {listed(list(_spans(layers)))}"


def _spans(layers: Sequence[int]) -> Iterable[str]:
    """Three or more in a row as one."""
    start = 0
    for i, layer in enumerate(layers):
        if layers[i + 1 : i + 2] != [layer + 1]:
            row = layers[start : i + 1]
            yield from [f"{row[0]} to {row[-1]}"] if len(row) > 2 else map(str, row)
            start = i + 1
