"""Write files and folders atomically: a reader finds the old content or the new one, never a part.

New content is written under a temporary name beside the target, flushed to disk and renamed, so a
process that is killed at any instant, or a full disk, leaves the old content unchanged.
"""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Generator
from io import BufferedReader
from pathlib import Path
from typing import IO

from attnlab.record.temporary_files import (
    remove_temporary,
    temporary_file,
    temporary_folder,
    temporary_name,
)

_LONGEST_NAME = 255  # bytes, of one folder on every common file system
WRITTEN = (  # the files of a folder of results that have a fixed name, as patterns of paths
    *("study.json", "comprehensive_results.json", "failures.json", "harness.json", "bench.json"),
    *("runs.jsonl.gz", "runs.csv", "bench-batch-*.png", "profile.png", "profile.csv"),
    *("report.html", "report.md", "table.csv", "table.tex", "comparison.*", "comparison_*.pdf"),
    *("*/config.json", "*/metrics.json", "*/tuning/choice.json"),
)
PUBLISHED = "published"  # folder of results that the source ships
MOST_BYTES = 2**30  # of a file that is read at once


class WriteError(OSError):
    """A file could not be written. The message names the file and says why."""

    @classmethod
    def of(cls, path: Path, error: OSError) -> "WriteError":
        """Return the error that `path` could not be written because of `error`."""
        if isinstance(error, cls):
            return error
        found = cls(f"{path} could not be written: {error.strerror or error}")
        found.errno = error.errno
        return found


def is_of_disk(error: BaseException) -> bool:
    """True if an error says that a disk is full or refuses every file, not this one alone."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    return full or isinstance(error, WriteError)


class DamagedError(ValueError):
    """A file or folder is not as it was written. The message names it and the damage."""


@contextlib.contextmanager
def advising(advice: str) -> Generator[None]:
    """Add what to do to the message of a DamagedError that is raised inside."""
    try:
        yield
    except DamagedError as error:
        raise DamagedError(f"{error}; {advice}") from None


def replace_file(
    path: Path, content: bytes | Callable[[IO[bytes]], object], *, within: Path | None = None
) -> None:
    """Write a file, or replace it, and flush it to disk.

    Any number of processes may do this at the same time: the last one to finish wins.

    Args:
        path: the file. Its folder must exist.
        content: its bytes, or a function that writes them to an open file.
        within: nothing outside this folder is written, wherever links lead.

    Raises:
        WriteError: the file could not be written. The old one is then unchanged.
    """
    if within is not None:
        require_within(path.parent, within)
    temporary: Path | None = None
    try:
        temporary, file = temporary_file(path)
        with file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
        flush(path.parent)
    except BaseException as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise WriteError.of(path, error) from error
        raise


def replace_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Write a folder of files, or replace it, and flush it to disk.

    Args:
        folder: the folder. Its parents are made.
        fill: a function that writes the files into the folder whose path it is given.

    Raises:
        WriteError: the folder could not be written. Nothing of the new one is then left.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder) as unfinished:
            fill(unfinished)
            for path in unfinished.iterdir():
                flush(path)
            flush(unfinished)
            if os.path.lexists(folder):
                remove_folder(folder)
            unfinished.rename(folder)
        flush(folder.parent)
    except OSError as error:
        raise WriteError.of(folder, error) from error


def remove_folder(folder: Path) -> None:
    """Remove a folder, a file or a link. No part of a folder ever has its name."""
    unfinished = temporary_name(folder)
    folder.rename(unfinished)
    if unfinished.is_dir() and not unfinished.is_symlink():
        shutil.rmtree(unfinished)
    else:
        unfinished.unlink()


def verified_file(path: Path, write: Callable[[IO[bytes]], object]) -> Path:
    """Return a file that can be made again at any time, such as a cache: `write` makes it.

    `<path>.sha256` holds its checksum. The file is made again if it is missing or differs from it.
    Any number of processes may call this at the same time. Raises WriteError.
    """
    checksum = path.with_name(path.name + ".sha256")
    if not _matches(path, checksum):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_temporary(path.parent)
            for made in (path, checksum):
                if made.is_dir():
                    remove_folder(made)
        except OSError as error:
            raise WriteError.of(path, error) from error
        replace_file(path, write)
        replace_file(checksum, sha256(path).encode())
    return path


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal. Raises DamagedError if it is no file."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading. It never waits, as opening a pipe would.

    Raises:
        FileNotFoundError: there is nothing of this name.
        DamagedError: there is something else than a file, such as a folder or a dangling link.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        if path.is_symlink():
            raise DamagedError(f"{path} is a link to a file that does not exist") from None
        raise
    except OSError as error:
        if stat.S_ISREG(os.lstat(path).st_mode):
            raise
        raise DamagedError(f"{path} is no readable file: {error.strerror}") from None
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        kind = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe"}.get(stat.S_IFMT(mode), "a device")
        raise DamagedError(f"{path} is {kind}, not a file")
    return open(handle, "rb")  # noqa: PTH123  a descriptor, which the caller closes


def read_file(path: Path) -> bytes | None:
    """Return the content of a file; None if there is none. Raises DamagedError."""
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > MOST_BYTES:
                raise DamagedError(f"{path} is larger than {MOST_BYTES >> 20} MB")
            return file.read()  # with a number it takes memory for so many bytes first
    except FileNotFoundError:
        return None


def leads_outside(path: Path, folder: Path) -> bool:
    """True if links lead from `path` out of `folder`, which may be a link itself."""
    home, real = folder.resolve(), path.resolve()
    return real != home and home not in real.parents


def require_within(path: Path, folder: Path) -> None:
    """Raise WriteError if links lead from `path` out of `folder`, which may be a link itself."""
    if leads_outside(path, folder):
        raise WriteError(
            f"{path} leads to {path.resolve()}, outside {folder}, where nothing is written: "
            "replace the link by a folder, or choose another --out"
        )


def is_published(folder: Path) -> bool:
    """True for `published/` and what lies in it, wherever links lead.

    A folder of that name around the working directory is the user's own, and not meant.
    """
    here, path = Path.cwd().resolve(), folder.resolve()
    named = [place for place in (path, *path.parents) if place.name == PUBLISHED]
    return any(place not in here.parents for place in named)


def require_results_folder(folder: Path) -> None:
    """Raise ValueError unless results can be written to the folder, which need not exist.

    Refused are published results, which no run or measurement changes, impossible names, a file in
    its place or above it, a folder in it that stands where a file is written, and the folder of a
    run or a place in it.
    """
    longest = max((len(os.fsencode(part)) for part in folder.parts), default=0)
    if longest > _LONGEST_NAME:
        raise ValueError(
            f"out: {str(folder)[:40]!r} is no possible name of a folder: use at most "
            f"{_LONGEST_NAME} bytes per folder"
        )
    if is_published(folder):
        raise ValueError(
            f"{folder}: published results are only read; choose another --out, such as "
            f"results/{folder.name}"
        )
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise ValueError(f"out: {place} is a file, not a folder; choose another --out")
        if re.fullmatch(r"seed-\d+", place.name) and (place / "config.json").is_file():
            raise ValueError(f"out: {place} is the folder of a run; choose another --out")
    for place in (place for pattern in WRITTEN for place in folder.glob(pattern)):
        if place.is_dir():
            raise ValueError(
                f"{place} is a folder, and a file of this name is written: move it away, or choose "
                "another --out"
            )


def flush(path: Path) -> None:
    """Flush a file, or the names in a folder, from memory to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _matches(path: Path, checksum: Path) -> bool:
    try:
        with open_regular(checksum) as file:
            return file.read(65) == sha256(path).encode()
    except (OSError, DamagedError):
        return False
