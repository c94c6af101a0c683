"""Single values of settings: each is read strictly by the type of its field.

Text from a command line is converted to the type of its field. A whole number may be written with
k, m or g: 4k is 4,096. A mapping is stored as a `FrozenMap`, so that settings stay hashable.
`settings_of` makes fields of the arguments of another package's class.
"""

import inspect
import json
import math
import numbers
import os
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, TypeVar, cast

from attnlab.config.problem import ConfigError, Problem

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
    value = _plain_number(hint, value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        found.append(Problem(path, f"expected {words.get(hint, hint)}, got {value!r}"))
    elif isinstance(value, float) and not math.isfinite(value):
        found.append(Problem(path, f"expected a finite number, got {value!r}"))
    elif hint is int and abs(value) >= 10**MOST_DIGITS:
        found.append(Problem(path, f"must have at most {MOST_DIGITS} digits"))
    return value


def _plain_number(hint: Any, value: Any) -> Any:
    """Return a number as the type of its field, also one of another library; infinity if too large.

    What is no number of that type is returned as it is.
    """
    kind = {int: numbers.Integral, float: numbers.Real}.get(hint)
    if kind is None or isinstance(value, bool) or not isinstance(value, kind):
        return value
    try:
        return hint(value)
    except OverflowError:
        return math.inf


def parsed(text: str, path: str, found: list[Problem]) -> Any:
    """Return the value of a JSON text. Invalid JSON and repeated names are added to `found`."""

    def once(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
        names = [name for name, _ in pairs]
        for name in dict.fromkeys(name for name in names if names.count(name) > 1):
            found.append(Problem(path, f"{name!r} is given twice"))
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:  # or a number is too long, or too deep
        found.append(Problem(path, f"not JSON: {error}"))
        return None


def expanded(path: Path | str) -> Path:
    """Return a path with a user's home in place of ~; that of an unknown user stays as it is.

    >>> str(expanded("~no-such-user/x"))
    '~no-such-user/x'
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111  Path.expanduser fails there


def names_in(given: Iterable[str] | str) -> list[str]:
    """Return names, or those in a text with commas between them; empty ones are left out.

    >>> names_in("mha, linear,"), names_in(["mha"])
    (['mha', 'linear'], ['mha'])
    """
    words = given.split(",") if isinstance(given, str) else given
    return [word.strip() for word in words if word.strip()]


def texts_in(given: Iterable[str] | str, name: str) -> list[str]:
    """Return texts as a list, also a single one.

    Raises ConfigError, which mentions `name`, for anything else.

    >>> texts_in("n_heads=2", "overrides"), texts_in(["n_heads=2"], "overrides")
    (['n_heads=2'], ['n_heads=2'])
    """
    if isinstance(given, Mapping):
        raise ConfigError([Problem(name, f"expected a list of texts, got {given!r}")])
    found: list[Any] = [given] if isinstance(given, str) else list(given)
    if others := [one for one in found if not isinstance(one, str)]:
        raise ConfigError([Problem(name, f"expected text, got {others[0]!r}")])
    return found


def whole_number(text: str) -> int | None:
    """Return the whole number that a text states, or None if it states none.

    >>> whole_number("512"), whole_number("4k"), whole_number(" 1M "), whole_number("2x")
    (512, 4096, 1048576, None)
    """
    pattern = r"\s*([+-]?[0-9](?:_?[0-9]){0,999})([kmg]?)\s*"
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


_PLAIN = (bool, int, float, str)


def settings_of(
    function: Callable[..., Any], leave_out: Collection[str] = ()
) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, type and field of every argument that JSON can represent, for `make_dataclass`.

    The type is that of the annotation or, if there is no usable annotation, of the default.

    >>> def layer(width: int, rate: float = 1, mask: list | None = None, **more): ...
    >>> [(name, hint) for name, hint, _ in settings_of(layer, leave_out=["width"])]
    [('rate', <class 'float'>)]
    """
    try:
        hints = typing.get_type_hints(_annotated(function))
    except NameError:  # an annotation that is imported for type checkers only
        hints = {}
    for name, argument in inspect.signature(function).parameters.items():
        is_named = argument.kind in (argument.POSITIONAL_OR_KEYWORD, argument.KEYWORD_ONLY)
        if name in leave_out or not is_named:
            continue
        is_required = argument.default is argument.empty
        default = None if is_required else argument.default
        hint = _type(hints.get(name), default, may_be_none=default is None and not is_required)
        if hint is not None and _is_finite(default):
            yield name, hint, field() if is_required else field(default=default)


def _annotated(function: Callable[..., Any]) -> Callable[..., Any]:
    return function.__init__ if isinstance(function, type) else function


def _type(hint: Any, default: Any, *, may_be_none: bool) -> Any:
    """Return the type of a setting, or None if the argument cannot be one."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    options = set(typing.get_args(hint)) if is_union else {hint}
    named = options - {types.NoneType, None}
    if not (len(named) == 1 and _is_plain(*named)):
        named = {type(default)} - {types.NoneType}
    if not (named and _is_plain(*named)):
        return None
    (base,) = named
    if base is int and isinstance(default, float):
        base = float
    return base | None if may_be_none or types.NoneType in options else base


def _is_plain(hint: Any) -> bool:
    """True for a scalar type or a tuple of scalar types."""
    items = [item for item in typing.get_args(hint) if item is not ...]
    is_tuple = typing.get_origin(hint) is tuple and bool(items)
    return all(item in _PLAIN for item in (items if is_tuple else [hint]))


def _is_finite(default: Any) -> bool:
    parts = cast("tuple[Any, ...]", default) if isinstance(default, tuple) else (default,)
    return all(math.isfinite(part) for part in parts if isinstance(part, float))
