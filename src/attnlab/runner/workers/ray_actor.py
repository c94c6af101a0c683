"""An actor of a Ray cluster: it executes runs on its node, one after another.

Where the study's folder is on a file system that the node shares, the actor writes the run's folder
there. Where it is not, the run has a folder of the node, and every change of it is sent as pieces
of files, ahead of the event that follows; the driver applies them to the real folder (`Copy`). A
run is continued from the files of that folder, which the driver sends.
"""

import dataclasses
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch

from attnlab.config import read_from_record
from attnlab.data import Corpus, Places
from attnlab.kernels import flash_linear_attention as fla
from attnlab.record import RunFolder, remove_temporary, replace_file
from attnlab.record.atomic_files import flush, replace_folder, require_within
from attnlab.record.temporary_files import temporary_folder
from attnlab.runner.events import Event
from attnlab.runner.execute import execute
from attnlab.runner.processes import with_sources
from attnlab.training import checkpoint
from attnlab.training.run import Run, RunConfig
from attnlab.version import __version__

PIECE_BYTES = 2**25  # of a file, that are sent at once


class Order(NamedTuple):
    """A run to execute."""

    variant: str
    settings: Mapping[str, Any]
    recipe: str | None
    identity: str
    sources: Mapping[str, str]  # SHA-256 of the user's own code, by name
    code: Mapping[str, bytes]  # its files, for nodes that do not have them
    fingerprint: str  # of the data


class Piece(NamedTuple):
    """A part of a file of a run's folder."""

    path: str  # in the folder
    offset: int  # bytes before this part; without any, the file is new
    content: bytes
    last: bool = True  # of the folder that holds the file, or of a file in no folder


class Actor:
    """An actor of Ray. It executes one run at a time, in its own process."""

    def __init__(
        self,
        version: str,
        study_dir: Path,
        token: tuple[str, bytes],
        devices: tuple[str, ...],
        threads: int,
        fla_path: Path | None,
    ) -> None:
        """Prepare this process. `token` is name and content of a file in the study's folder.

        Raises ValueError if the node has another version of attnlab than the driver.
        """
        if version != __version__:
            raise ValueError(
                f"attnlab is {__version__} there, {version} here: install the same version"
            )
        # Ray's handler raises SystemExit wherever the process is: in the user's code that would be
        # an exit of its own, by which a run fails; a process that just ends leaves one to continue
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if fla_path is not None:
            fla.use_fla(fla_path)
        torch.set_num_threads(threads)
        self._devices, self._study_dir = devices, study_dir
        if devices[0] != "cpu":
            torch.cuda.set_device(torch.device(devices[0]))
        self.shared = _holds(study_dir / token[0], token[1])
        self._corpus: Corpus | None = None

    def introduce(self) -> tuple[str, bool]:
        """Return the id of the node, and True if it shares the study's folder with the driver."""
        return import_module("ray").get_runtime_context().get_node_id(), self.shared

    def execute(
        self, order: Order, corpus: list[Any], sent: list[tuple[str, list[Any]]] | None
    ) -> Iterator[Piece | Event]:
        """Execute a run; yield its events, and before each the changes of its folder.

        Args:
            order: the run.
            corpus: a reference to its data.
            sent: the files of its folder, each with references to its parts; None if this node
                writes the study's folder itself.
        """
        fetch: Callable[[Any], Any] = import_module("ray").get
        if self._corpus is None or self._corpus.fingerprint != order.fingerprint:
            self._corpus = None  # frees the memory first
            self._corpus = fetch(corpus[0])
        with _scratch("code") as code, _scratch("runs") as scratch:
            config = config_of(order, code)
            run = Run(variant=order.variant, config=config, recipe=order.recipe)
            if sent is None:
                yield from self._events(run, self._study_dir, order.identity)
                return
            folder, changes = run.folder(scratch), Changes()
            for path, parts in sent:
                place = folder.partial / path
                place.parent.mkdir(parents=True, exist_ok=True)
                with place.open("wb") as file:
                    file.writelines(fetch(part) for part in parts)
            changes.note(folder.path)
            for event in self._events(run, scratch, order.identity):
                yield from changes.pieces(folder.path)
                yield event

    def _events(self, run: Run, study_dir: Path, identity: str) -> Iterator[Event]:
        places, devices = Places.from_environment(), map(torch.device, self._devices)
        yield from execute(run, study_dir, identity, places, *devices, corpus=self._corpus)


class Changes:
    """The changes of a run's folder since the last call, as pieces to send."""

    def __init__(self) -> None:
        self._known = dict[str, tuple[int, int, int]]()  # inode, time and size, by path

    def note(self, folder: Path) -> None:
        """Take the folder as it is."""
        self._known = {path: _stamp(folder / path) for path in _files(folder)}

    def pieces(self, folder: Path) -> Iterator[Piece]:
        """Yield what has changed: checkpoints after the measurements, the summary at the end."""
        found = {path: _stamp(folder / path) for path in _files(folder)}
        changed = [path for path, stamp in found.items() if self._known.get(path) != stamp]
        changed.sort(key=lambda path: (path == "summary.json", _home(path), path))
        for number, path in enumerate(changed):
            before, following = self._known.get(path), changed[number + 1 : number + 2]
            grew = before is not None and before[0] == found[path][0] and before[2] < found[path][2]
            offset = before[2] if grew and before is not None and path == "metrics.jsonl" else 0
            done = not following or _home(following[0]) != _home(path) or not _home(path)
            for piece in _read(folder, path, offset):
                yield piece._replace(last=piece.last and done)
        self._known = found


class Copy:
    """The copy of a run's folder that the driver writes, from the pieces that an actor sends.

    A folder in it, such as a checkpoint, is there when its last piece has come.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def apply(self, piece: Piece, following: Iterator[Piece]) -> None:
        """Write a piece, and those that complete its folder, which `following` yields.

        Raises WriteError if the disk is full, and LostLeaseError.
        """
        self._folder.require_lease()
        target = self._folder.partial / piece.path
        require_within(target.parent, self._folder.study_dir)
        if home := _home(piece.path):
            self._folder.flush_metrics()  # a checkpoint relies on them
            above = self._folder.partial / home
            replace_folder(above, lambda unfinished: _fill(unfinished, home, piece, following))
            checkpoint.remove_old(self._folder.checkpoints)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        content = piece.content
        while not piece.last:
            piece = next(following)
            content += piece.content
        if piece.offset and target.is_file():
            with target.open("r+b") as file:
                file.truncate(piece.offset)
                file.seek(piece.offset)
                file.write(content)
        else:
            replace_file(target, content, within=self._folder.study_dir)

    def finalize(self) -> None:
        """Rename the folder if the run has ended."""
        self._folder.finalize()


def in_memory(corpus: Corpus) -> Corpus:
    """Return the corpus with arrays that are no memory maps of files."""
    test = None if corpus.test is None else np.asarray(corpus.test)
    train, valid = np.asarray(corpus.train), np.asarray(corpus.valid)
    return dataclasses.replace(corpus, train=train, valid=valid, test=test)


def parts_of(folder: Path) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield every file of a folder: its path in it, and its content in parts."""
    for path in _files(folder):
        yield path, (piece.content for piece in _read(folder, path, 0))


def _fill(folder: Path, home: str, piece: Piece, following: Iterator[Piece]) -> None:
    while True:
        path = folder / PurePosixPath(piece.path).relative_to(home)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab" if piece.offset else "wb") as file:
            file.write(piece.content)
        if piece.last:
            return
        flush(path)
        piece = next(following)


def _home(path: str) -> str:
    """Return the folder that a file is complete with: a checkpoint, or the sources. "" for none."""
    parts = PurePosixPath(path).parts
    depth = 2 if parts[0] == "checkpoints" else 1
    return "/".join(parts[:depth]) if len(parts) > depth else ""


def _files(folder: Path) -> list[str]:
    """Return every file of a folder by its path in it; not those that are being written."""
    found = (path for path in folder.rglob("*") if path.is_file())
    names = (path.relative_to(folder).as_posix() for path in found)
    return sorted(name for name in names if not name.endswith(".tmp") and ".tmp/" not in name)


def _read(folder: Path, path: str, offset: int) -> Iterator[Piece]:
    with (folder / path).open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        file.seek(offset)
        while True:
            content = file.read(min(PIECE_BYTES, end - offset))
            last = offset + len(content) >= end or not content
            yield Piece(path, offset, content, last)
            offset += len(content)
            if last:
                return


def _stamp(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except OSError:
        return False


@contextmanager
def _scratch(purpose: str) -> Generator[Path]:
    """Yield a folder of this node. What killed processes left of theirs is removed."""
    home = Path(tempfile.gettempdir()) / f"attnlab-{os.getuid()}"
    home.mkdir(mode=0o700, exist_ok=True)
    remove_temporary(home)
    with temporary_folder(home / purpose) as folder:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def config_of(order: Order, code: Path) -> RunConfig:
    """Return the settings of a run, with the user's code of this node if it is the driver's."""
    try:
        return with_sources(order.settings, order.sources)
    except ValueError:
        if not order.code:
            raise
    for name, content in order.code.items():
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        (code / name).write_bytes(content)
    with read_from_record(code, " that the driver did not send"):
        return with_sources(order.settings, order.sources)
