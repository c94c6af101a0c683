"""Places of data: its folders, the files in them, and the split that each is named after.

A name is cut into words. A word for a split counts wherever it stands in the name of a file or of
a folder: `train-00000-of-00002.jsonl`, `wiki.train.raw`, `en/valid/0.txt`, `DevSet.txt`.
"""

import os
import re
import stat
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from attnlab.config import expanded
from attnlab.record.atomic_files import WriteError, verified_file

SPLITS = ("train", "valid", "test")
_WORDS = {
    "train": ("train", "training", "trn"),
    "valid": (
        *("valid", "validation", "val", "dev", "devel", "development"),
        *("eval", "evaluation", "heldout", "holdout"),
    ),
    "test": ("test", "testing", "tst"),
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}
_WORD = "|".join(sorted(_SPLIT_OF, key=len, reverse=True))
_FILLER = "sets?|data|splits?|files?|texts?|corpus|tokens?|ids|shards?|parts?"
_COMPOUND = re.compile(rf"(?:{_WORD}|{_FILLER})+")  # testset, trainval
_LETTERS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_ENDINGS = re.compile(
    r"(\.(txt|text|raw|tokens|jsonl?|jsonlines|ndjson|npy|npz|bin|gz|parquet|arrow))+$", re.I
)
NOT_DATA = (  # endings of files that lie beside data and are none
    *(".py", ".sh", ".md", ".rst", ".log", ".yaml", ".yml", ".toml", ".ipynb", ".cfg", ".ini"),
    *(".lock", ".html", ".css", ".js", ".png", ".jpg", ".svg", ".sha256", ".md5", ".crc"),
)


class Places(NamedTuple):
    """The folder of the user's data, or None, and the folder of derived files."""

    data: Path | None
    cache: Path

    @classmethod
    def from_environment(
        cls, data: Path | str | None = None, cache: Path | str | None = None
    ) -> "Places":
        """Return the given folders; the environment variables name those that are not given.

        Args:
            data: the folder of data, by default that of ATTNLAB_DATA, if any.
            cache: the folder of derived files, by default that of ATTNLAB_CACHE, or
                ~/.cache/attnlab.
        """
        data = data or os.environ.get("ATTNLAB_DATA")
        cache = cache or os.environ.get("ATTNLAB_CACHE")
        home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"))
        return cls(
            data=expanded(data) if data else None,
            cache=expanded(cache or home / "attnlab"),
        )


class DataError(ValueError):
    """Data is missing or unfit. The message says what was searched, where, and the remedy."""

    parts: tuple[str, str] | None = None  # what was not found and where, and the remedy

    def __init__(self, message: str) -> None:
        # names of files may hold bytes that are no text, which could not be printed
        super().__init__(message.encode(errors="backslashreplace").decode())

    @classmethod
    def missing(cls, what: str, tried: Iterable[object], remedy: str) -> "DataError":
        """Return the error that `what` is in none of the places that were `tried`."""
        looked = ", ".join(map(str, tried))
        where = f"; looked in {looked}" if looked else ", and no folder of data was given"
        error = cls(f"{what} not found{where}. {remedy}")
        error.parts = f"{what} not found{where}", remedy
        return error


def cached(path: Path, write: Callable[[IO[bytes]], object]) -> Path:
    """Return `path`; call `write` to write the file first if it is missing or damaged.

    Any number of processes may call this at the same time. Raises DataError if the folder cannot be
    written.
    """
    try:
        return verified_file(path, write)
    except WriteError as error:
        raise DataError(f"{error}\nName another cache folder with ATTNLAB_CACHE=DIR.") from error


class NamedFile(NamedTuple):
    """A file, and the word in its name or in that of a folder that names its split, if any."""

    path: Path
    word: str | None
    place: Path = Path()  # the file or folder that was given

    @property
    def split(self) -> str | None:
        """The split: train, valid or test."""
        return None if self.word is None else _SPLIT_OF[self.word]


def split_word(name: str) -> str | None:
    """Return the word in a name that names a split, or None.

    Raises DataError if the name has words for two splits.

    >>> [split_word(name) for name in ("train-00000-of-00002.jsonl", "DevSet.txt", "contest.txt")]
    ['train', 'dev', None]
    """
    joined = re.sub(r"(?i)(h[eo]ld)[-_. ]out", r"\1out", name)
    words = dict.fromkeys(
        word
        for letters in _LETTERS.findall(joined)
        if _COMPOUND.fullmatch(letters.lower())
        for word in re.findall(_WORD, letters.lower())
    )
    if len({_SPLIT_OF[word] for word in words}) > 1:
        both = " and ".join(map(repr, words))
        raise DataError(f"the name {name!r} has words for two splits, {both}: rename it")
    return next(iter(words), None)


def searched(path: str | None, places: Places, names: Iterable[str] = ()) -> list[Path]:
    """Return where data may lie: at `path`, here or in the data folder; without it, at its names.

    Args:
        path: the setting of the user, or None.
        places: the folders of data.
        names: where the data folder may have it.

    Raises DataError for an empty path, and for the home of an unknown user.
    """
    if path is None:
        return [places.data / name for name in names] if places.data else []
    if not path.strip():
        raise DataError("the path of the data or of its tokenizer is empty: name a file or folder")
    try:
        here = Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"{path}: {error}") from None
    in_data = [places.data / here] if places.data and not here.is_absolute() else []
    return [here, *in_data]


def find(path: str, places: Places, *, what: str, remedy: str) -> Path:
    """Return the file or folder; a relative path is searched here, then in the data folder.

    Raises DataError if it is in neither, or if it is a pipe, a device or a dangling link.
    """
    tried = searched(path, places)
    found = next((place for place in tried if os.path.lexists(place)), None)
    if found is None:
        raise DataError.missing(f"{what} {path!r}", tried, remedy)
    if not found.is_dir():
        require_file(found)
    return found


def require_file(path: Path) -> None:
    """Raise DataError unless the path leads to a regular file."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        to = f" links to {path.readlink()}, which does not exist" if path.is_symlink() else ""
        raise DataError(f"{path}{to or ' does not exist'}") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    if not stat.S_ISREG(mode):
        kinds = ((stat.S_ISDIR, "folder"), (stat.S_ISFIFO, "pipe"), (stat.S_ISSOCK, "socket"))
        kind = next((kind for is_kind, kind in kinds if is_kind(mode)), "device")
        raise DataError(f"{path} is a {kind}, not a file; save its content to a file")


def files_in(
    places: Sequence[Path], wanted: Callable[[str], bool], *, by_name: bool = True
) -> list[NamedFile]:
    """Return the files that the paths name, each once per split, those of a folder sorted.

    Of a folder, files are returned whose name is `wanted`, and those named after a split unless
    they end like a program or a note; hidden ones are not. Names count below the folder that all
    paths share. If not `by_name`, names mean nothing.

    Raises DataError for ambiguous names, and for a folder that cannot be read.
    """
    # unlike Path.resolve, this keeps the names of links
    absolute = [Path(os.path.abspath(place)) for place in places]  # noqa: PTH100
    shared = os.path.commonpath([path if path.is_dir() else path.parent for path in absolute])
    files = dict[tuple[Path, str | None], NamedFile]()
    for place in absolute:
        for path in sorted(walk(place)) if place.is_dir() else [place]:
            word = _word_of(path.relative_to(shared)) if by_name else None
            data = word is not None and not path.name.lower().endswith(NOT_DATA)
            if path == place or wanted(path.name) or data:
                require_file(path)
                file = NamedFile(path, word, place)
                files.setdefault((path.resolve(), file.split), file)
    return list(files.values())


def by_split(files: Iterable[NamedFile], where: str, remedy: str) -> dict[str, list[NamedFile]]:
    """Return the files of each split that is named; no split if no file is named after one.

    Raises DataError if there is a split but no train, or test but no valid, or if it is not clear
    which files are a split's.
    """
    groups: defaultdict[str, list[NamedFile]] = defaultdict(list)
    for file in files:
        if file.split is not None:
            groups[file.split].append(file)
    if groups:
        require_splits(
            {split: group[0].path.name for split, group in groups.items()}, where, remedy
        )
    for split, group in groups.items():
        named = {file.word: file.path.name for file in group}
        same = _same_but_for_ending([file.path for file in group])
        twice = list(named.values()) if len(named) > 1 else same
        if twice:
            listed = " and ".join(twice[:2])
            raise DataError(f"{where}: {listed} are both named as the {split} split; keep one")
    return {split: groups[split] for split in SPLITS if split in groups}


def require_splits(names: Mapping[str, str], where: str, remedy: str) -> None:
    """Raise DataError if splits are named but train is not, or test is but valid is not."""
    missing = next((split for split in ("train", "valid") if split not in names), None)
    if missing is None or set(names) == {"train"}:
        return
    have = " and ".join(names.values())
    raise DataError(f"{where} has {have}, but nothing is named {missing}; {remedy}")


def walk(folder: Path) -> Iterable[Path]:
    """Yield the files below a folder, following links, but no hidden ones and no circle.

    Raises DataError for a folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"cannot read {error.filename}: {error.strerror or error}") from None

    seen = set[Path]()
    for inside, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = Path(inside).resolve()
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real not in seen:
            yield from (Path(inside) / name for name in names if not name.startswith("."))
        seen.add(real)


def _word_of(path: Path) -> str | None:
    """Return the word that names the split of a path: that of the file's name, if it has one.

    Raises DataError if names in the path name two splits.
    """
    words = [word for part in reversed(path.parts) if (word := split_word(part))]
    if len({_SPLIT_OF[word] for word in words}) > 1:
        raise DataError(f"{path} names two splits, {words[-1]!r} and {words[0]!r}: rename one")
    return next(iter(words), None)


def _same_but_for_ending(paths: Sequence[Path]) -> list[str]:
    """Return the names of two files that differ in their endings alone, or nothing."""
    known = dict[Path, Path]()
    for path in paths:
        stem = path.with_name(_ENDINGS.sub("", path.name))
        if stem in known:
            return [known[stem].name, path.name]
        known[stem] = path
    return []
