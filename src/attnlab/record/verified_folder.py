"""A folder of files with checksums, so that any later change or damage is detected.

    <folder>/{model.safetensors, tokenizer.json, ..., state.json}

`state.json` holds the SHA-256 of the other files and of itself. The folder is written atomically
and read as data only: nothing in it is executed.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

from attnlab.record.atomic_files import (
    DamagedError,
    open_regular,
    read_file,
    replace_file,
    replace_folder,
    sha256,
)
from attnlab.record.json_text import Json, mismatch, parse, standard, to_json

STATE = "state.json"
MOST_STATE_BYTES = 2**24
SUMS = "sha256"  # field of an object that holds checksums, by name of the file


class StateForm(TypedDict):
    """Types of state.json."""

    sha256: dict[str, str]


def write_verified(
    folder: Path, files: Mapping[str, bytes | Callable[[Path], object]], state: Mapping[str, Any]
) -> None:
    """Write a folder with its checksums, or replace it.

    Args:
        folder: the folder.
        files: by path in the folder, the bytes of a file, or a function that writes it at a path;
            the function of "." writes any files into the folder whose path it is given.
        state: JSON values that are stored beside the files, for `read_verified`.

    Raises:
        WriteError: the folder could not be written, as on a full disk. Nothing of it is then left.
    """

    def fill(unfinished: Path) -> None:
        for name, content in files.items():
            (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                (unfinished / name).write_bytes(content)
            else:
                content(unfinished / name)
        written = sorted(path for path in unfinished.rglob("*") if path.is_file())
        sums = {path.relative_to(unfinished).as_posix(): sha256(path) for path in written}
        (unfinished / STATE).write_bytes(to_json(add_checksums(state, STATE, sums)))
        mode = (unfinished / STATE).stat().st_mode  # safetensors hides its files from other users
        for path in written:
            path.chmod(mode)

    replace_folder(folder, fill)


def add_checksums(value: Mapping[str, Any], name: str, others: Mapping[str, str]) -> Json:
    """Return an object for the file `name` with its own SHA-256 and those of other files."""
    whole = cast("Json", standard(value))
    return {**whole, SUMS: {**others, name: _sha256_of(whole)}}


def split_checksums(value: Json, path: Path) -> tuple[Json, dict[str, str] | None]:
    """Return the object without its checksums, and those of the other files.

    The second is None if the object has no checksums. Raises DamagedError if its own one differs.
    """
    if SUMS in value and (problem := mismatch(dict[str, str], value[SUMS], SUMS)):
        raise DamagedError(f"{path} is damaged ({problem})")
    sums = dict(value.get(SUMS, {}))
    whole = {name: of for name, of in value.items() if name != SUMS}
    if SUMS in value and sums.pop(path.name, None) != _sha256_of(whole):
        raise DamagedError(f"{path} was altered: its checksum differs")
    return whole, sums if SUMS in value else None


def write_object(path: Path, value: Mapping[str, Any], *, within: Path | None = None) -> None:
    """Write an object as JSON with its own SHA-256. Raises WriteError."""
    replace_file(path, to_json(add_checksums(value, path.name, {})), within=within)


def read_object(path: Path, form: Any = Json) -> Json | None:
    """Return the object of a JSON file, without its checksum if it has one; None without the file.

    Raises DamagedError if it is not as it was written, or not of the type `form`.
    """
    content = read_file(path)
    return None if content is None else parse_object(content, path, form)


def parse_object(content: bytes, path: Path, form: Any = Json) -> Json:
    """Return the object of the content of a JSON file, without its checksum if it has one.

    The checksum is that of the name of `path`. Raises DamagedError as `read_object`.
    """
    return split_checksums(parse(content, path, form), path)[0]


def read_verified(folder: Path) -> Json:
    """Return the `state` of a folder after all its checksums were compared.

    Raises:
        DamagedError: a file is missing, or is not as it was written.
    """
    try:
        with open_regular(folder / STATE) as file:
            state = parse(file.read(MOST_STATE_BYTES), folder / STATE, StateForm)
    except (OSError, DamagedError):
        raise DamagedError(f"{STATE} is missing or cut short") from None
    try:
        state, sums = split_checksums(state, folder / STATE)
    except DamagedError:
        raise DamagedError(f"{STATE} was altered") from None
    for name, written in (sums or {}).items():
        try:
            found = sha256(folder / name)
        except (OSError, DamagedError):
            raise DamagedError(f"{name} is missing") from None
        if found != written:
            raise DamagedError(f"{name} was altered or cut short: its checksum differs")
    return state


def _sha256_of(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
