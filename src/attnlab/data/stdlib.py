"""The embedded corpus: the source code of the running Python's standard library.

It needs no download. Another version of Python is another corpus, with its own fingerprint. Files
are taken in a fixed, arbitrary order of their names until `max_bytes` is reached. No top-level
module has more than a sixteenth of the bytes, so that tables of encodings do not dominate. All
files of a module are in the same split; validation and test have a twentieth of the bytes each.
"""

import os
import platform
import sysconfig
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from attnlab.config import Problem
from attnlab.data.hold_out import hold_out, rank
from attnlab.data.named_files import SPLITS
from attnlab.data.places import DataError, Places
from attnlab.data.source import DataConfig, Texts
from attnlab.data.tokenizer import BPE, Tokenizer

HELD_OUT = 0.1  # half for validation, half for test
LARGEST_MODULE = 1 / 16
MOST_TIMES = 4  # that a file is longer than its text in UTF-8, whatever its encoding
NOT_THE_LIBRARY = {
    *("test", "tests", "idle_test"),
    *("site-packages", "dist-packages", "__pycache__"),
}


@dataclass(frozen=True, kw_only=True)
class Stdlib(DataConfig):
    """Text for a few minutes of training, on any machine that runs Python."""

    max_bytes: int = 3_000_000
    tokenizer: Tokenizer = field(default_factory=lambda: BPE(vocab_size=1_024))

    def problems(self) -> Iterator[Problem]:
        if self.max_bytes < 100_000:
            yield Problem("max_bytes", f"must be at least 100000, got {self.max_bytes}")

    def texts(self, places: Places) -> Texts:
        del places
        folder = Path(sysconfig.get_path("stdlib"))
        sources = self._choose(folder)
        module_sizes = Counter[str]()
        for name, text in sources.items():
            module_sizes[_module(name)] += len(text.encode())
        split_of = hold_out(module_sizes, HELD_OUT)
        splits = {split: list[str]() for split in SPLITS}
        for name, text in sources.items():
            splits[split_of[_module(name)]].append(text)
        if not all(splits.values()):
            raise DataError(
                f"{folder} holds the source of {len(sources)} modules, too few to split: this "
                "Python comes without its library's source. Use other text: data=text."
            )
        origin = f"standard library of Python {platform.python_version()}, {len(sources)} files"
        train, valid, test = (splits[split] for split in SPLITS)
        return Texts(train=train, valid=valid, test=test, origin=origin)

    def _choose(self, folder: Path) -> dict[str, str]:
        """Return the chosen source texts by path within the library's folder, sorted."""
        chosen, left = dict[str, str](), self.max_bytes
        left_of_module = Counter[str]()
        for name in sorted(_library_files(folder), key=rank):
            module = _module(name)
            left_of_module.setdefault(module, int(self.max_bytes * LARGEST_MODULE))
            most = min(left, left_of_module[module])
            if (folder / name).stat().st_size > MOST_TIMES * most:
                continue
            text = _source(folder / name)
            size = len(text.encode())
            if 0 < size <= most:
                chosen[name] = text
                left -= size
                left_of_module[module] -= size
        return dict(sorted(chosen.items()))


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


def _source(path: Path) -> str:
    """Decode a file by its declared encoding (PEP 263); return "" if that is impossible."""
    try:
        with path.open("rb") as file:
            encoding, _ = tokenize.detect_encoding(file.readline)
        return path.read_bytes().decode(encoding)
    except (SyntaxError, UnicodeDecodeError):
        return ""
