"""Where data and derived files are, as the caller says, and the error when they are not there."""

import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, NamedTuple


class Places(NamedTuple):
    """The folder of the user's data, if there is one, and a folder for derived files."""

    data: Path | None
    cache: Path


class DataError(ValueError):
    """Data that is missing or unfit: what was looked for, where, and how to get it."""

    @classmethod
    def missing(cls, what: str, tried: Iterable[object], remedy: str) -> "DataError":
        looked = "".join(f"\n  {place}" for place in tried) or "\n  nowhere: no place was given"
        return cls(f"{what} not found; looked in{looked}\n{remedy}")


def cached(path: Path, write: Callable[[IO[bytes]], object]) -> Path:
    """`path`, after `write` has filled it where it did not exist.

    The file appears under its name only when it is complete, so any number of processes may ask for
    it at the same time: each of them finds it whole or makes the same one. Raises DataError where
    the folder cannot be written.
    """
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, unfinished = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise DataError(
            f"cannot write the cache folder {path.parent}: {error.strerror}\n"
            "Name another with ATTNLAB_CACHE=DIR."
        ) from error
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        Path(unfinished).replace(path)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise
    return path
