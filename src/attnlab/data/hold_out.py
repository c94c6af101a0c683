"""Choose the held-out part of a text from the text alone, without a seed or an order of files.

Half of the share goes to validation and half to test. Whole units (documents, modules) are held
out, in the order of the SHA-256 of their names, as long as they fit.
"""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple


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


def _boundary(document: str, start: int, stop: int) -> int:
    for separator in ("\n\n", "\n"):
        found = document.find(separator, max(0, start - len(separator)), stop - 1)
        if found >= 0:
            return found + len(separator)
    return start
