"""The source code of the running Python's standard library.

`SitePackages` reads that of installed packages. Both need no download. Another version of Python
or of a package is another corpus, with its own fingerprint. Files are taken in a fixed, arbitrary
order of their names until `max_bytes` is reached. No module or package has more than a sixteenth of
the bytes, so that tables of encodings do not dominate, unless packages are named. All files of a
module or package are in the same split; validation and test have a twentieth of the bytes each.
"""

import os
import platform
import re
import sys
import sysconfig
import tokenize
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.metadata import Distribution, distributions
from io import BytesIO
from pathlib import Path

from attnlab.config import Problem
from attnlab.data.documents import read_bytes
from attnlab.data.hold_out import hold_out, rank
from attnlab.data.places import SPLITS, DataError, Places, searched, walk
from attnlab.data.source import DataConfig, Texts
from attnlab.data.tokenizer import BPE, Tokenizer

HELD_OUT = 0.1  # half for validation, half for test
LARGEST_MODULE = 1 / 16
LEAST_BYTES = 100_000
MOST_TIMES = 4  # that a file is longer than its text in UTF-8, whatever its encoding
NOT_THE_LIBRARY = {
    *("test", "tests", "idle_test"),
    *("site-packages", "dist-packages", "__pycache__"),
}
NOT_A_PACKAGE = {  # copies of other packages, which would be in two splits, are none either
    *("test", "tests", "testing", "__pycache__"),
    *("_vendor", "vendor", "_vendored", "vendored", "extern", "_extern", "third_party"),
}


@dataclass(frozen=True, kw_only=True)
class Stdlib(DataConfig):
    """Text for a few minutes of training, on any machine that runs Python."""

    max_bytes: int = 3_000_000
    tokenizer: Tokenizer = field(default_factory=lambda: BPE(vocab_size=1_024))

    def problems(self) -> Iterator[Problem]:
        if self.max_bytes < LEAST_BYTES:
            yield Problem("max_bytes", f"must be at least {LEAST_BYTES}, got {self.max_bytes}")

    def texts(self, places: Places) -> Texts:
        del places
        folder = Path(sysconfig.get_path("stdlib"))
        files = {name: folder / name for name in _library_files(folder)}
        sources, _ = _choose(files, self.max_bytes, self.max_bytes * LARGEST_MODULE)
        splits = _split(sources, _module)
        if not all(splits.values()):
            raise DataError(
                f"{folder} holds the source of {len(sources)} modules, too few to split: this "
                "Python comes without its library's source. Use other text: data=text."
            )
        origin = f"standard library of Python {platform.python_version()}, {len(sources)} files"
        train, valid, test = (splits[split] for split in SPLITS)
        return Texts(train=train, valid=valid, test=test, origin=origin)


@dataclass(frozen=True, kw_only=True)
class SitePackages(DataConfig):
    """The source code of the packages that are installed for the running Python, or in a folder.

    Whole packages are held out; if there are too few, whole files. Tests and copies of other
    packages (`_vendor`) are left out, and so is a file that another one equals.
    """

    packages: tuple[str, ...] = ()  # by the name to import or to install; empty: all
    path: str | None = None  # a folder of packages; None: those where Python finds them
    max_bytes: int = 12_000_000
    tokenizer: Tokenizer = field(default_factory=lambda: BPE(vocab_size=8_192))

    def problems(self) -> Iterator[Problem]:
        if self.max_bytes < LEAST_BYTES:
            yield Problem("max_bytes", f"must be at least {LEAST_BYTES}, got {self.max_bytes}")
        if not all(name.strip() for name in self.packages):
            yield Problem("packages", "leave no name empty")
        if len(set(self.packages)) < len(self.packages):
            yield Problem("packages", "name each once")

    def texts(self, places: Places) -> Texts:
        folders = self._folders(places)
        found = _installed(folders)
        chosen = self._named(found, folders) if self.packages else list(found)
        files = {
            f"{name}/{path.relative_to(found[name]).as_posix()}"
            if path != found[name]
            else name: path
            for name in chosen
            for path in _package_files(found[name])
        }
        largest = self.max_bytes if self.packages else self.max_bytes * LARGEST_MODULE
        sources, unfit = _choose(files, self.max_bytes, largest, distinct=True)
        if self.packages and (bare := set(chosen) - set(map(_module, sources))):
            raise DataError(
                f"{', '.join(sorted(bare))}: no source code in Python that fits into "
                f"data.max_bytes={self.max_bytes}; leave it out of data.packages"
            )
        splits, how = _split(sources, _module), "packages"
        half_full = HELD_OUT / 4 * sum(map(len, sources.values()))
        if min(sum(map(len, splits[split])) for split in ("valid", "test")) < half_full:
            splits, how = _split(sources, str), "files"
        if not all(splits.values()):
            where = ", ".join(map(str, folders))
            raise DataError(
                f"{len(sources)} files of source code in {where} are too few to split: install or "
                "name more packages, or use other text: data=stdlib"
            )
        train, valid, test = (splits[split] for split in SPLITS)
        count = len(set(map(_module, sources)))
        return Texts(
            train=train,
            valid=valid,
            test=test,
            origin=f"{count} {'package' if count == 1 else 'packages'} of Python "
            f"{platform.python_version()}, {len(sources)} files; held out: whole {how}",
            notes=(f"left out, no text in the encoding they declare: {_several(unfit)}",)
            if unfit
            else (),
        )

    def _folders(self, places: Places) -> list[Path]:
        if self.path is None:
            here = (Path(place) for place in sys.path)
            folders = [at for at in here if at.name in ("site-packages", "dist-packages")]
        else:
            folders = searched(self.path, places)
        if not (existing := [folder for folder in folders if folder.is_dir()]):
            remedy = "Name a folder of packages with data.path=DIR, or use data=stdlib."
            raise DataError.missing("installed packages", folders, remedy)
        return existing

    def _named(self, found: Mapping[str, Path], folders: Sequence[Path]) -> list[str]:
        """Return the packages to import of those that are named; raise DataError for others."""
        by_project = defaultdict[str, list[str]](list)
        for distribution in distributions(path=[str(folder) for folder in folders]):
            for name in _top_levels(distribution):
                if name in found:
                    by_project[_normal(distribution.metadata["Name"] or "")].append(name)
        chosen = dict[str, None]()
        for name in self.packages:
            names = [name] if name in found else by_project.get(_normal(name), [])
            if not names:
                where = ", ".join(str(folder) for folder in folders)
                similar = get_close_matches(name, [*found, *by_project], n=1)
                meant = f"; did you mean {similar[0]!r}?" if similar else ", see pip list"
                raise DataError(f"no package {name!r} is installed in {where}{meant}")
            chosen |= dict.fromkeys(names)
        return list(chosen)


def _choose(
    files: Mapping[str, Path], max_bytes: int, of_module: float, *, distinct: bool = False
) -> tuple[dict[str, str], list[str]]:
    """Return the chosen source texts by name, sorted, and the names of files that are no text.

    Args:
        files: the files by name, each below its module.
        max_bytes: of all texts.
        of_module: bytes of a module, at most.
        distinct: take no text twice.
    """
    chosen, unfit, left = dict[str, str](), list[str](), max_bytes
    left_of_module, known = Counter[str](), set[str]()
    for name in sorted(files, key=rank):
        module = _module(name)
        left_of_module.setdefault(module, int(of_module))
        most = min(left, left_of_module[module])
        try:
            if files[name].stat().st_size > MOST_TIMES * most:
                continue
        except OSError:
            pass  # reading it says why
        text = _source(files[name])
        if text is None:
            unfit.append(name)
            continue
        size = len(text.encode())
        if 0 < size <= most and not (distinct and text in known):
            known.add(text)
            chosen[name] = text
            left -= size
            left_of_module[module] -= size
    return dict(sorted(chosen.items())), sorted(unfit)


def _split(sources: Mapping[str, str], unit: Callable[[str], str]) -> dict[str, list[str]]:
    """Return the texts of each split, of which whole units are held out."""
    sizes = Counter[str]()
    for name, text in sources.items():
        sizes[unit(name)] += len(text.encode())
    split_of, splits = hold_out(sizes, HELD_OUT), {split: list[str]() for split in SPLITS}
    for name, text in sources.items():
        splits[split_of[unit(name)]].append(text)
    return splits


def _library_files(folder: Path) -> Iterator[str]:
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in NOT_THE_LIBRARY]
        above = Path(place).relative_to(folder).as_posix()
        for name in files:
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                path = name if above == "." else f"{above}/{name}"
                if not path.startswith("config-"):  # of this machine
                    yield path


def _module(name: str) -> str:
    """Return the top-level module of a file: `asyncio` for asyncio/tasks.py, `ast` for ast.py."""
    return name.partition("/")[0].removesuffix(".py")


def _installed(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the packages by name, folders and single files; the first of a name, as in import."""
    found = dict[str, Path]()
    for folder in folders:
        try:
            inside = sorted(folder.iterdir())
        except OSError as error:
            raise DataError(f"cannot read {folder}: {error.strerror or error}") from None
        for path in inside:
            if path.is_dir() and path.name.isidentifier() and path.name not in NOT_A_PACKAGE:
                found.setdefault(path.name, path)
            elif path.suffix == ".py" and path.stem.isidentifier():
                found.setdefault(path.stem, path)
    return found


def _package_files(package: Path) -> Iterator[Path]:
    """Yield the files of a package in Python, without tests and copies of other packages."""
    if not package.is_dir():
        yield package
        return
    for path in walk(package):
        below = path.relative_to(package)
        if path.suffix == ".py" and not NOT_A_PACKAGE.intersection(below.parts[:-1]):
            yield path


def _top_levels(distribution: Distribution) -> set[str]:
    """Return the names to import of an installed project."""
    stated = (distribution.read_text("top_level.txt") or "").split()
    files = (file.parts[0] for file in distribution.files or ())
    return {name.removesuffix(".py") for name in (*stated, *files)}


def _several(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < 4 else f"{names[0]} and {len(names) - 1} other files"


def _normal(project: str) -> str:
    """Return the name of a project as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", project).lower()


def _source(path: Path) -> str | None:
    """Decode a file by its declared encoding (PEP 263); return None if that is impossible.

    Raises DataError if it cannot be read.
    """
    raw = read_bytes(path)
    try:
        encoding, _ = tokenize.detect_encoding(BytesIO(raw).readline)
        return raw.decode(encoding)
    except (SyntaxError, UnicodeDecodeError):
        return None
