"""The user's text files: .txt, .txt.gz, .jsonl and .jsonl.gz, and folders of them.

The first of these rules that applies makes the splits:

1. Files, or their folders, named train, valid (val, validation) and test are the splits.
2. Whole documents are held out, chosen by their contents. A file is a document, and so is a line of
   .jsonl. Equal documents are in the same split.
3. If documents are too few or too large for that, the end of every document is held out, cut at a
   paragraph: of a single long file, its last `held_out`.
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
    """Text files or folders.

    Relative paths are searched in the working directory, then in the data folder.
    """

    paths: tuple[str, ...]
    text_field: str = "text"  # the field of a .jsonl line that holds its text
    held_out: float = 0.1  # fraction of the text, half for validation and half for test
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
                    f"{', '.join(self.paths)}: files are named train and test, but none valid"
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
    split: str | None  # named by the file, or by a folder within the given one


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
    """Return the documents of each split, and a description of the rule that chose them."""
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
