"""One value as its type: strict, and text from a command line is read by the type of its field."""

import json
import math
from collections.abc import Mapping
from typing import Any

from attnlab.config.problem import Problem
from attnlab.config.typed_length import TokenCount, token_count


class Typed(str):
    """A value as typed on a command line, still to be read by the type of its field."""


def one_of(options: tuple[Any, ...], value: Any, path: str, found: list[Problem]) -> Any:
    """The option that `value` is; none of them is added to `found`."""
    if value not in options:
        listed = ", ".join(str(option) for option in options)
        found.append(Problem(path, f"expected one of {listed}; got {value!r}"))
        return value
    return options[options.index(value)]


def scalar(hint: Any, value: Any, path: str, found: list[Problem]) -> Any:
    """A bool, int, float, str or count of tokens; a mismatch is added to `found`."""
    if isinstance(value, Typed):
        value = _read(hint, value)
    hint = int if hint == TokenCount else hint
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        found.append(Problem(path, f"expected {words.get(hint, hint)}, got {value!r}"))
    elif isinstance(value, float) and not math.isfinite(value):
        found.append(Problem(path, f"expected a finite number, got {value!r}"))
    return value


def parsed(text: str, path: str, found: list[Problem]) -> Any:
    """The value of a JSON text; None where it is none, or says one name twice."""

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


def _read(hint: Any, text: Typed) -> Any:
    """Text as the type of its field, or as it is where it is no such thing."""
    try:
        if hint is bool:
            return {"true": True, "false": False}[text.lower()]
        if hint == TokenCount:
            count = token_count(text)
            return str(text) if count is None else count
        return hint(text)
    except (ValueError, KeyError):
        return str(text)
