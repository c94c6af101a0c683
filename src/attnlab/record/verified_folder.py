"""A folder of files with checksums, so that any later change or damage is detected.

    <folder>/{model.safetensors, tokenizer.json, ..., state.json}

`state.json` holds the SHA-256 of the other files and of itself. The folder is written atomically
and read as data only: nothing in it is executed.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from attnlab.record.atomic_files import DamagedError, open_regular, replace_folder, sha256

Json = dict[str, Any]
STATE = "state.json"
MOST_STATE_BYTES = 2**24


def write_verified(
    folder: Path, files: Mapping[str, bytes | Callable[[Path], object]], state: Mapping[str, Any]
) -> None:
    """Write a folder with its checksums, or replace it.

    Args:
        folder: the folder.
        files: by path in the folder, the bytes of a file, or a function that writes it at a path.
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
        sums = {name: sha256(unfinished / name) for name in sorted(files)}
        sums[STATE] = _sha256_of(state)
        text = json.dumps({**state, "sha256": sums}, indent=2) + "\n"
        (unfinished / STATE).write_bytes(text.encode())
        mode = (unfinished / STATE).stat().st_mode  # safetensors hides its files from other users
        for name in files:
            (unfinished / name).chmod(mode)

    replace_folder(folder, fill)


def read_verified(folder: Path) -> Json:
    """Return the `state` of a folder after all its checksums were compared.

    Raises:
        DamagedError: a file is missing, or is not as it was written.
    """
    try:
        with open_regular(folder / STATE) as file:
            state = json.loads(file.read(MOST_STATE_BYTES).decode())
        sums = dict(state.pop("sha256"))
        whole = sums.pop(STATE) == _sha256_of(state)
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError):
        raise DamagedError(f"{STATE} is missing or cut short") from None
    if not whole:
        raise DamagedError(f"{STATE} was altered")
    for name, written in sums.items():
        try:
            found = sha256(folder / name)
        except (OSError, DamagedError):
            raise DamagedError(f"{name} is missing") from None
        if found != written:
            raise DamagedError(f"{name} was altered or cut short: its checksum differs")
    return cast("Json", state)


def _sha256_of(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
