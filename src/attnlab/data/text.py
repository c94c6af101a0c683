"""The user's text files: .txt, .jsonl and their kin, also with .gz, and folders of them.

The first of these rules that applies makes the splits:

1. Files, or their folders, named after train, valid and test are the splits, as in
   `train-00000-of-00002.jsonl` or `en/dev/0.txt` (`attnlab.data.places`). Others are not read.
   Files named after train alone are split by the next rules. A name that calls for another split
   than there is, or for two, is an error.
2. Whole documents are held out, chosen by their contents. A file is a document, and so is a line of
   .jsonl. Equal documents are in the same split.
3. If documents are too few or too large for that, the end of every document is held out, cut at a
   paragraph: of a single long file, its last `held_out`.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from attnlab.config import Problem
from attnlab.data.documents import TEXT_ENDINGS, is_text_name, measure, read_documents, read_text
from attnlab.data.hold_out import hold_out, tails
from attnlab.data.places import (
    SPLITS,
    DataError,
    NamedFile,
    Places,
    by_split,
    files_in,
    find,
    searched,
)
from attnlab.data.source import DataConfig, Texts
from attnlab.data.tokenizer import BPE, Bytes, Tokenizer

_RENAME = "name the files after train, valid and test, or set data.ignore_split_names=true"
SHAKESPEARE = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
_SHAKESPEARE = ("tinyshakespeare", "tiny_shakespeare", "tiny-shakespeare", "shakespeare_char")
_WIKITEXT = ("wikitext-2", "wikitext2", "wikitext_2", "wikitext-2-v1", "wikitext/wikitext-2-v1")
HUB = ("Salesforce/wikitext", "wikitext-2-v1")
HUB_PAGE = f"https://huggingface.co/datasets/{HUB[0]} ({HUB[1]})"


@dataclass(frozen=True, kw_only=True)
class Text(DataConfig):
    """Text files or folders.

    Relative paths are searched in the working directory, then in the data folder.
    """

    paths: tuple[str, ...]
    text_field: str = "text"  # the field of a .jsonl line that holds its text
    held_out: float = 0.1  # fraction of the text, half for validation and half for test
    ignore_split_names: bool = False  # True: hold out documents, whatever the names of the files
    tokenizer: Tokenizer = field(default_factory=lambda: BPE(vocab_size=8_192))

    def problems(self) -> Iterator[Problem]:
        if not self.paths or not all(path.strip() for path in self.paths):
            yield Problem("paths", "name at least one file or folder, none of them empty")
        if not 0 < self.held_out < 1:
            yield Problem("held_out", f"must lie between 0 and 1, got {self.held_out}")

    def texts(self, places: Places) -> Texts:
        files = self._files(places)
        named = {} if self.ignore_split_names else by_split(files, ", ".join(self.paths), _RENAME)
        whole = named.keys() <= {"train"}
        groups = {"whole": named.get("train", files)} if whole else named
        used = [file.path for group in groups.values() for file in group]
        for place in dict.fromkeys(file.place for file in files):
            if not any(path.is_relative_to(place) for path in used):
                raise DataError(f"{place} is not named after a split, but others are; {_RENAME}")
        splits, crlf, origin = dict[str, list[str]](), list[str](), list[str]()
        for split, group in groups.items():
            readings = [read_documents(file.path, self.text_field) for file in group]
            splits[split] = [text for reading in readings for text in reading.documents]
            names = [file.path.name for file in group]
            crlf += [name for name, reading in zip(names, readings, strict=True) if reading.crlf]
            origin += names
            if not splits[split]:
                lacks = f"; the {split} split would be empty" if split in SPLITS else ""
                raise DataError(f"{_listed(names)}: no text{lacks}; name others with data.paths")
        how = ""
        if whole:
            splits, how = _held_out(splits["whole"], self.held_out)
        return Texts(
            train=splits["train"],
            valid=splits["valid"],
            test=splits.get("test"),
            origin=_listed(origin) + how,
            notes=(f"{_listed(crlf)}: lines end in CRLF, which is kept; dos2unix removes it",)
            if crlf
            else (),
        )

    def _files(self, places: Places) -> list[NamedFile]:
        remedy = "Name files or folders with data.paths=A,B, or set ATTNLAB_DATA to their folder."
        found = [find(path, places, what="text", remedy=remedy) for path in self.paths]
        files = files_in(found, is_text_name, by_name=not self.ignore_split_names)
        if not files:
            raise DataError(
                f"{', '.join(map(str, found))} holds no file that ends in "
                f"{', '.join(TEXT_ENDINGS)}, also with .gz; name files that end otherwise one by "
                "one, with data.paths=A,B"
            )
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
        return splits, "; held out: whole documents"
    parts = zip(*(tails(document, share) for document in documents), strict=True)
    ends = [[part for part in split if part] for split in parts]
    return dict(zip(SPLITS, ends, strict=True)), "; held out: the end of each document"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 6 else f"{len(names)} files, {names[0]} to {names[-1]}"


@dataclass(frozen=True, kw_only=True)
class WikiText2(DataConfig):
    """WikiText-2: two million words of good and featured Wikipedia articles.

    This is the word-level edition, in which rare words are `<unk>` and punctuation is separated by
    spaces. Every split is one document. Merity et al. 2016 (arXiv:1609.07843).

    It is read from the folder `path`, else from the data folder or one in it with a usual name,
    else from the hub. The folder holds train, valid and test as .txt, as .txt.gz, or as
    wiki.train.tokens and so on.
    """

    path: str | None = None
    tokenizer: Tokenizer = field(default_factory=lambda: BPE(vocab_size=32_000))

    @classmethod
    def name(cls) -> str:
        return "wikitext2"

    def texts(self, places: Places) -> Texts:
        remedy = (
            "Put train.txt, valid.txt and test.txt (or .txt.gz) into a folder and name it with "
            f"data.path=DIR{'' if self.path else ' or ATTNLAB_DATA=DIR'}"
        )
        folders = searched(self.path, places, ("", *_WIKITEXT))
        for folder in folders:
            files = [_file_of(split, folder) for split in SPLITS]
            if None not in files:
                found = [file for file in files if file is not None]
                train, valid, test = ([read_text(file)] for file in found)
                origin = ", ".join(file.name for file in found)
                return Texts(train=train, valid=valid, test=test, origin=origin)
        tried: list[object] = [f"{folder}  (train, valid and test)" for folder in folders]
        if self.path is None:
            try:
                return _from_hub()
            except ImportError:
                tried.append("the Hugging Face hub (the package datasets is not installed)")
                remedy += "; or let it be downloaded, after: pip install datasets"
            except (OSError, ValueError) as error:
                reason = " ".join(str(error).split())[:200]
                tried.append(f"the Hugging Face hub ({reason})")
        raise DataError.missing("WikiText-2", tried, f"{remedy}. It comes from {HUB_PAGE}")


@dataclass(frozen=True, kw_only=True)
class TinyShakespeare(DataConfig):
    """Tiny Shakespeare: a million characters of plays; the last tenth is for validation.

    It is read from `path`, the file or a folder with input.txt, else from tinyshakespeare.txt or
    tinyshakespeare/input.txt in the data folder, or from another usual name. Its characters are
    ASCII, so that a byte is a character. There is no test split, as in nanoGPT, whose division this
    is.
    """

    path: str | None = None
    tokenizer: Tokenizer = field(default_factory=Bytes)

    def texts(self, places: Places) -> Texts:
        names = [name for stem in _SHAKESPEARE for name in (f"{stem}.txt", f"{stem}/input.txt")]
        tried = searched(self.path, places, names)
        if self.path is not None:
            tried += [folder / "input.txt" for folder in tried if folder.is_dir()]
        file = next((path for path in tried if path.is_file()), None)
        if file is None:
            remedy = (
                "Name the file with data.path=FILE, or put it into a folder and set ATTNLAB_DATA "
                f"to that. To download it: curl -L -o tinyshakespeare.txt {SHAKESPEARE}"
            )
            raise DataError.missing("Tiny Shakespeare", tried, remedy)
        text = read_text(file)
        end = int(0.9 * len(text))
        return Texts(train=[text[:end]], valid=[text[end:]], test=None, origin=file.name)


def _file_of(split: str, folder: Path) -> Path | None:
    names = (f"{split}.txt", f"{split}.txt.gz", f"wiki.{split}.tokens")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _from_hub() -> Texts:
    """Download the same bytes as in the files. Raises ImportError, or the download's error."""
    splits: Mapping[str, Iterable[Mapping[str, Any]]] = import_module("datasets").load_dataset(*HUB)
    # blank lines are empty on the hub, and one space in the files
    train, valid, test = (
        ["".join(row["text"] or " \n" for row in splits[split])]
        for split in ("train", "validation", "test")
    )
    return Texts(train=train, valid=valid, test=test, origin=f"Hugging Face hub, {' '.join(HUB)}")
