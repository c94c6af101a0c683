"""Standard JSON text of records, and back.

A number that is not finite is written as null and named in "not_finite" of its object.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from attnlab.record.atomic_files import replace_file

Json = dict[str, Any]


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write one object to a file, atomically."""
    replace_file(path, to_json(value))


def to_json(value: Mapping[str, Any]) -> bytes:
    """Return one object as indented JSON in UTF-8."""
    text = json.dumps(_standard(value), indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def to_line(metrics: Mapping[str, Any]) -> str:
    """Return one object as a line of JSON in ASCII, so that a cut never splits a character."""
    return json.dumps(_standard(metrics), allow_nan=False) + "\n"


def parse(text: str, path: Path, line: int | None = None) -> Json:
    """Return the object of a JSON text. Raises ValueError that names the file it came from."""
    try:
        return cast("Json", json.loads(text))
    except json.JSONDecodeError as error:
        where = path if line is None else f"{path} line {line}"
        raise ValueError(
            f"{where} is damaged ({error}); restore it, or delete {path.parent} to run it again"
        ) from None


def _standard(value: Any) -> Any:
    """Return `value` as standard JSON values, with the names of numbers that are not finite."""
    if isinstance(value, np.generic):
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
        converted = {key: _standard(item) for key, item in items.items()}
        return converted | {"not_finite": lost} if lost else converted
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_standard(item) for item in cast("Iterable[Any]", value)]
    return value
