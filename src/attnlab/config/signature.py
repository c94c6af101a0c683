"""Arguments: those of another package's class as config fields, and the types of a caller's."""

import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import field
from pathlib import Path
from types import NoneType
from typing import Any, cast

from attnlab.config.problem import ConfigError, Problem

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


def require_types(arguments: object) -> None:
    """Raise ConfigError, naming all, for fields of a dataclass with values of another class.

    Items of a sequence are not looked at. A number may be that of another library.
    """
    problems = list[Problem]()
    for name, hint in typing.get_type_hints(type(arguments)).items():
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        classes = tuple(typing.get_origin(option) or option for option in options)
        allowed = tuple(numbers.Integral if each is int else each for each in classes)
        value = getattr(arguments, name)
        boolean = isinstance(value, bool) and bool not in classes
        if boolean or not isinstance(value, allowed):
            words = (
                _WORDS.get(each, f"a {each.__name__}") for each in classes if each is not NoneType
            )
            problems.append(Problem(name, f"expected {' or '.join(words)}, got {value!r}"))
    if problems:
        raise ConfigError(problems)


_WORDS = {
    **{int: "a whole number", bool: "True or False", str: "text", Path: "a path"},
    **{Iterable: "a list", Mapping: "a dict"},
}
