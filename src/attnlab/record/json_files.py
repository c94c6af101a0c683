"""Whole files of standard JSON: an interrupted writer leaves the old one or the new one.

A file is written under a temporary name, flushed to disk and renamed over the old one. What is not
a finite number is null in JSON, and named in "not_finite".
"""

import json
import math
import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

Json = dict[str, Any]


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a kill, meets the old one or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write one object, whole or not at all."""
    replace_file(path, to_json(value))


def to_json(value: Mapping[str, Any]) -> bytes:
    """One object in standard JSON, indented."""
    text = json.dumps(_standard(value), indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def to_line(metrics: Mapping[str, Any]) -> str:
    return json.dumps(_standard(metrics), allow_nan=False) + "\n"  # ASCII: no character is torn


def parse(text: str, path: Path, line: int | None = None) -> Json:
    try:
        return cast("Json", json.loads(text))
    except json.JSONDecodeError as error:
        where = path if line is None else f"{path} line {line}"
        raise ValueError(
            f"{where} is damaged ({error}); restore it, or delete {path.parent} to run it again"
        ) from None


def _standard(value: Any) -> Any:
    """`value` in what JSON can say; an object names its numbers that are not finite."""
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
        said = {key: _standard(item) for key, item in items.items()}
        return said | {"not_finite": lost} if lost else said
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_standard(item) for item in cast("Iterable[Any]", value)]
    return value
