"""Standard JSON text of records, and back: strict, since a disk or a person may have altered it.

A number that is not finite is written as null and named in "not_finite" of its object.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from textwrap import shorten
from types import NoneType, UnionType
from typing import (
    Any,
    Literal,
    Never,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import numpy as np

from attnlab.record.atomic_files import DamagedError, open_regular, replace_file

Json = dict[str, Any]
MOST_DIGITS = 19  # of a whole number: it fits 64 bits
MOST_LEVELS = 32  # of nested objects and lists
# what may be a number out of range; digits within a text, such as a checksum, are none
_MAY_BE_OUT_OF_RANGE = re.compile(rb"[\s:\[,]-?(?:\d{%d}|\d[\d.]*[eE][-+]?\d{3})" % MOST_DIGITS)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write one object to a file, atomically."""
    replace_file(path, to_json(value))


def to_json(value: Mapping[str, Any]) -> bytes:
    """Return one object as indented JSON in UTF-8."""
    text = json.dumps(standard(value), indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def to_line(metrics: Mapping[str, Any]) -> str:
    """Return one object as a line of JSON in ASCII, so that a cut never splits a character."""
    return json.dumps(standard(metrics), allow_nan=False) + "\n"


def parse(content: bytes, path: Path, form: Any = Json, line: int | None = None) -> Json:
    """Return the object of a JSON text, strictly: standard JSON, finite numbers, known types.

    Args:
        content: the text.
        path: the file that it came from, for messages.
        form: the type of the object, such as a TypedDict; see `mismatch`.
        line: its line in the file, if it is one of many.

    Raises:
        DamagedError: the text is anything else. The message names the file and the place.
    """
    where = f"{path} is damaged" if line is None else f"{path} is damaged at line {line}"
    try:
        value = json.loads(
            content.decode(),
            parse_constant=_refuse_constant,
            object_pairs_hook=_without_repeats,
            **_OF_NUMBERS if _MAY_BE_OUT_OF_RANGE.search(content) else {},
        )
        if content.count(b"{") + content.count(b"[") > MOST_LEVELS and not _depth_is_usual(value):
            problem = "nested too deeply"
        else:
            problem = None if _test(form)(value) else mismatch(form, value)
        if b"\\ud" in content.lower():
            json.dumps(value, ensure_ascii=False).encode()  # half a character is an error
    except RecursionError:
        problem = "nested too deeply"
    except UnicodeDecodeError as error:
        problem = f"byte {error.start} is no UTF-8 text"
    except UnicodeEncodeError:
        problem = "a text holds half a character"
    except ValueError as error:
        problem = str(error)
    else:
        if problem is None:
            return cast("Json", value)
    raise DamagedError(f"{where} ({problem})")


def read_foreign_object(path: Path, most_bytes: int = -1) -> Json:
    """Return the object in a JSON file that another program may have written or changed.

    Raises ValueError if the file is missing, cannot be read, or holds no object.
    """
    try:
        with open_regular(path) as file:
            value = json.loads(file.read(most_bytes))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
    except DamagedError:
        raise
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: it holds no object")
    return cast("Json", value)


def mismatch(form: Any, value: Any, at: str = "") -> str | None:
    """Return where a JSON value differs from a type, and how; None if it has the type.

    Args:
        form: None, bool, int, float (any number), str, Any, or built from types: a union, Literal,
            list[X], tuple[X, ...] (a list), Mapping[str, X], Mapping[int, X] (whole numbers as
            text), or a TypedDict, whose objects may have more fields.
        value: the value.
        at: its dotted path, for the message.

    >>> mismatch(Mapping[str, list[int]], {"seeds": [0, 1.5]})
    'seeds.1: expected a whole number, got 1.5'
    """
    origin, arguments = get_origin(form), get_args(form)
    if origin in (Union, UnionType):
        found = list[str]()
        for option in arguments:
            if (said := mismatch(option, value, at)) is None:
                return None
            found.append(said)
        return max(found, key=lambda said: len(said.partition(":")[0]))
    if origin is Literal:
        known = ", ".join(map(str, arguments))
        return None if value in arguments else _expected(f"one of {known}", value, at)
    if origin in (list, tuple):
        items = enumerate(value) if isinstance(value, list) else None
        return _first(items, arguments[0], at) or _expected("a list", value, at, items is None)
    if origin in (dict, Mapping) or is_typeddict(form):
        if not isinstance(value, dict):
            return _expected("an object", value, at)
        return _object_mismatch(form, cast("Json", value), at)
    if form is Any:
        return None
    name, kinds = _SCALARS[form]
    return _expected(name, value, at, type(value) not in kinds)


@cache
def _test(form: Any) -> Callable[[Any], bool]:
    """Return a function that is True for values without a `mismatch`, several times as fast."""
    origin, arguments = get_origin(form), get_args(form)
    if origin in (Union, UnionType):
        options = [_test(option) for option in arguments]
        return lambda value: any(option(value) for option in options)
    if origin is Literal:
        return lambda value: value in arguments
    if origin in (list, tuple):
        of_item = _test(arguments[0])
        return lambda value: isinstance(value, list) and all(map(of_item, value))
    if is_typeddict(form):
        required, fields = form.__required_keys__, {k: _test(of) for k, of in _hints(form).items()}
        return lambda value: (
            isinstance(value, dict)
            and required <= value.keys()
            and all(fields[name](of) for name, of in value.items() if name in fields)
        )
    if origin in (dict, Mapping) and arguments[0] is str:
        of_field = _test(arguments[1])
        return lambda value: isinstance(value, dict) and all(map(of_field, value.values()))
    if form is Any:
        return lambda _: True
    if form in _SCALARS:
        kinds = _SCALARS[form][1]
        return lambda value: type(value) in kinds
    return lambda value: mismatch(form, value) is None


_SCALARS: dict[Any, tuple[str, tuple[type, ...]]] = {
    NoneType: ("null", (NoneType,)),
    bool: ("true or false", (bool,)),
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    str: ("a text", (str,)),
}


def _object_mismatch(form: Any, value: Json, at: str) -> str | None:
    if is_typeddict(form):
        if missing := sorted(form.__required_keys__ - value.keys()):
            return f"{_join(at, missing[0])} is missing"
        hints = _hints(form)
        known = ((hints[name], name) for name in value if name in hints)
        found = (mismatch(hint, value[name], _join(at, name)) for hint, name in known)
        return next(filter(None, found), None)
    key, of = get_args(form)
    if key is int and (odd := [name for name in value if not name.isdecimal()]):
        return _expected("a whole number", odd[0], at)
    return _first(value.items(), of, at)


_hints = cache(get_type_hints)  # a report reads the same few forms thousands of times


def _first(items: Iterable[tuple[Any, Any]] | None, form: Any, at: str) -> str | None:
    found = (mismatch(form, item, _join(at, str(name))) for name, item in items or ())
    return next(filter(None, found), None)


def _expected(name: str, value: Any, at: str, differs: bool = True) -> str | None:
    if not differs:
        return None
    shown = shorten(json.dumps(value), 40, placeholder=" ...")
    return f"{at}: expected {name}, got {shown}".removeprefix(": ")


def _join(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


def _refuse_constant(name: str) -> Never:
    raise ValueError(f"{name} is no standard JSON")


def _finite(text: str) -> float:
    if math.isfinite(number := float(text)):
        return number
    raise ValueError(f"{shorten(text, 20, placeholder='...')} is out of range")


def _bounded(text: str) -> int:
    if len(text.removeprefix("-")) < MOST_DIGITS:
        return int(text)
    raise ValueError(f"a number of {len(text)} digits is out of range")


_OF_NUMBERS: dict[str, Any] = {"parse_float": _finite, "parse_int": _bounded}


def _without_repeats(pairs: list[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a field is given twice")
    return found


def _depth_is_usual(value: Any) -> bool:
    level = [value]
    for _ in range(MOST_LEVELS):
        inner = [item for item in level if isinstance(item, dict | list)]
        level = [x for item in inner for x in (item.values() if isinstance(item, dict) else item)]
    return not level


_PLAIN = {str, int, bool, type(None)}


def standard(value: Any) -> Any:
    """Return `value` as standard JSON values, with the names of numbers that are not finite."""
    if type(value) in _PLAIN:  # most values; the questions below take ten times as long
        return value
    if type(value) is not float and isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        items = {str(key): item for key, item in cast("Mapping[Any, Any]", value).items()}
        lost = {
            key: str(float(item))
            for key, item in items.items()
            if isinstance(item, float | np.floating) and not math.isfinite(item)
        }
        converted = {key: standard(item) for key, item in items.items()}
        return converted | {"not_finite": lost} if lost else converted
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [standard(item) for item in cast("Iterable[Any]", value)]
    return value
