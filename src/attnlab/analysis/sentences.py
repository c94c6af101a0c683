"""Numbers inside the sentences that an analysis writes."""

from collections.abc import Sequence

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
