"""Text files of the user: .txt, .txt.gz, .jsonl and .jsonl.gz, and folders of them.

Splits, by the first of these that applies:

1. files, or folders above them, called train, valid (val, validation) and test: these alone;
2. whole documents are held out (a file is one, a line of .jsonl is one), chosen by their contents,
   the same document always on one side;
3. if documents are too few or too large for that, the end of every document is held out, cut at
   a paragraph: of a single long file its last `held_out`.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from attnlab.config import Problem
from attnlab.data.documents import ENDINGS, SPLITS, measure, read_documents, split_named
from attnlab.data.hold_out import hold_out, tails
from attnlab.data.places import DataError, Places
from attnlab.data.source import DataConfig, Texts
from attnlab.data.tokenizer import BPE, Tokenizer


@dataclass(frozen=True, kw_only=True)
class Text(DataConfig):
    """Text files. Relative paths are looked up as they stand, then in the data folder."""

    paths: tuple[str, ...]
    text_field: str = "text"  # field of a .jsonl line that holds its text
    held_out: float = 0.1  # share of the text, half of it for validation and half for test
    tokenizer: Tokenizer = field(default_factory=lambda: BPE(vocab_size=8_192))

    def problems(self) -> Iterator[Problem]:
        if not self.paths:
            yield Problem("paths", "name at least one file or folder")
        if not 0 < self.held_out < 1:
            yield Problem("held_out", f"must lie between 0 and 1, got {self.held_out}")

    def texts(self, places: Places) -> Texts:
        files = [file for path in self.paths for file in _files(path, places)]
        files = list({file.path.resolve(): file for file in files}.values())  # each once
        by_split: defaultdict[str | None, list[_File]] = defaultdict(list)
        for file in files:
            by_split[file.split].append(file)
        if "train" in by_split and by_split.keys() - {"train", None}:
            if "valid" not in by_split:
                raise DataError(
                    f"{', '.join(self.paths)}: files called train and test, and none called valid"
                )
            return self._named(by_split)
        documents = self._documents(files)
        splits, how = _held_out(documents, self.held_out)
        return Texts(**splits, origin=f"{_listed(files)}; held out: {how}")

    def _named(self, by_split: Mapping[str | None, "Sequence[_File]"]) -> Texts:
        chosen = {split: by_split[split] for split in SPLITS if split in by_split}
        documents = {split: self._documents(files) for split, files in chosen.items()}
        return Texts(
            train=documents["train"],
            valid=documents["valid"],
            test=documents.get("test"),
            origin=_listed([file for files in chosen.values() for file in files]),
        )

    def _documents(self, files: "Sequence[_File]") -> list[str]:
        return [text for file in files for text in read_documents(file.path, self.text_field)]


class _File(NamedTuple):
    path: Path
    split: str | None  # from its name, or that of a folder below the one given


def _files(path: str, places: Places) -> list[_File]:
    tried = [Path(path).expanduser()]
    if places.data and not tried[0].is_absolute():
        tried.append(places.data / path)
    found = next((place for place in tried if place.exists()), None)
    if found is None:
        remedy = "Name files or folders with data.paths=A,B, or set ATTNLAB_DATA to their folder."
        raise DataError.missing(f"text {path!r}", tried, remedy)
    if found.is_file():
        return [_File(found, split_named(found.name))]
    inside = sorted(file.relative_to(found) for file in found.rglob("*") if file.is_file())
    files = [
        _File(found / file, next(filter(None, map(split_named, file.parts)), None))
        for file in inside
        if file.name.endswith(ENDINGS) and not any(part.startswith(".") for part in file.parts)
    ]
    if not files:
        raise DataError(f"{found} holds no file that ends in {', '.join(ENDINGS)}")
    return files


def _held_out(documents: Sequence[str], share: float) -> tuple[dict[str, list[str]], str]:
    """Return the documents of each split, and a description of how they were chosen."""
    contents = [measure([document]) for document in documents]
    sizes: defaultdict[str, int] = defaultdict(int)
    for sha256, n_bytes in contents:
        sizes[sha256] += n_bytes
    split_of, splits = hold_out(sizes, share), {split: list[str]() for split in SPLITS}
    for document, (sha256, _) in zip(documents, contents, strict=True):
        splits[split_of[sha256]].append(document)
    half_full = share / 4 * sum(sizes.values())
    if min(measure(splits[split]).n_bytes for split in ("valid", "test")) >= half_full > 0:
        return splits, "whole documents"
    parts = zip(*(tails(document, share) for document in documents), strict=True)
    ends = [[part for part in split if part] for split in parts]
    return dict(zip(SPLITS, ends or [[], [], []], strict=True)), "the end of each document"


def _listed(files: Sequence[_File]) -> str:
    names = [file.path.name for file in files]
    return ", ".join(names) if len(names) <= 6 else f"{len(names)} files, {names[0]} to {names[-1]}"
