"""Numbers inside the sentences that an analysis writes."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from attnlab.analysis.statistics.intervals import Comparison

Said = tuple[str, Sequence[str]]  # a short answer, and its evidence

MOST_NAMED = 6  # in a sentence

_STEPS = {
    "bytes": (1024, ("B", "KiB", "MiB", "GiB", "TiB")),
    "": (1000, ("", "thousand", "million", "billion", "trillion")),
    "FLOPs": (1000, ("FLOPs", "KFLOPs", "MFLOPs", "GFLOPs", "TFLOPs")),
}


def nats(value: float) -> str:
    """
    >>> nats(0.08401), nats(5.2)
    ('0.084 nats', '5.200 nats')
    """
    return f"{value:.3f} nats"


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


def amount(value: float, unit: str) -> str:
    """A cost with its unit.

    >>> amount(524288, "bytes"), amount(4_785_280, ""), amount(0.00238, "seconds")
    ('512 KiB', '4.79 million', '2.38 ms')
    >>> amount(11.7e6, "FLOPs"), amount(0, "bytes"), amount(1500, "bytes a token")
    ('11.7 MFLOPs', '0 B', '1.46 KiB a token')
    """
    unit, _, per = unit.partition(" ")
    if unit == "seconds":
        said = f"{1000 * value:.3g} ms"
    else:
        base, names = _STEPS[unit]
        power = 0
        while value >= base - 0.5 and power < len(names) - 1:
            value, power = value / base, power + 1
        said = f"{value:.0f} {names[power]}" if power == 0 else f"{_three(value)} {names[power]}"
    return f"{said.strip()} {per}".strip()


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


def _three(value: float) -> str:
    """Three digits that count, without an exponent."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}"


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
