"""Kinds `file.py:Class`: how settings and records name a class in a file of the user's.

Settings in use have the class itself, or its absolute path; records have a name without folders,
and their own copy of the file.
"""

import inspect
import re
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from attnlab.config.own_code import executing_folder, given_names, root_of, short_names
from attnlab.config.values import expanded

_only: ContextVar["RecordedFiles | None"] = ContextVar("only", default=None)


def find_file(kind: str, path: str) -> Path:
    """Return the path of the file in a kind `file.py:Class`; the file need not exist.

    It is relative to the file that is being executed, if there is one, else to the working
    directory. The kind of a class that is in use has its file whatever the working directory.

    Raises:
        ValueError: the settings are read from a record, which has no such file.
    """
    only, folder = _only.get(), executing_folder()
    if only is not None:
        return only.file(path)
    if isinstance(kind, OwnKind):
        given_names[kind.path] = path
        return kind.path
    beside = None if folder is None else folder / path
    return beside if beside is not None and beside.is_file() else expanded(path)


def classes_of(module: ModuleType, base: type) -> list[str]:
    """Return the names of the subclasses of `base` that a file of the user's defines."""
    own = ((name, value) for name, value in vars(module).items() if isinstance(value, type))
    return [
        name
        for name, value in own
        if issubclass(value, base) and value.__module__ == module.__name__
    ]


def forget_names() -> None:
    """Let the files that are used from now on have their short names, whatever was used before."""
    short_names.clear()
    given_names.clear()


class OwnKind(str):
    """The kind `file.py:Class` of a class in use. It stays exact in other processes, too."""

    __slots__ = ("cls", "path")

    def __new__(cls, kind: str, path: Path, of: type | None = None) -> "OwnKind":
        made = super().__new__(cls, kind)
        made.path, made.cls = path, of
        return made

    path: Path
    cls: type | None  # None in another process, which imports it when it is needed

    def __reduce__(self) -> tuple[Any, ...]:
        return OwnKind, (str(self), self.path)


def file_of(cls: type) -> Path | None:
    """Return the file of a class that is being defined; None if workers could not import it."""
    try:
        path = Path(inspect.getfile(cls)).resolve()
    except (OSError, TypeError):
        return None
    return path if cls.__module__ != "__main__" and path.suffix == ".py" else None


def own_kind(cls: type) -> OwnKind | None:
    """Return `file.py:Class` for a class of the user's; None if no file defines it."""
    path = vars(cls).get("defined_in") or file_of(cls)
    return None if path is None else OwnKind(f"{short_name(path)}:{cls.__name__}", path, cls)


class RecordedFiles(NamedTuple):
    """The files that settings may name which are read from a record."""

    folder: Path | None  # None: no file may be executed
    why: str  # the end of the message about a file that may not

    def file(self, path: str) -> Path:
        """Return the path of a file in the folder. Raises ValueError if it is not there."""
        folder = None if self.folder is None else self.folder.resolve()
        found = None if folder is None else (folder / path).resolve()
        if folder is None or found is None or not found.is_relative_to(folder):
            raise ValueError(f"{path} is code of its own{self.why}")
        return found


@contextmanager
def read_from_record(folder: Path | None, why: str = "") -> Generator[None]:
    """Read settings from a record inside: they name files of this folder, or none."""
    before = _only.set(RecordedFiles(folder, why))
    try:
        yield
    finally:
        _only.reset(before)


def short_name(path: Path) -> str:
    """Return the path of a file from its root on, by default its name: equal in every directory.

    If another file of this process has the name, it begins with the folders above the root.
    """
    path = path.resolve()
    if path in given_names:
        return given_names[path]
    above = root_of(path)
    name = path.relative_to(above).as_posix()
    while short_names.setdefault(name, path) != path:
        name, above = f"{above.name}/{name}", above.parent
    return name


def kind_name(class_name: str) -> str:
    """Return a class name in snake case.

    >>> kind_name("GatedDeltaNet"), kind_name("WikiText2"), kind_name("MLA")
    ('gated_delta_net', 'wiki_text2', 'mla')
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", class_name).lower()
