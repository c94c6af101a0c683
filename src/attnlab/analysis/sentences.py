"""Phrases of which an analysis makes its sentences: differences, enumerations and layers."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from attnlab.analysis.numbers import ends, nats
from attnlab.analysis.statistics.comparisons import Comparison
from attnlab.analysis.statistics.layout import Spike
from attnlab.analysis.statistics.noise import Noise

MOST_NAMED = 6  # names in a sentence; of more, the first three and a count
_IN_FULL = 2  # pairs with a sentence each; more are grouped


def apart(pair: Comparison) -> str:
    """Return the absolute difference of two variants, with its simultaneous interval."""
    low, high = _interval(pair)
    if low is None or high is None:
        return f"{nats(abs(pair.mean))} (one seed: no interval)"
    return f"{nats(abs(pair.mean))} {ends((low, high), 3)}"


def against(first: str, second: str, pair: Comparison) -> str:
    """Return a sentence on the first variant minus the second.

    >>> pair = Comparison(mean=0.084, half_width=0.026, alone=0.02, p=0.005, margin=0.01)
    >>> against("mha", "linear", pair)
    'mha is worse than linear by 0.084 nats/token [0.058, 0.110].'
    """
    if pair.low is None or pair.high is None:
        return f"{first} minus {second} is {pair.mean:+.3f} nats/token on one seed (no interval)."
    if pair.low == pair.high == 0:
        return f"{first} and {second} have equal losses, to the last bit."
    if pair.separable:
        return f"{first} is {_direction(pair)} than {second} by {apart(pair)}."
    interval = f"difference {pair.mean:+.3f} nats/token {ends((pair.low, pair.high), 3, '+')}"
    if pair.equivalent:
        return f"{first} and {second} are equivalent within the margin: {interval}."
    return f"{first} is not distinguishable from {second}: {interval}."


def compared(pairs: Mapping[tuple[str, str], Comparison]) -> tuple[str, ...]:
    """Return sentences on many pairs, in which pairs that share a result share a sentence."""
    groups: dict[str, dict[tuple[str, str], Comparison]] = {}
    for names, pair in pairs.items():
        groups.setdefault(_result(pair), {})[names] = pair
    return tuple(
        sentence for result, members in groups.items() for sentence in _grouped(result, members)
    )


def _result(pair: Comparison) -> str:
    if pair.low is None:
        return "one seed"
    if pair.separable:
        return _direction(pair)
    return "equivalent within the margin" if pair.equivalent else "not distinguishable"


def _grouped(result: str, pairs: Mapping[tuple[str, str], Comparison]) -> Iterator[str]:
    if len(pairs) <= _IN_FULL or result == "one seed":
        yield from (against(*names, pair) for names, pair in pairs.items())
        return
    firsts = list(dict.fromkeys(first for first, _ in pairs))
    seconds = list(dict.fromkeys(second for _, second in pairs))
    if result in ("better", "worse"):
        if len(seconds) == 1:
            shown = [f"{first} {_bare(pair)}" for (first, _), pair in pairs.items()]
            yield f"{result.capitalize()} than {seconds[0]} by, in nats/token: {listed(shown)}."
        elif len(firsts) == 1:
            opposite = "Worse" if result == "better" else "Better"
            shown = [f"{second} {_bare(pair)}" for (_, second), pair in pairs.items()]
            yield f"{opposite} than {firsts[0]} by, in nats/token: {listed(shown)}."
        else:
            for first in firsts:
                of_first = {names: pair for names, pair in pairs.items() if names[0] == first}
                yield from _grouped(result, of_first)
        return
    differences = [pair.mean for pair in pairs.values()]
    if len(firsts) == 1 < len(seconds):
        firsts, seconds, differences = seconds, firsts, [-mean for mean in differences]
    span = f"{min(differences):+.3f} to {max(differences):+.3f} nats/token"
    preposition = "from" if result == "not distinguishable" else "to"
    if len(pairs) == len(firsts) * len(seconds):
        who = f"{several(firsts)} {preposition} {several(seconds)}"
    else:
        who = f"pairs among {several(list(dict.fromkeys([*firsts, *seconds])))}"
    yield f"{result.capitalize()}: {who} ({len(pairs)} pairs, differences {span})."


def _direction(pair: Comparison) -> str:
    return "worse" if pair.mean > 0 else "better"


def _interval(pair: Comparison) -> tuple[float | None, float | None]:
    """Return the interval of the absolute difference."""
    if pair.mean < 0 and pair.low is not None and pair.high is not None:
        return -pair.high, -pair.low
    return pair.low, pair.high


def _bare(pair: Comparison) -> str:
    low, high = _interval(pair)
    assert low is not None, "a group of pairs with intervals"
    assert high is not None
    return f"{abs(pair.mean):.3f} {ends((low, high), 3)}"


def listed(names: Sequence[str]) -> str:
    """Return names as an enumeration.

    >>> listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def several(names: Sequence[str]) -> str:
    """Return names as an enumeration: of many, the first three and the number of others.

    >>> several(list("abcdef")), several(list("abcdefg"))
    ('a, b, c, d, e and f', 'a, b, c and 4 others')
    """
    if len(names) <= MOST_NAMED:
        return listed(names)
    return listed([*names[:3], f"{len(names) - 3} others"])


def in_words(layers: Sequence[str]) -> str:
    """Return the most frequent mechanism of the layers, and in which layers the others are.

    >>> in_words(["delta"] * 5 + ["mha"] + ["delta"] * 5 + ["mha"]), in_words(["mha", "mha"])
    ('delta, mha in layers 5 and 11', 'mha')
    """
    most = Counter(layers).most_common(1)[0][0]
    return with_others(most, {i: name for i, name in enumerate(layers) if name != most})


def with_others(default: str, others: Mapping[int, str]) -> str:
    """Return the mechanism of most layers, and the others with their layers.

    >>> with_others("delta", {0: "identity", 8: "mha", 9: "mha", 10: "mha", 11: "mha"})
    'delta, identity in layer 0, mha in layers 8 to 11'
    """
    places: dict[str, list[int]] = {}
    for layer, name in sorted(others.items()):
        places.setdefault(name, []).append(layer)
    shown = [f"{name} in {_in_layers(layers)}" for name, layers in places.items()]
    return ", ".join([default, *shown] if default else shown)


def _in_layers(layers: Sequence[int]) -> str:
    return f"layer{'s' * (len(layers) > 1)} {listed(list(_spans(layers)))}"


def _spans(layers: Sequence[int]) -> Iterable[str]:
    """Yield single layers, and three or more in a row as one span."""
    start = 0
    for i, layer in enumerate(layers):
        if layers[i + 1 : i + 2] != [layer + 1]:
            row = layers[start : i + 1]
            yield from [f"{row[0]} to {row[-1]}"] if len(row) > 2 else map(str, row)
            start = i + 1


def noise_in_words(noise: Noise) -> list[str]:
    """Say what was known of the noise of a comparison, and which runs were set aside."""
    said = list[str]()
    if noise.relative is not None:
        said.append(
            "How the variances of families differ is known from all sizes and training lengths."
        )
    if noise.paired:
        said.append("Seed effects are removed: runs of one seed vary together.")
    else:
        said.append("Seed effects are not removed: that would not make the intervals narrower.")
    return said + [spiked(spike) for spike in noise.spikes]


def spiked(spike: Spike) -> str:
    """Return a sentence on a run that is set aside."""
    return (
        f"Seed {spike.seed} of {spike.variant} is set aside as an outlier: {spike.loss:.3f}, where "
        f"its other seeds have a mean of {spike.others:.3f} nats/token."
    )
