"""A mapping as a setting: it cannot be changed, and is hashed by what it holds."""

from collections.abc import Iterator, Mapping
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class FrozenMap(Mapping[K, V]):
    """Equal to every mapping of the same items.

    >>> FrozenMap({5: "a"}) == {5: "a"}, hash(FrozenMap({5: "a"})) == hash(FrozenMap({5: "a"}))
    (True, True)
    """

    def __init__(self, items: Mapping[K, V]) -> None:
        self._items = dict(items)

    def __getitem__(self, key: K) -> V:
        return self._items[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)
