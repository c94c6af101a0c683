"""The source of the user's own code: a file, and the modules of the user's that it imports.

Imports are read from the syntax tree, at any depth and whether they were executed or not. Installed
packages and the standard library are no part of the user's code.
"""

import ast
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from attnlab.config.own_code import executed_source, is_users, root_of, searched
from attnlab.config.own_kinds import OwnKind, own_kind

_cache = dict[Path, tuple[dict[Path, tuple[int, ...]], dict[str, bytes]]]()
# ^ the sources of a file, and what tells whether they are still those on disk


def digest(source: bytes) -> str:
    """Return the SHA-256 of a source, in hexadecimal digits."""
    return sha256(source).hexdigest()


def sources_of(path: Path, *, executed: bool = False) -> dict[str, bytes]:
    """Return the file and every module of the user's that it imports, directly or not.

    The names are paths from the file's root on, or from the folder where Python finds the module;
    the file itself comes first.

    Args:
        path: the file.
        executed: True for the sources that this process has executed, False for those on disk. A
            file that is on disk no longer is as it was executed.
    """
    path = path.resolve()
    if executed:
        return {name: source for name, (_, source) in _read(path, executed_source).items()}
    stamps, found = _cache.get(path, ({}, {}))
    if not stamps or stamps != {file: _stamp(file) for file in stamps}:
        files = _read(
            path, lambda file: file.read_bytes() if file.exists() else executed_source(file)
        )
        found = {name: source for name, (_, source) in files.items()}
        _cache[path] = {file: _stamp(file) for file, _ in files.values()}, found
    return dict(found)


def identity_sources(classes: Iterable[type], *, executed: bool = False) -> dict[str, str]:
    """Return the SHA-256 of every file that the classes run, by names without folders.

    The file of a class has the name of the class: `file.py:Class`. Another file with a name that is
    already taken is named with its digest. `executed` is that of `sources_of`.
    """
    found = dict[str, str]()
    for cls in classes:
        if (kind := own_kind(cls)) is None:
            continue
        (_, own), *others = sources_of(kind.path, executed=executed).items()
        names = [(f"{kind.path.name}:{cls.__name__}", own), *others]
        for name, source in names:
            there = found.setdefault(name, digest(source))
            if there != digest(source):
                found[f"{name}#{digest(source)[:8]}"] = digest(source)
    return found


def without_folders(tree: Any) -> Any:
    """Return settings as JSON values in which the user's files are named without their folders.

    Files that share a name are named with their digests, too.
    """
    files = dict[str, set[Path]]()
    for kind in _own_kinds(tree):
        files.setdefault(kind.path.name, set()).add(kind.path)

    def named(value: Any) -> Any:
        if isinstance(value, OwnKind):
            name = f"{value.path.name}:{value.rpartition(':')[2]}"
            shared = len(files[value.path.name]) > 1
            return f"{name}#{digest(executed_source(value.path))[:8]}" if shared else name
        if isinstance(value, dict):
            return {name: named(item) for name, item in value.items()}
        return [named(item) for item in value] if isinstance(value, list) else value

    return named(tree)


def _own_kinds(tree: Any) -> Iterator[OwnKind]:
    if isinstance(tree, OwnKind):
        yield tree
    elif isinstance(tree, dict | list):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _own_kinds(value)


def carried_sources(classes: Iterable[type]) -> dict[str, bytes]:
    """Return every file that the classes run, by the path that it has in a folder of sources.

    Loaded from such a folder, kinds `file.py:Class` are the same classes.

    Raises:
        ValueError: files of several folders would have the same path.
    """
    found = dict[str, bytes]()
    for cls in classes:
        if (kind := own_kind(cls)) is None:
            continue
        sources = sources_of(kind.path)
        above = kind.rpartition(":")[0].removesuffix(next(iter(sources)))
        for name, source in sources.items():
            if found.setdefault(above + name, source) != source:
                raise ValueError(
                    f"two modules {name} with different contents are imported by files of one run; "
                    f"rename one ({kind.path} imports one of them)"
                )
    return found


def original_files(classes: Iterable[type]) -> dict[str, str]:
    """Return the absolute path of every file of `carried_sources`, by the same names."""
    found = dict[str, str]()
    for cls in classes:
        if (kind := own_kind(cls)) is not None:
            files = _read(kind.path, executed_source)
            above = kind.rpartition(":")[0].removesuffix(next(iter(files)))
            found |= {above + name: str(path) for name, (path, _) in files.items()}
    return found


def _stamp(file: Path) -> tuple[int, ...]:
    try:
        stat = file.stat()
    except OSError:
        return ()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _read(path: Path, read: Callable[[Path], bytes]) -> dict[str, tuple[Path, bytes]]:
    """Return path and source of a file and of all that it imports, by name."""
    root = root_of(path)
    packages = [folder / "__init__.py" for folder in path.parents if folder.is_relative_to(root)]
    found, waiting = dict[str, tuple[Path, bytes]](), [(root, path)]
    waiting += [(root, file) for file in packages if file.is_file()]
    while waiting:
        home, file = waiting.pop(0)
        name = file.relative_to(home).as_posix()
        if name not in found:
            found[name] = file, read(file)
            waiting += _imported_files(file, found[name][1], [path.parent, root, *searched()])
    return found


def _imported_files(
    path: Path, source: bytes, search: Sequence[Path]
) -> Iterator[tuple[Path, Path]]:
    """Yield each file of the user's that a source imports, with the folder it is found in."""
    for base, module in _imported_modules(path, source):
        folders = search if base is None else [base]
        for folder, file in _files(module.split("."), folders, anywhere=base is None):
            if is_users(file) and file != path:
                yield folder if base is None else root_of(file), file


def _imported_modules(path: Path, source: bytes) -> Iterator[tuple[Path | None, str]]:
    """Yield the dotted names that a source imports; with the folder of a relative import."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((None, alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = path.parents[level - 1] if level else None
                stem = [module] if module else []
                for alias in names:  # a name is an attribute, or a module of its own
                    yield base, ".".join([*stem, alias.name])
            case ast.Call(
                func=ast.Name(id="__import__" | "import_module")
                | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(module)), *_],
            ):
                yield None, module.lstrip(".")
            case _:
                pass


def _files(
    parts: Sequence[str], folders: Sequence[Path], *, anywhere: bool
) -> list[tuple[Path, Path]]:
    """Return the files of a dotted module and of its packages, each with the first folder."""
    if anywhere and (parts[0] in sys.stdlib_module_names or parts[0] == "attnlab"):
        return []
    for folder in [*folders, *(map(Path, sys.path) if anywhere else ())]:
        if found := _files_in(folder.resolve(), parts):
            return [(folder.resolve(), file) for file in found]
    try:
        spec = find_spec(parts[0]) if anywhere else None  # a package that is installed editable
    except (ImportError, ValueError):
        return []
    origin = None if spec is None else spec.origin
    if origin is None or not is_users(origin) or not Path(origin).is_file():
        return []
    file = Path(origin).resolve()
    home = file.parents[1] if file.name == "__init__.py" else file.parent
    return [(home, found) for found in _files_in(home, parts)]


def _files_in(folder: Path, parts: Sequence[str]) -> list[Path]:
    found, place = list[Path](), folder
    for part in parts:
        package, module = place / part / "__init__.py", place / f"{part}.py"
        if package.is_file():
            found.append(package.resolve())
        elif module.is_file():
            return [*found, module.resolve()]
        place = place / part
    return found
