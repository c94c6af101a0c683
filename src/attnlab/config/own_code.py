"""Import the user's own Python files: a study, a mechanism, and the modules beside them.

A file is imported by its path. It finds the modules and packages beside it, as a script does,
whatever the working directory; two folders may hold modules of the same name. Sources are compiled
from the bytes of the file, never from a cache, so that what was executed is known exactly.
"""

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Generator
from contextlib import chdir, contextmanager
from contextvars import ContextVar
from hashlib import sha256
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from opcode import opname
from pathlib import Path
from sysconfig import get_paths
from types import CodeType, ModuleType
from typing import Any

from attnlab.config.problem import ConfigError, Problem, meant_argument
from attnlab.config.values import expanded

_PACKAGE = str(Path(__file__).resolve().parents[1])
_INSTALLED = tuple({str(Path(path).resolve()) + os.sep for path in get_paths().values()})
_SITE = ("site-packages", "dist-packages")
MESSAGE_LETTERS = 300  # of an exception of the user's code, in one line

short_names = dict[str, Path]()  # files by the names that settings and records give them
given_names = dict[Path, str]()  # names of files that another process gave them
_executed = dict[Path, bytes]()  # the bytes of each of the user's files as they were last executed
_roots = list[Path]()  # folders that are searched for modules, those of the newest file first
_folder: ContextVar[Path | None] = ContextVar("folder", default=None)  # of the file being executed


class OwnCodeError(ValueError):
    """A file of the user's fails. The message is one line with file, line and exception."""


class _OwnLoader(SourceFileLoader):
    """Compile the bytes of a file, and remember them."""

    def get_code(self, fullname: str) -> CodeType:
        del fullname
        path, source = Path(self.path).resolve(), self.get_data(self.path)
        _executed[path] = source
        return self.source_to_code(source, self.path)


class _Neighbours(MetaPathFinder):
    """Find modules beside the user's files. Names of the standard library keep their meaning."""

    def find_spec(
        self, fullname: str, path: Any = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del target
        if path is None and (fullname in sys.stdlib_module_names or fullname == "attnlab"):
            return None
        search = [str(root) for root in _roots]
        if path is not None:
            search = [one for one in path if str(one).startswith(tuple(search))]
        spec = PathFinder.find_spec(fullname, search) if search else None
        if spec is not None and spec.loader is None and path is None:
            other = PathFinder.find_spec(fullname)  # a folder of any kind hides no package
            spec = spec if other is None or other.loader is None else None
            if spec is not None:  # a plain list, which sys.path does not change
                spec.submodule_search_locations = list(spec.submodule_search_locations or ())
        if spec is not None and type(spec.loader) is SourceFileLoader and is_users(spec.origin):
            spec.loader = _OwnLoader(spec.loader.name, spec.loader.path)
        return spec


_NEIGHBOURS = _Neighbours()


def is_own(cls: type) -> bool:
    """True if the class is defined outside this package."""
    return not cls.__module__.startswith("attnlab.")


def is_users(path: Path | str | None) -> bool:
    """True for the path of a file that is neither installed nor part of Python or this package."""
    if path is None or str(path).startswith("<"):
        return False
    resolved = Path(path).resolve()
    if any(part in _SITE for part in resolved.parts):
        return False
    return not str(resolved).startswith((*_INSTALLED, _PACKAGE + os.sep))


def load_file(path: Path) -> ModuleType:
    """Import a Python file by its path; again only if it or a module beside it was edited.

    Raises:
        ValueError: there is no such file.
        OwnCodeError: it raises an exception, or exits.
        ConfigError: it makes settings that are invalid.
    """
    resolved = expanded(path).resolve()
    if not resolved.is_file():
        raise ValueError(f"no file {path} (looked for {resolved})")
    root = root_of(resolved)
    _search_first(resolved.parent, root)
    short_names[resolved.relative_to(root).as_posix()] = resolved
    if (loaded := _loaded(resolved)) is not None:
        return loaded
    package = ".".join(resolved.parent.relative_to(root).parts)
    name = f"attnlab_file_{resolved.stem}_{sha256(str(resolved).encode()).hexdigest()[:8]}"
    name = f"{package}.{name}" if package else name
    spec = spec_from_file_location(name, resolved, loader=_OwnLoader(name, str(resolved)))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    before = _folder.set(resolved.parent)
    try:
        with _errors_of(resolved), chdir("."):  # which it may change
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    finally:
        _folder.reset(before)
    return module


def root_of(path: Path) -> Path:
    """Return the folder of a file, or that of its outermost package if it is in one."""
    folder = path.resolve().parent
    while (folder / "__init__.py").is_file() and folder.parent != folder:
        folder = folder.parent
    return folder


def executing_folder() -> Path | None:
    """Return the folder of the user's file that is being executed, or None."""
    return _folder.get()


def searched() -> list[Path]:
    """Return the folders in which modules of the user's are searched, in order."""
    return list(_roots)


def executed_source(path: Path) -> bytes:
    """Return the bytes of a file as it was executed in this process, or else as it is."""
    found = _executed.get(path)
    return path.read_bytes() if found is None else found


def own_error(error: BaseException) -> str | None:
    """Return one line on an exception that a file of the user's raised; None if none did.

    It names the innermost line in such a file, and the exception.
    """
    if isinstance(error, SyntaxError) and is_users(error.filename):
        place = f"{_shown(str(error.filename))}:{error.lineno}"
        return f"{place}: {type(error).__name__}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{_shown(f.filename)}:{f.lineno}" for f in frames if is_users(f.filename)]
    return f"{places[-1]}: {_message(error)}" if places else None


def is_interrupt(error: BaseException) -> bool:
    """Return True for an exception that a signal may have raised, rather than the user's code."""
    handlers = map(signal.getsignal, (signal.SIGINT, signal.SIGTERM))
    could = isinstance(error, KeyboardInterrupt) and any(map(callable, handlers))
    return could and not _is_raised_by_user(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Return True for an exception that says that a machine or a GPU has too little memory."""
    words = ("out of memory", "not enough memory", "can't allocate memory")
    said = isinstance(error, RuntimeError) and any(each in str(error) for each in words)
    return said or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def _is_raised_by_user(error: BaseException) -> bool:
    """True if a `raise` in the user's code is where an exception begins."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    if place is None or not is_users((code := place.tb_frame.f_code).co_filename):
        return False
    return opname[code.co_code[place.tb_lasti]] == "RAISE_VARARGS"


@contextmanager
def _errors_of(path: Path) -> Generator[None]:
    """Raise OwnCodeError for any error of a file that is executed inside, and for an exit."""
    leave, process = os._exit, os.getpid()

    def stay(status: int) -> None:
        if os.getpid() != process:  # a forked process
            leave(status)
        raise SystemExit(status)

    os._exit = stay  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    except OwnCodeError:
        raise
    except ConfigError as error:
        place = (own_error(error) or _shown(str(path))).partition(": ")[0]
        raise ConfigError(Problem(place, str(problem)) for problem in error.problems) from error
    except BaseException as error:
        said = own_error(error)
        if is_interrupt(error) or (said is None and isinstance(error, OSError)):  # of reading it
            raise
        found = said or f"{_shown(str(path))}: {_message(error)}"
        raise OwnCodeError(found) from error
    finally:
        os._exit = leave


def _message(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it exits with code {error.code!r}, which would end attnlab; remove the exit"
    text = " ".join(str(error).split())[:MESSAGE_LETTERS]
    return f"{type(error).__name__}: {text}{_meant(error)}" if text else type(error).__name__


def _meant(error: BaseException) -> str:
    """Return the end of a message on arguments that a callable has not: what they may mean."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    of_user = [each for each in frames if is_users(each.f_code.co_filename)]
    return meant_argument(error, of_user[-1].f_globals | of_user[-1].f_locals) if of_user else ""


def _shown(path: str) -> str:
    resolved, here = Path(path).resolve(), Path.cwd()
    return str(resolved.relative_to(here) if resolved.is_relative_to(here) else resolved)


def _search_first(*folders: Path) -> None:
    """Search these folders first for modules; forget those that were edited, or are elsewhere."""
    importlib.invalidate_caches()
    if _NEIGHBOURS not in sys.meta_path:
        sys.meta_path.insert(0, _NEIGHBOURS)
    search = list(dict.fromkeys(folders))
    _roots[:] = [*search, *(root for root in _roots if root not in search)]
    short_names.update(
        {
            name: folder / name
            for name in short_names
            for folder in search
            if (folder / name).is_file()
        }
    )
    here = [path for path in _executed if any(path.is_relative_to(folder) for folder in search)]
    edited = any(not _is_as_executed(path) for path in here)
    of_others = [name for name in _names_in(search) if _is_elsewhere(name)]
    for name, module in _modules().items():
        by = vars(module).get("__loader__")
        was_edited = edited and isinstance(by, _OwnLoader) and Path(by.path).resolve() in here
        if was_edited or any(name == other or name.startswith(f"{other}.") for other in of_others):
            del sys.modules[name]


def _names_in(folders: list[Path]) -> set[str]:
    """Return the modules that folders hold and that are imported, from wherever."""
    names = {path.name.removesuffix(".py") for folder in folders for path in folder.iterdir()}
    return {name for name in names if name in sys.modules and name != "__main__"}


def _is_elsewhere(name: str) -> bool:
    """True if the user's module that is imported by this name is not the one to be found first."""
    variables, spec = vars(sys.modules[name]), _NEIGHBOURS.find_spec(name)
    places: list[str] = [variables["__file__"]] if variables.get("__file__") else []
    places = places or list(variables.get("__path__", ()))
    if spec is None or not places or not all(map(is_users, places)):
        return False
    found = (spec.submodule_search_locations or ()) if spec.loader is None else [str(spec.origin)]
    return {Path(place).resolve() for place in places} != {Path(one).resolve() for one in found}


def _is_as_executed(path: Path) -> bool:
    try:
        return path.read_bytes() == _executed[path]
    except OSError:
        return False


def _modules() -> dict[str, ModuleType]:
    # what is called a module may be another object
    return {name: one for name, one in list(sys.modules.items()) if hasattr(one, "__dict__")}


def _loaded(path: Path) -> ModuleType | None:
    """Return the module of a file, under whatever name it was imported."""
    for name, module in _modules().items():
        file = vars(module).get("__file__")
        if not isinstance(file, str) or not file.endswith(path.name):
            continue
        if name != "__main__" and Path(file).resolve() == path:
            return module
    return None
