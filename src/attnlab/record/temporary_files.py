"""Temporary names: what is being written, and what killed processes left.

A living process holds a lock on what it writes, which ends with the process, so that
`remove_temporary` knows what is left over. A file system that machines share may hide the locks of
the others: the name tells the machine, and what others made is kept for a day.
"""

import contextlib
import fcntl
import functools
import hashlib
import os
import re
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import IO

TEMPORARY = re.compile(r"\..+\.([0-9a-f]{8})?[0-9a-f]{8}\.tmp", re.DOTALL)
OTHERS_SECONDS = 24 * 3600.0  # after which nobody is writing, whatever the clocks of the machines


def remove_temporary(folder: Path, *, held: bool = False) -> None:
    """Remove, at any depth, what killed processes left under temporary names.

    Args:
        folder: the folder.
        held: True if this process holds the lease of what is in the folder. Then nobody else writes
            there, and what other machines made is removed, too.
    """
    for parent, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path, match = Path(parent, name), TEMPORARY.fullmatch(name)
            if match and (held or match[1] in (None, machine()[:8]) or _is_old(path)):
                _remove_unless_locked(path)
        folders[:] = [name for name in folders if not TEMPORARY.fullmatch(name)]


@functools.cache
def machine() -> str:
    """Return twelve hexadecimal digits: one start of one machine, or of a container on it."""
    parts = [socket.gethostname(), hex(uuid.getnode())]
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        parts = [boot.strip(), str(Path("/proc/self/ns/pid").readlink())]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]


def temporary_name(path: Path) -> Path:
    """Return a new temporary name beside `path`."""
    return path.with_name(f".{path.name}.{machine()[:8]}{uuid.uuid4().hex[:8]}.tmp")


def temporary_file(path: Path) -> tuple[Path, IO[bytes]]:
    """Return a new file beside `path`, open and locked, and its name."""
    while True:
        temporary = temporary_name(path)
        file = temporary.open("xb")
        if _lock(file.fileno(), temporary):
            return temporary, file
        file.close()


@contextlib.contextmanager
def temporary_folder(folder: Path) -> Generator[Path, None, None]:
    """Yield a new folder; remove what is left of it under this name at the end."""
    while True:
        unfinished = temporary_name(folder)
        unfinished.mkdir()
        handle = os.open(unfinished, os.O_RDONLY)
        if _lock(handle, unfinished):
            break
        os.close(handle)
    try:
        yield unfinished
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)  # frees the space on a full disk
        raise
    finally:
        os.close(handle)


def _lock(handle: int, path: Path) -> bool:
    """Lock what this process has just made; return False if another process has swept it."""
    with contextlib.suppress(OSError):  # without locks, `remove_temporary` removes nothing
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


def _remove_unless_locked(path: Path) -> None:
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if stat.S_ISDIR(os.fstat(handle).st_mode):
                shutil.rmtree(path)
            else:
                path.unlink()
        finally:
            os.close(handle)


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.lstat().st_mtime > OTHERS_SECONDS
    except OSError:  # it was renamed meanwhile
        return False
