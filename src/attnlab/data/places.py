"""The folders of data and of derived files, and the error for data that is missing or unfit."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, NamedTuple

from attnlab.record.atomic_files import WriteError, verified_file


class Places(NamedTuple):
    """The folder of the user's data, or None, and the folder of derived files."""

    data: Path | None
    cache: Path

    @classmethod
    def from_environment(
        cls, data: Path | str | None = None, cache: Path | str | None = None
    ) -> "Places":
        """Return the given folders; the environment variables name those that are not given.

        Args:
            data: the folder of data, by default that of ATTNLAB_DATA, if any.
            cache: the folder of derived files, by default that of ATTNLAB_CACHE, or
                ~/.cache/attnlab.
        """
        data = data or os.environ.get("ATTNLAB_DATA")
        cache = cache or os.environ.get("ATTNLAB_CACHE")
        home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"))
        return cls(
            data=Path(data).expanduser() if data else None,
            cache=Path(cache or home / "attnlab").expanduser(),
        )


class DataError(ValueError):
    """Data is missing or unfit. The message says what was searched, where, and the remedy."""

    def __init__(self, message: str) -> None:
        # names of files may hold bytes that are no text, which could not be printed
        super().__init__(message.encode(errors="backslashreplace").decode())

    @classmethod
    def missing(cls, what: str, tried: Iterable[object], remedy: str) -> "DataError":
        """Return the error that `what` is in none of the places that were `tried`."""
        looked = "".join(f"\n  {place}" for place in tried) or "\n  nowhere: no folder was given"
        return cls(f"{what} not found; looked in{looked}\n{remedy}")


def cached(path: Path, write: Callable[[IO[bytes]], object]) -> Path:
    """Return `path`; call `write` to write the file first if it is missing or damaged.

    Any number of processes may call this at the same time. Raises DataError if the folder cannot be
    written.
    """
    try:
        return verified_file(path, write)
    except WriteError as error:
        raise DataError(f"{error}\nName another cache folder with ATTNLAB_CACHE=DIR.") from error
