"""Single values of settings: each is read strictly by the type of its field.

Text from a command line is converted to the type of its field. A whole number may be written with
k, m or g: 4k is 4,096. A mapping is stored as a `FrozenMap`, so that settings stay hashable.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from attnlab.config.problem import Problem

K = TypeVar("K")
V = TypeVar("V")

MOST_DIGITS = 18  # of a whole number


class Typed(str):
    """Text from a command line, not yet converted to the type of its field."""


class FrozenMap(Mapping[K, V]):
    """An immutable, hashable mapping that is equal to every mapping with the same items.

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


def one_of(options: tuple[Any, ...], value: Any, path: str, found: list[Problem]) -> Any:
    """Return the option that equals `value`; add a problem to `found` if none does."""
    if value not in options:
        listed = ", ".join(str(option) for option in options)
        found.append(Problem(path, f"expected one of {listed}; got {value!r}"))
        return value
    return options[options.index(value)]


def scalar(hint: Any, value: Any, path: str, found: list[Problem]) -> Any:
    """Return a bool, int, float or str; add a mismatch of types to `found`."""
    if isinstance(value, Typed):
        value = _convert(hint, value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        found.append(Problem(path, f"expected {words.get(hint, hint)}, got {value!r}"))
    elif isinstance(value, float) and not math.isfinite(value):
        found.append(Problem(path, f"expected a finite number, got {value!r}"))
    return value


def parsed(text: str, path: str, found: list[Problem]) -> Any:
    """Return the value of a JSON text. Invalid JSON and repeated names are added to `found`."""

    def once(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
        names = [name for name, _ in pairs]
        for name in dict.fromkeys(name for name in names if names.count(name) > 1):
            found.append(Problem(path, f"{name!r} is given twice"))
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        found.append(Problem(path, f"not JSON: {error}"))
        return None


def names_in(given: Iterable[str] | str) -> list[str]:
    """Return names, or those in a text with commas between them; empty ones are left out.

    >>> names_in("mha, linear,"), names_in(["mha"])
    (['mha', 'linear'], ['mha'])
    """
    words = given.split(",") if isinstance(given, str) else given
    return [word.strip() for word in words if word.strip()]


def whole_number(text: str) -> int | None:
    """Return the whole number that a text states, or None if it states none.

    >>> whole_number("512"), whole_number("4k"), whole_number(" 1M "), whole_number("2x")
    (512, 4096, 1048576, None)
    """
    pattern = rf"\s*([+-]?[0-9](?:_?[0-9]){{0,{MOST_DIGITS - 1}}})([kmg]?)\s*"
    match = re.fullmatch(pattern, text, re.IGNORECASE)
    return int(match[1]) * 1024 ** " kmg".index(match[2].lower() or " ") if match else None


def _convert(hint: Any, text: Typed) -> Any:
    """Return the text as the type of its field, or unchanged if that is impossible."""
    try:
        if hint is bool:
            return {"true": True, "false": False}[text.lower()]
        if hint is int:
            number = whole_number(text)
            return str(text) if number is None else number
        return hint(text)
    except (ValueError, KeyError):
        return str(text)
