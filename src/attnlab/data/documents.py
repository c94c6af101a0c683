"""Read documents from files without a change of any byte.

A text file is one document, and so is a line of a .jsonl file; .gz is decompressed. Text is UTF-8,
and line ends, byte-order marks and blank lines are kept.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from attnlab.data.places import DataError

SPLITS = ("train", "valid", "test")
ENDINGS = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz")


class Measure(NamedTuple):
    """The hash of a sequence of documents, and the number of its UTF-8 bytes."""

    sha256: str
    n_bytes: int


def measure(documents: Iterable[str]) -> Measure:
    """Hash documents by their contents, their order and their boundaries."""
    digest, n_bytes = hashlib.sha256(), 0
    for document in documents:
        text = document.encode()
        digest.update(len(text).to_bytes(8, "little"))
        digest.update(text)
        n_bytes += len(text)
    return Measure(digest.hexdigest(), n_bytes)


def split_named(name: str) -> str | None:
    """Return the split that a file or folder with this name holds, or None.

    >>> split_named("validation.txt.gz"), split_named("training.txt")
    ('valid', None)
    """
    stem = name.partition(".")[0].lower()
    stem = {"val": "valid", "validation": "valid"}.get(stem, stem)
    return stem if stem in SPLITS else None


def read_documents(path: Path, field: str = "text") -> list[str]:
    """Return the documents of one file, without empty ones.

    Raises DataError if the file cannot be read or decompressed, if it is not UTF-8, or if a line of
    .jsonl has no text in `field`.
    """
    text = read_text(path)
    if ".jsonl" not in path.suffixes:
        return [text] if text else []
    # only "\n" ends a line of .jsonl: U+2028 and others may occur inside a JSON string
    lines = ((n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip())
    return [document for n, line in lines if (document := _field_of(line, field, f"{path}:{n}"))]


def read_text(path: Path) -> str:
    """Return the unchanged text of a file. Raises DataError like `read_documents`."""
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    except UnicodeDecodeError as error:
        remedy = "convert it, as in: iconv -f LATIN1 -t UTF-8"
        raise DataError(f"{path} is not UTF-8 at byte {error.start}; {remedy}") from None
    except (EOFError, zlib.error) as error:
        raise DataError(f"{path} is cut short or damaged: {error}") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None


def _field_of(line: str, field: str, where: str) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not JSON: {error}") from None
    if not isinstance(record, dict):
        raise DataError(f"{where} holds no JSON object")
    text = record.get(field)
    if not isinstance(text, str):
        known = ", ".join(record) or "none"
        raise DataError(
            f"{where} has no text in {field!r}; its fields: {known}. Set data.text_field"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where} holds half a surrogate pair: {error.reason}") from None
    return text
