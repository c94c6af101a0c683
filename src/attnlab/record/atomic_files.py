"""Write files and folders atomically: a reader finds the old content or the new one, never a part.

New content is written under a temporary name beside the target, flushed to disk and renamed, so a
process that is killed at any instant, or a full disk, leaves the old content unchanged.
"""

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO

UNFINISHED = ".tmp"  # end of the name of a folder that is being written or removed


def replace_file(path: Path, content: bytes | Callable[[IO[bytes]], object]) -> None:
    """Write a file, or replace it.

    Any number of processes may do this at the same time: the last one to finish wins.

    Args:
        path: the file. Its folder must exist.
        content: its bytes, or a function that writes them to an open file.

    Raises:
        OSError: the file could not be written. The old one is then unchanged.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("xb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def replace_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Write a folder of files, or replace it.

    Args:
        folder: the folder. Its parents are made.
        fill: a function that writes the files into the folder whose path it is given.

    Raises:
        OSError: the folder could not be written. Nothing of the new one is then left.
    """
    unfinished = folder.with_name(folder.name + UNFINISHED)
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        fill(unfinished)
        for path in unfinished.iterdir():
            flush(path)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
        flush(folder.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)  # frees the space on a full disk
        raise


def remove_folder(folder: Path) -> None:
    """Remove a folder. It is renamed first, so that no part of it ever has its name."""
    unfinished = folder.with_name(folder.name + UNFINISHED)
    folder.rename(unfinished)
    shutil.rmtree(unfinished)


def flush(path: Path) -> None:
    """Flush a file, or the names in a folder, from memory to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
