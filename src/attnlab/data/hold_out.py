"""Choose the held-out part of a text, and find how much of a held-out part is in the training text.

The choice follows from the text alone, without a seed or an order of files. Half of the share goes
to validation and half to test. Whole units (documents, modules) are held out, in the order of the
SHA-256 of their names, as long as they fit.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Ids: TypeAlias = NDArray[np.integer[Any]]

BLOCK = 1 << 22  # tokens that are hashed at once
SAMPLED = 1 << 12  # windows of a split that are searched for in the training split
PREFIX_BITS = 20  # of a hash, by which most windows of the training split are ruled out
SEARCHED = 1 << 26  # tokens of the training split, about, in blocks spread over it


class Tails(NamedTuple):
    """One text in three consecutive parts."""

    train: str
    valid: str
    test: str


def hold_out(sizes: Mapping[str, int], share: float) -> dict[str, str]:
    """Return the split of every unit, by name. No held-out split exceeds half of `share`.

    >>> hold_out({"a": 1, "b": 1, "c": 1, "d": 1}, share=0.5)
    {'a': 'train', 'b': 'train', 'c': 'test', 'd': 'valid'}
    """
    left: dict[str, float] = dict.fromkeys(("valid", "test"), share / 2 * sum(sizes.values()))
    split_of: dict[str, str] = dict.fromkeys(sizes, "train")
    for name in sorted(sizes, key=rank):
        split = next((split for split in left if sizes[name] <= left[split]), None)
        if split:
            split_of[name] = split
            left[split] -= sizes[name]
    return split_of


def tails(document: str, share: float) -> Tails:
    """Hold out the end of a document, cut at a blank line, else at a line end, else anywhere."""
    after_train, after_valid = (int(len(document) * (1 - part)) for part in (share, share / 2))
    valid = _boundary(document, after_train, after_valid)
    test = _boundary(document, after_valid, len(document))
    return Tails(document[:valid], document[valid:test], document[test:])


def rank(name: str) -> str:
    """Return a sort key that gives names a fixed, arbitrary order."""
    return hashlib.sha256(name.encode()).hexdigest()


def seen_in_training(train: Ids, held_out: Mapping[str, Ids], window: int) -> dict[str, float]:
    """Return by split the fraction of its windows of tokens that are also in the training split.

    `window` is a power of two; half of it counts for a split that is shorter, and a still shorter
    one has none. Of a long split, windows are sampled that are spread evenly over it. They are
    searched for in at most `SEARCHED` tokens of the training split.
    """
    shares = dict.fromkeys(held_out, 0.0)
    for width, splits in (
        (window, [split for split, ids in held_out.items() if len(ids) >= window]),
        (window // 2, [split for split, ids in held_out.items() if len(ids) < window]),
    ):
        sampled = {split: _sampled(_hashes(held_out[split], width)) for split in splits}
        sampled = {split: hashes for split, hashes in sampled.items() if len(hashes)}
        if sampled:
            wanted = np.unique(np.concatenate([*sampled.values()]))
            found = _found(train, wanted, width)
            shares |= {
                split: float(found[np.searchsorted(wanted, hashes)].mean())
                for split, hashes in sampled.items()
            }
    return shares


def _sampled(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the hashes at `SAMPLED` evenly spread places, or all of fewer."""
    if len(hashes) <= SAMPLED:
        return hashes
    return hashes[np.linspace(0, len(hashes) - 1, SAMPLED).astype(np.int64)]


def _found(train: Ids, wanted: NDArray[np.uint64], window: int) -> NDArray[np.bool_]:
    """Return which of the sorted hashes are those of windows of the training split."""
    found, is_prefix = np.zeros(len(wanted), bool), np.zeros(1 << PREFIX_BITS, bool)
    is_prefix[_prefixes(wanted)] = True
    for start in range(0, len(train), BLOCK * (1 + len(train) // SEARCHED)):
        hashes = _hashes(train[start : start + BLOCK + window - 1], window)
        hashes = hashes[is_prefix.take(_prefixes(hashes))]  # the few that need a search
        place = np.searchsorted(wanted, hashes)
        place, hashes = place[place < len(wanted)], hashes[place < len(wanted)]
        found[place[wanted[place] == hashes]] = True
    return found


def _prefixes(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    return (hashes >> np.uint64(64 - PREFIX_BITS)).view(np.int64)


def _hashes(ids: Ids, window: int) -> NDArray[np.uint64]:
    """Return a hash of each window of ids."""
    if len(ids) < window:
        return np.empty(0, np.uint64)
    hashes, width = ids.astype(np.uint64) + np.uint64(1), 1
    while width < window:
        hashes = hashes[:-width] * np.uint64(pow(_FACTOR, width, 1 << 64)) + hashes[width:]
        width *= 2
    hashes ^= hashes >> np.uint64(32)
    hashes *= np.uint64(_FACTOR)
    return hashes ^ (hashes >> np.uint64(29))


_FACTOR = 0x9E3779B97F4A7C15  # odd, so that no token is lost modulo 2^64


def _boundary(document: str, start: int, stop: int) -> int:
    for separator in ("\n\n", "\n"):
        found = document.find(separator, max(0, start - len(separator)), stop - 1)
        if found >= 0:
            return found + len(separator)
    return start
