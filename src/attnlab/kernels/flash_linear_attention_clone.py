"""Import flash-linear-attention from a local clone in place of the installed package.

An import finder returns the clone's package `fla` before any other, and nothing else of the clone.
Two checks make sure that the clone is what is imported: before the import, where Python would find
`fla`; after it, the file of every module of `fla`, because the package searches the whole import
path for modules that it lacks and would silently take them from an installed one. The version is
read without an import, because the package cannot be imported where Triton is missing.

A process imports `fla` once, so it has one clone or none. It must pass the clone's path to the
processes that it starts.
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

from attnlab.config import expanded
from attnlab.version import git_state

PACKAGE = "fla"


@dataclass(frozen=True, kw_only=True)
class Clone:
    """A folder with a package `fla`, and its version."""

    path: Path  # absolute; the package is path/fla
    version: str
    commit: str | None  # None where it is no git repository
    dirty: bool | None  # True if tracked files have changes

    @property
    def package(self) -> Path:
        return self.path / PACKAGE

    def holds(self, module: ModuleType) -> bool:
        """True if the module was imported from this clone."""
        return _inside(_place(module), self.package)


class _Finder(MetaPathFinder):
    """Find `fla` in the clone; Python then finds its modules there too."""

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

    Raises:
        ValueError: there is no such package, or this process already uses another one.
    """
    path = expanded(path).resolve()
    before = in_use()
    if before is not None and before.path == path:
        return before
    clone = _read(path)
    if before is not None:
        raise ValueError(
            f"this process already uses flash-linear-attention from {before.path}, and it can use "
            f"only one: start another process for {path}"
        )
    loaded = sys.modules.get(PACKAGE)
    if loaded is not None and not clone.holds(loaded):
        raise ValueError(
            f"flash-linear-attention was imported from {_place(loaded)} before {path} was chosen: "
            "start a new process, and choose the clone before anything imports fla"
        )
    finder = _Finder(clone)
    sys.meta_path.insert(0, finder)
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not _inside(spec.origin, clone.package):
        sys.meta_path.remove(finder)
        where = None if spec is None else spec.origin
        raise ValueError(f"`import fla` would load {where}, not the package in {path}")
    return clone


def in_use() -> Clone | None:
    """Return the clone that this process uses; None where it uses the installed package."""
    return next((it.clone for it in sys.meta_path if isinstance(it, _Finder)), None)


def imported(name: str) -> ModuleType:
    """Import and return a module of flash-linear-attention, from the clone if one is in use.

    Raises:
        ImportError: the module cannot be imported.
        ValueError: a clone is in use, and a module of `fla` came from elsewhere.
    """
    module = importlib.import_module(name)
    clone = in_use()
    if clone is not None:
        of_fla = [it for key, it in sys.modules.items() if key.split(".")[0] == PACKAGE]
        # a module that its code creates as an alias has no file
        foreign = next((it for it in of_fla if _place(it) and not clone.holds(it)), None)
        if foreign is not None:
            raise ValueError(
                f"{foreign.__name__} was imported from {_place(foreign)}, not from the clone "
                f"{clone.path}, which lacks it: uninstall the other package, or complete the clone"
            )
    return module


def _read(path: Path) -> Clone:
    start = path / PACKAGE / "__init__.py"
    if not path.is_dir():
        raise ValueError(f"no clone of flash-linear-attention at {path}: there is no such folder")
    if not start.is_file():
        remedy = (
            f"give the folder of the clone, {path.parent}"
            if path.name == PACKAGE
            else "give the folder of a clone of flash-linear-attention, which contains fla/"
        )
        raise ValueError(f"{path} has no package fla: {remedy}")
    found = re.search(r"""^__version__\s*=\s*["']([^"']+)["']""", start.read_text("utf-8"), re.M)
    if found is None:
        raise ValueError(f"{start} has no __version__: is it flash-linear-attention's?")
    state = git_state(start) or {}
    return Clone(path=path, version=found[1], commit=state.get("commit"), dirty=state.get("dirty"))


def _place(module: ModuleType) -> str | None:
    """Return a module's file, or its folder if it has none; None if it was created by code."""
    folders = iter(getattr(module, "__path__", ()))
    return getattr(module, "__file__", None) or next(folders, None)


def _inside(file: str | None, folder: Path) -> bool:
    return file is not None and Path(file).resolve().is_relative_to(folder.resolve())
