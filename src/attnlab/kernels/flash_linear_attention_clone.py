"""flash-linear-attention from a local clone in place of the installed package, for this process.

The clone's package `fla` is found before any other, and nothing else of the clone is. That it is
the one imported is made sure of twice: before the import, by where Python would find `fla`; and
after it, by the file of every module of `fla`: the package looks on the whole import path for
modules that it lacks, and what the installed one has would come in unseen. The version is read
without importing anything, because the package cannot be imported where Triton is missing.

A process imports `fla` once, so it has one clone or none. Processes that it starts must be told.
"""

import importlib
import importlib.util
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from attnlab.version import git_state

PACKAGE = "fla"


@dataclass(frozen=True, kw_only=True)
class Clone:
    path: Path  # absolute; the package is path/fla
    version: str
    commit: str | None  # None where it is no git repository
    dirty: bool | None  # whether tracked files have changes

    @property
    def package(self) -> Path:
        return self.path / PACKAGE

    def holds(self, module: ModuleType) -> bool:
        return _inside(_place(module), self.package)


class _Finder(MetaPathFinder):
    """Finds `fla` in the clone. What is inside of it is then found there by itself."""

    def __init__(self, clone: Clone) -> None:
        self.clone = clone

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if fullname != PACKAGE:
            return None
        package = self.clone.package
        return importlib.util.spec_from_file_location(
            PACKAGE, package / "__init__.py", submodule_search_locations=[str(package)]
        )


def use(path: Path) -> Clone:
    """Import `fla` from the clone at `path` from now on.

    Raises ValueError where there is no such package, and where it is too late.
    """
    path = path.expanduser().resolve()
    before = in_use()
    if before is not None and before.path == path:
        return before
    clone = _read(path)
    if before is not None:
        raise ValueError(
            f"flash-linear-attention is imported from {before.path} already, and a process has "
            f"one: start another for {path}"
        )
    loaded = sys.modules.get(PACKAGE)
    if loaded is not None and not clone.holds(loaded):
        raise ValueError(
            f"flash-linear-attention was imported from {_place(loaded)} before {path} was named: "
            "start a new process, and name the clone before anything imports fla"
        )
    finder = _Finder(clone)
    sys.meta_path.insert(0, finder)
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not _inside(spec.origin, clone.package):
        sys.meta_path.remove(finder)
        where = None if spec is None else spec.origin
        raise ValueError(f"`import fla` would load {where}, and not what is in {path}")
    return clone


def in_use() -> Clone | None:
    """The clone of this process; None where the installed package counts."""
    return next((it.clone for it in sys.meta_path if isinstance(it, _Finder)), None)


def imported(name: str) -> ModuleType:
    """A module of flash-linear-attention, from where it should be.

    Raises ImportError where it does not load, ValueError where it is another's.
    """
    module = importlib.import_module(name)
    clone = in_use()
    if clone is not None:
        of_fla = [it for key, it in sys.modules.items() if key.split(".")[0] == PACKAGE]
        # a module that its own code made for an old name has no place
        foreign = next((it for it in of_fla if _place(it) and not clone.holds(it)), None)
        if foreign is not None:
            raise ValueError(
                f"{foreign.__name__} was imported from {_place(foreign)}, and not from the clone "
                f"{clone.path}: the clone lacks it; uninstall the other, or complete the clone"
            )
    return module


def _read(path: Path) -> Clone:
    start = path / PACKAGE / "__init__.py"
    if not path.is_dir():
        raise ValueError(f"no clone of flash-linear-attention at {path}: there is no such folder")
    if not start.is_file():
        named = (
            f"name the folder of the clone, {path.parent}"
            if path.name == PACKAGE
            else ("name the folder of a clone of flash-linear-attention, which has fla/ in it")
        )
        raise ValueError(f"{path} holds no package fla: {named}")
    said = re.search(r"""^__version__\s*=\s*["']([^"']+)["']""", start.read_text("utf-8"), re.M)
    if said is None:
        raise ValueError(f"{start} names no __version__: is it flash-linear-attention's?")
    state = git_state(start) or {}
    return Clone(path=path, version=said[1], commit=state.get("commit"), dirty=state.get("dirty"))


def _place(module: ModuleType) -> str | None:
    """Its file; of a package without one, its folder; None of a module that was made by code."""
    folders = iter(getattr(module, "__path__", ()))
    return getattr(module, "__file__", None) or next(folders, None)


def _inside(file: str | None, folder: Path) -> bool:
    return file is not None and Path(file).resolve().is_relative_to(folder.resolve())
