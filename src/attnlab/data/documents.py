"""Read documents from files.

A text file is one document, and so is a line of a .jsonl file, and a row of a .parquet or .arrow
file, which pyarrow reads; .gz is decompressed. Text is UTF-8.
A byte-order mark at the beginning of a file is removed; line ends and blank lines are kept.
"""

import codecs
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from attnlab.data.file_formats import LINES_ENDINGS, require_text
from attnlab.data.places import DataError, require_file

ROWS_ENDINGS = (".parquet", ".arrow")
TEXT_ENDINGS = (
    ".txt",
    ".text",
    ".raw",
    ".tokens",
    ".jsonl",
    ".ndjson",
    ".jsonlines",
    *ROWS_ENDINGS,
)
MARKER = re.compile(r"<\|\w{1,40}\|>")  # <|endoftext|> and its kind: no text, so no bytes
EXPANSION = 100  # times; text does not compress so well
CHUNK = 1 << 24


class Measure(NamedTuple):
    """The hash of a sequence of documents, and the number of its UTF-8 bytes."""

    sha256: str
    n_bytes: int


class Reading(NamedTuple):
    """The documents of one file, without empty ones."""

    documents: list[str]
    crlf: bool  # lines end as on Windows


def measure(documents: Iterable[str]) -> Measure:
    """Hash documents by their contents, their order and their boundaries."""
    digest, n_bytes = hashlib.sha256(), 0
    for document in documents:
        text = document.encode()
        digest.update(len(text).to_bytes(8, "little"))
        digest.update(text)
        n_bytes += len(text)
    return Measure(digest.hexdigest(), n_bytes)


def text_bytes(measured: Measure, documents: Iterable[str]) -> int:
    """Return the number of UTF-8 bytes of documents without markers such as <|endoftext|>."""
    marked = (marker for text in documents if "<|" in text for marker in MARKER.findall(text))
    return measured.n_bytes - sum(len(marker.encode()) for marker in marked)


def is_text_name(name: str) -> bool:
    """Return True for the name of a file that is read as text in a folder."""
    return name.lower().removesuffix(".gz").endswith(TEXT_ENDINGS)


def read_documents(path: Path, field: str = "text") -> Reading:
    """Return the documents of one file.

    Raises DataError if the file cannot be read or decompressed, if it is not text in UTF-8, or if a
    line of .jsonl, or a row, has no text in `field`.
    """
    if path.name.lower().endswith(ROWS_ENDINGS):
        return Reading([document for document in _rows(path, field) if document], crlf=False)
    lines = path.name.lower().removesuffix(".gz").endswith(LINES_ENDINGS)
    text = read_text(path, lines=lines)
    if not lines:
        return Reading([text] if text else [], crlf="\r\n" in text)
    return Reading([document for document in _fields(text, field, path) if document], crlf=False)


def read_text(path: Path, *, lines: bool = False) -> str:
    """Return the text of a file. Raises DataError like `read_documents`."""
    raw = read_bytes(path)
    require_text(raw, path, lines=lines)
    try:
        return raw.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        remedy = f"convert it, as in: iconv -f LATIN1 -t UTF-8 {path.name}"
        raise DataError(f"{path} is not UTF-8 at byte {error.start}; {remedy}") from None


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a file, decompressed if its name ends in .gz.

    Raises DataError if it is not a regular file, cannot be read, or expands like no text does.
    """
    require_file(path)
    try:
        return _decompressed(path) if path.suffix.lower() == ".gz" else path.read_bytes()
    except (EOFError, zlib.error) as error:
        raise DataError(f"{path} is cut short or damaged: {error}") from None
    except gzip.BadGzipFile as error:
        raise DataError(
            f"cannot read {path}: {error}; if it is plain, drop .gz from its name"
        ) from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    except MemoryError:
        raise DataError(f"{path} does not fit into memory: give a part of it") from None


def expands_too_much(compressed: int, expanded: int) -> bool:
    """Return True if so few bytes cannot hold text or token ids of so many."""
    return expanded > 2 * CHUNK and expanded > EXPANSION * compressed


def _decompressed(path: Path) -> bytes:
    compressed, parts, n_bytes = path.stat().st_size, list[bytes](), 0
    with gzip.open(path) as file:
        while part := file.read(CHUNK):
            parts.append(part)
            n_bytes += len(part)
            if expands_too_much(compressed, n_bytes):
                raise DataError(
                    f"{path} expands more than {EXPANSION}-fold, as text does not: decompress it "
                    "yourself if it is text"
                )
    return b"".join(parts)


def _rows(path: Path, field: str) -> list[str]:
    """Return the column `field` of a Parquet file, or of an Arrow file or stream."""
    require_file(path)
    try:
        arrow: Any = import_module("pyarrow")
        ipc: Any = import_module("pyarrow.ipc")
        parquet: Any = import_module("pyarrow.parquet")
    except ImportError:
        raise DataError(
            f"{path}: .parquet and .arrow files need pyarrow: pip install 'attnlab[hub]'"
        ) from None
    try:
        if path.name.lower().endswith(".parquet"):
            table = parquet.ParquetFile(path).read()
        else:
            with arrow.memory_map(str(path)) as file:
                is_file = bytes(file.read(6)) == b"ARROW1"
                file.seek(0)
                table = (ipc.open_file if is_file else ipc.open_stream)(file).read_all()
    except (arrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} is damaged, or no such file: {reason}") from None
    if field not in table.column_names:
        known = ", ".join(table.column_names) or "none"
        raise DataError(f"{path} has no column {field!r}; it has {known}. Set data.text_field")
    texts: list[Any] = table.column(field).to_pylist()
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            shown = repr(text)[:20]
            raise DataError(f"{path}: row {row} of {field!r} is {shown}, not text; remove it")
    return texts


def _fields(text: str, field: str, path: Path) -> Iterator[str]:
    # only "\n" ends a line of .jsonl: U+2028 and others may occur inside a JSON string
    for n, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _field_of(line, field, f"{path}:{n}")


def _field_of(line: str, field: str, where: str) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(
            f"{where} is not JSON ({error}); JSON lines hold one object per line, and the name of "
            "plain text ends in .txt"
        ) from None
    except RecursionError:
        raise DataError(f"{where} is nested too deeply for a JSON reader") from None
    if not isinstance(record, dict):
        raise DataError(f"{where} is {line.strip()[:20]}, not a JSON object; remove this line")
    if field not in record:
        known = ", ".join(record) or "none"
        raise DataError(
            f"{where} has no text in {field!r}; its fields: {known}. Set data.text_field"
        )
    text = record[field]
    if not isinstance(text, str):
        shown = json.dumps(text)[:20]
        raise DataError(
            f"{where}: {field!r} is {shown}, not text; remove this line, or set data.text_field"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where} holds half a surrogate pair: {error.reason}") from None
    return text
