"""The held-out part of a text, decided by the text itself: by no seed and no order of files.

Half of the share goes to validation, half to test. Units (documents, modules) are held out whole,
in the order of the SHA-256 of their names, as long as they fit.
"""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple


class Tails(NamedTuple):
    """The three parts of one text, in this order."""

    train: str
    valid: str
    test: str


def hold_out(sizes: Mapping[str, int], share: float) -> dict[str, str]:
    """Return the split of every unit, by name. A held-out split has at most half of `share`.

    >>> hold_out({"a": 1, "b": 1, "c": 1, "d": 1}, share=0.5)
    {'a': 'train', 'b': 'train', 'c': 'test', 'd': 'valid'}
    """
    room: dict[str, float] = dict.fromkeys(("valid", "test"), share / 2 * sum(sizes.values()))
    split_of: dict[str, str] = dict.fromkeys(sizes, "train")
    for name in sorted(sizes, key=rank):
        split = next((split for split in room if sizes[name] <= room[split]), None)
        if split:
            split_of[name] = split
            room[split] -= sizes[name]
    return split_of


def tails(document: str, share: float) -> Tails:
    """Return a document with its end held out, cut at a blank line, a line end, or anywhere."""
    after_train, after_valid = (int(len(document) * (1 - part)) for part in (share, share / 2))
    valid = _boundary(document, after_train, after_valid)
    test = _boundary(document, after_valid, len(document))
    return Tails(document[:valid], document[valid:test], document[test:])


def rank(name: str) -> str:
    """Return a key that puts names into a fixed, arbitrary order."""
    return hashlib.sha256(name.encode()).hexdigest()


def _boundary(document: str, start: int, stop: int) -> int:
    for separator in ("\n\n", "\n"):
        found = document.find(separator, max(0, start - len(separator)), stop - 1)
        if found >= 0:
            return found + len(separator)
    return start
