"""Leases: of all processes that share a study's folder, at most one writes a run.

    seed-0.lease/beat-12,pid-4242,started-88231,machine-5e1f0c77a2b4,id-9c1f22ab04d7,host-node1

A lease is a folder beside that of the run, with one empty file, whose name says who holds the lease
and grows by one beat every RENEW_SECONDS. Each change is one call of the file system that names the
very beat it relies on, so that of several processes one succeeds, whatever their caches show:

    take       rename a prepared folder to seed-0.lease, which fails if that holds a file
    renew      rename the file to its next beat, which fails if the lease was lost
    take over  delete the file of a holder that has ended, which fails if it was renewed; then take
    release    delete the file

A holder has ended if its process on this machine has, or if it shows the same beat for
STALE_SECONDS by the clock of the observer: clocks of different machines are never compared.
"""

import contextlib
import errno
import os
import re
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple, Self
from urllib.parse import quote, unquote

from attnlab.record.atomic_files import WriteError
from attnlab.record.temporary_files import machine, temporary_name

RENEW_SECONDS = 10.0
STALE_SECONDS = 60.0
_ATTEMPTS = 100
_PAUSE_SECONDS = 0.02
_NAME = re.compile(
    r"beat-(\d+),pid-(\d+),started-(\d+),machine-([0-9a-f]+),id-([0-9a-f]+),host-([^,/]+)"
)
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # counts while a laptop sleeps


class Holder(NamedTuple):
    """The process that holds a lease, as the lease's file names it."""

    beat: int
    pid: int
    started: int  # clock ticks between the start of the machine and that of the process; or 0
    machine: str  # one start of one machine, or of a container with processes of its own
    id: str  # of this lease alone
    host: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Return the holder that a file's name describes; None for any other file."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        beat, pid, started, machine, identifier, host = match.groups()
        return cls(int(beat), int(pid), int(started), machine, identifier, unquote(host))

    @classmethod
    def of_this_process(cls) -> Self:
        """Return this process as the holder of a new lease."""
        pid = os.getpid()
        return cls(
            0,
            pid,
            _started(pid) or 0,
            machine(),
            uuid.uuid4().hex[:12],
            socket.gethostname() or "unknown",
        )

    def file_name(self) -> str:
        """Return the name of the lease's file."""
        return (
            f"beat-{self.beat},pid-{self.pid},started-{self.started},machine-{self.machine},"
            f"id-{self.id},host-{quote(self.host, safe='')}"
        )

    def has_ended(self) -> bool:
        """True if the process is known to have ended; False on other machines."""
        if self.machine != machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # it is another user's
            pass
        return _started(self.pid) not in (self.started, None)


class HeldError(ValueError):
    """Another process holds the lease. The message names the run and the process."""

    def __init__(self, path: Path, holder: Holder) -> None:
        self.holder = holder
        super().__init__(
            f"{path.with_suffix('')} is being written by {holder}: wait until it has ended"
        )


class LostLeaseError(RuntimeError):
    """Another process has taken the lease over, and this one writes nothing more."""

    def __init__(self, path: Path, holder: Holder | None) -> None:
        self.holder = holder
        by = "its lease was removed" if holder is None else f"{holder} has taken it over"
        super().__init__(
            f"{path.with_suffix('')}: {by}, since this process showed no sign of life for "
            f"{STALE_SECONDS:g} s; this process writes nothing more of it"
        )


class Observer:
    """The beats that this process has seen, which tell whether holders are alive."""

    def __init__(self) -> None:
        self._seen = dict[Path, tuple[Holder, float]]()  # with the time at which it appeared

    def holder(self, path: Path) -> Holder | None:
        """Return the living holder of a lease; None if it can be taken.

        The file of a holder that has ended is deleted.
        """
        now, holder = time.monotonic(), holder_of(path)
        if holder is None:
            self._seen.pop(path, None)
            return None
        if path not in self._seen or self._seen[path][0] != holder:
            self._seen[path] = holder, now
        if now - self._seen[path][1] < STALE_SECONDS and not holder.has_ended():
            return holder
        if _remove(path, holder):
            return None
        return holder_of(path)  # it was renewed, or another process was faster


def holder_of(path: Path) -> Holder | None:
    """Return the holder that the lease names, alive or not; None if nobody holds it."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for name in os.listdir(path):  # noqa: PTH208  names suffice
            if holder := Holder.parse(name):
                return holder
    return None


def remove_if_ended(path: Path) -> None:
    """Remove a lease whose holder, on this machine, has ended. Observers elsewhere need not wait.

    The file system may refuse it: the lease is then stale later.
    """
    with contextlib.suppress(OSError):
        holder = holder_of(path)
        if holder is not None and holder.has_ended():
            _remove(path, holder)


def _remove(path: Path, holder: Holder) -> bool:
    """Remove a lease if it still has this beat; return False if it has not."""
    try:
        (path / holder.file_name()).unlink()
    except FileNotFoundError:
        return False
    with contextlib.suppress(OSError):  # it is taken already
        path.rmdir()
    return True


class Lease:
    """A lease that this process holds. A thread renews it until it is released or lost."""

    def __init__(self, path: Path, holder: Holder) -> None:
        """Begin to renew it. Raises OSError, and releases it, if no thread can start."""
        self.path, self.holder = path, holder
        self.lost = False
        self._renewed, self._changing = _now(), threading.Lock()
        self._released = threading.Event()
        try:
            threading.Thread(target=self._keep, name=f"lease {path}", daemon=True).start()
        except RuntimeError as error:  # the system allows no more threads
            self.release()
            raise OSError(errno.EAGAIN, str(error)) from error

    def require(self) -> None:
        """Raise LostLeaseError if another process has the lease. Call it before writing.

        After a pause of this process, as on a suspended laptop, the file system is asked first.
        """
        if not self.lost and _now() - self._renewed > 2 * RENEW_SECONDS:
            try:
                self.renew()
            except OSError as error:
                raise WriteError.of(self.path, error) from error
        if self.lost:
            raise LostLeaseError(self.path, holder_of(self.path))

    def renew(self) -> None:
        """Show a sign of life. Raises OSError if the file system refuses it."""
        with self._changing:
            now, following = _now(), self.holder._replace(beat=self.holder.beat + 1)
            target = self.path / following.file_name()
            try:
                (self.path / self.holder.file_name()).rename(target)
            except FileNotFoundError:  # a network may repeat a request that has succeeded
                self.lost = not target.exists()
            self.holder, self._renewed = following, now

    def _keep(self) -> None:
        while not self._released.wait(RENEW_SECONDS) and not self.lost:
            with contextlib.suppress(OSError):  # it is tried again; writers find out by then
                self.renew()

    def release(self) -> None:
        """Let others take the lease. It is not deleted if another process has it."""
        self._released.set()
        with self._changing, contextlib.suppress(OSError):
            _remove(self.path, self.holder)


def take(path: Path, *, observing: bool = False) -> Lease:
    """Take a lease whose parent folder exists.

    Args:
        path: the lease.
        observing: True to wait, where the holder is on another machine, until it shows whether it
            is alive: at most STALE_SECONDS.

    Raises:
        HeldError: another process holds it.
        WriteError: the file system refuses it.
    """
    observer, me = Observer(), Holder.of_this_process()
    try:
        for _ in range(_ATTEMPTS):
            if _place(path, me):
                return Lease(path, me)
            first = holder = observer.holder(path)
            while observing and holder and holder == first and holder.machine != machine():
                time.sleep(_PAUSE_SECONDS)
                holder = observer.holder(path)
            if holder is not None:
                raise HeldError(path, holder)
            time.sleep(_PAUSE_SECONDS)
    except OSError as error:
        raise WriteError.of(path, error) from error
    raise WriteError(f"{path} holds files that are not of attnlab: remove them")


@contextlib.contextmanager
def waiting_for(path: Path) -> Generator[None]:
    """Hold a lease as soon as nobody else does. Raises WriteError as `take`."""
    observer, lease = Observer(), None
    while lease is None:
        if observer.holder(path) is None:
            with contextlib.suppress(HeldError):
                lease = take(path)
        else:
            time.sleep(_PAUSE_SECONDS)
    try:
        yield
    finally:
        lease.release()


def _place(path: Path, me: Holder) -> bool:
    """Return True if the lease could be taken."""
    prepared = temporary_name(path)
    prepared.mkdir()
    try:
        (prepared / me.file_name()).touch()
        prepared.rename(path)
    except OSError as error:
        shutil.rmtree(prepared, ignore_errors=True)
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise
        return (path / me.file_name()).exists()
    return True


def _now() -> float:
    return time.clock_gettime(_CLOCK)


def _started(pid: int) -> int | None:
    """Return the start of a process in clock ticks; 0 if it has ended, None if it is unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return 0 if fields[0] in "ZX" else int(fields[19])
