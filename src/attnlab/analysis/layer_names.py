"""What is in which layer, in words."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from attnlab.analysis.sentences import listed


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
