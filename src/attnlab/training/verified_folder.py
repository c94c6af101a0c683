"""A folder of files that is there as a whole or not at all, and that tells when it was altered.

    <folder>/{model.safetensors, tokenizer.json, ..., state.json}

It is written under a temporary name, flushed to disk and renamed, so a kill at any instant, or a
full disk, leaves what was there before. `state.json` holds the SHA-256 of the other files and of
itself. Nothing that is read back is code.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

Json = dict[str, Any]
STATE, UNFINISHED = "state.json", ".tmp"


class DamagedError(ValueError):
    """A folder is not as it was written. The message says what of it."""


def seal(
    folder: Path, files: Mapping[str, Mapping[str, Tensor] | bytes], state: Mapping[str, Any]
) -> None:
    """Write `files`, tensors as safetensors, and beside them `state`; replaces a folder.

    Raises OSError where that cannot be done, as on a full disk; then nothing of it stays.
    """
    unfinished = folder.with_name(folder.name + UNFINISHED)
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        for name, content in files.items():
            _write(unfinished / name, content)
        sums = {name: _sha256(unfinished / name) for name in sorted(files)}
        sums[STATE] = _sha256_of(state)
        text = json.dumps({**state, "sha256": sums}, indent=2) + "\n"
        _write(unfinished / STATE, text.encode())
        for path in unfinished.iterdir():
            _flush(path)
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one of the same name
        unfinished.rename(folder)
        _flush(folder.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)  # the room it takes may be the last
        raise


def unseal(folder: Path) -> Json:
    """What `seal` was given as `state`, where every file is as it was written.

    Raises DamagedError.
    """
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        sums = dict(state.pop("sha256"))
        whole = sums.pop(STATE) == _sha256_of(state)
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        raise DamagedError(f"{STATE} is missing or cut short") from None
    if not whole:
        raise DamagedError(f"{STATE} was altered")
    for name, written in sums.items():
        try:
            found = _sha256(folder / name)
        except OSError:
            raise DamagedError(f"{name} is missing") from None
        if found != written:
            raise DamagedError(f"{name} was altered or cut short: its checksum is another")
    return cast("Json", state)


def discard(folder: Path) -> None:
    """Remove a folder; from the first instant on nothing of it has its name."""
    unfinished = folder.with_name(folder.name + UNFINISHED)
    folder.rename(unfinished)
    shutil.rmtree(unfinished)


def _write(path: Path, content: Mapping[str, Tensor] | bytes) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
        return
    on_host = {key: tensor.detach().cpu().contiguous() for key, tensor in content.items()}
    try:
        save_file(on_host, path)
    except SafetensorError as error:  # what the system said is in its words alone
        raise OSError(f"{path.name}: {error}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_of(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _flush(path: Path) -> None:
    """Have the file or folder on disk, not only in the system's memory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
