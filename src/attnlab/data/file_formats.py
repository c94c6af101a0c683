"""Recognise files that are not plain text by their content, whatever their names are."""

import csv
import json
import re
from pathlib import Path
from typing import NamedTuple

from attnlab.data.places import DataError

LINES_ENDINGS = (".jsonl", ".ndjson", ".jsonlines", ".json")
HEAD = 1 << 16  # bytes from the beginning of a file that tell tables and encodings

_GIVE_TEXT = "text is read from .txt and .jsonl files, also with .gz"
_UNPACK = "unpack it and name the folder"
_DECOMPRESS = "decompress it, or compress it with gzip and let its name end in .gz"
_TO_LINES = (
    "write its text as JSON lines, as in: "
    "pandas.read_{}('FILE').to_json('text.jsonl', orient='records', lines=True)"
)
_EXTRACT = "extract its text into a .txt file"
_TOKENS = "token ids are read with data=tokens"
_PICKLE = "pickles can run code and are never read: save its text in a .txt or .jsonl file"
_NAME = "let its name end in .gz"

_SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (  # offset, bytes, format, remedy
    (0, b"PAR1", "a Parquet file", "let its name end in .parquet"),
    (0, b"PARE", "an encrypted Parquet file", _TO_LINES.format("parquet")),
    (0, b"ARROW1", "an Arrow file", "let its name end in .arrow"),
    (0, b"FEA1", "a Feather file", _TO_LINES.format("feather")),
    (0, b"\xff\xff\xff\xff", "an Arrow stream", "let its name end in .arrow"),
    (0, b"ORC", "an ORC file", _TO_LINES.format("orc")),
    (0, b"Obj\x01", "an Avro file", "write its text as JSON lines"),
    (0, b"\x89HDF\r\n", "an HDF5 file", "write its text as JSON lines"),
    (0, b"SQLite format 3\0", "an SQLite database", "write its text as JSON lines"),
    (0, b"PK\x03\x04", "a zip archive", _UNPACK),
    (0, b"PK\x05\x06", "an empty zip archive", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (0, b"Rar!\x1a\x07", "a rar archive", _UNPACK),
    (0, b"!<arch>\n", "an ar archive", _UNPACK),
    (0, b"\x1f\x8b", "compressed with gzip", _NAME),
    (0, b"BZh", "compressed with bzip2", _DECOMPRESS),
    (0, b"\xfd7zXZ\0", "compressed with xz", _DECOMPRESS),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", _DECOMPRESS),
    (0, b"\x04\x22\x4d\x18", "compressed with lz4", _DECOMPRESS),
    (0, b"\x1f\x9d", "compressed with compress", _DECOMPRESS),
    (0, b"%PDF-", "a PDF document", "extract its text, as in: pdftotext FILE"),
    (0, b"%!PS", "a PostScript document", _EXTRACT),
    (0, b"{\\rtf", "an RTF document", _EXTRACT),
    (0, b"\xd0\xcf\x11\xe0", "a Microsoft Office document", _EXTRACT),
    (0, b"\x89PNG", "a PNG image", _GIVE_TEXT),
    (0, b"\xff\xd8\xff", "a JPEG image", _GIVE_TEXT),
    (0, b"GIF8", "a GIF image", _GIVE_TEXT),
    (0, b"RIFF", "an image, sound or video", _GIVE_TEXT),
    (0, b"\x7fELF", "a program", _GIVE_TEXT),
    (0, b"\x93NUMPY", "a NumPy array", _TOKENS),
    (0, b"version https://git-lfs.github.com", "a pointer of Git LFS", "fetch it: git lfs pull"),
    *((0, b"\x80" + bytes([n]), "a pickle", _PICKLE) for n in range(2, 6)),
    (0, b"\0\0\xfe\xff", "UTF-32 text", "convert it: iconv -f UTF-32 -t UTF-8 FILE"),
    (0, b"\xff\xfe\0\0", "UTF-32 text", "convert it: iconv -f UTF-32 -t UTF-8 FILE"),
    (0, b"\xff\xfe", "UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8 FILE"),
    (0, b"\xfe\xff", "UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8 FILE"),
)
_TEXTUAL = (b"%", b"{", b"!", b"version")  # signatures of formats that can be UTF-8
_OLD_PICKLE = re.compile(
    rb"\([ld]p\d*\n|c(copy_?reg|__builtin__|builtins|collections|numpy|pandas|torch)[\w.]*\n\w+\n"
)
_HEADER = re.compile(r'"?[\w-]+"?(?:([,;\t|])"?[\w-]+"?)+')
_MOST_RECORDS = 50  # that are compared


class Foreign(NamedTuple):
    """A format that is not plain text."""

    name: str  # "a zip archive"
    remedy: str


def require_text(raw: bytes, path: Path, *, lines: bool) -> None:
    """Raise DataError if the decompressed bytes of a file are not plain text.

    With `lines`, they are read as JSON lines, and else JSON and tables are refused, too.
    """
    found = _binary(raw) or _json_array(raw) or (None if lines else _structured(raw, path.name))
    if found is not None:
        remedy = found.remedy.replace("FILE", path.name)
        raise DataError(f"{path} is {found.name}, not plain text: {remedy}")


def _binary(raw: bytes) -> Foreign | None:
    for offset, signature, name, remedy in _SIGNATURES:
        if raw.startswith(signature, offset) and (
            signature.startswith(_TEXTUAL) or not _is_utf8(raw)
        ):
            return Foreign(name, remedy)
    if _OLD_PICKLE.match(raw) and raw.rstrip().endswith(b"."):
        return Foreign("a pickle", _PICKLE)
    nul = raw.find(b"\0")
    if nul < 0:
        return None
    encoding = _wide_encoding(raw[:HEAD])
    if encoding:
        return Foreign(f"{encoding} text", f"convert it: iconv -f {encoding} -t UTF-8 FILE")
    return Foreign(f"binary data (a NUL byte at {nul})", _GIVE_TEXT)


def _is_utf8(raw: bytes) -> bool:
    """Return True for UTF-8 without NUL bytes, as of a text that begins with "ORCHARD"."""
    try:
        return "\0" not in raw.decode()
    except UnicodeDecodeError:
        return False


def _wide_encoding(head: bytes) -> str | None:
    """Return UTF-16 or UTF-32 with its byte order if zeros fill the high bytes of characters."""
    for encoding, width, low in (
        *(("UTF-32LE", 4, 0), ("UTF-32BE", 4, 3), ("UTF-16LE", 2, 0), ("UTF-16BE", 2, 1)),
    ):
        whole = head[: len(head) // width * width]
        zeros = [whole[i::width].count(0) for i in range(width)]
        n_characters = len(whole) // width
        high = [n for i, n in enumerate(zeros) if i != low]
        if n_characters and zeros[low] <= n_characters / 20 and min(high) >= n_characters / 2:
            return encoding
    return None


def _structured(raw: bytes, name: str) -> Foreign | None:
    """Return the format of JSON lines or of a table under another name."""
    head = _head(raw)
    first, _, _ = head.partition("\n")
    if first.startswith("{") and isinstance(_json_value(first), dict):
        return Foreign("JSON lines", "let its name end in .jsonl")
    if name.lower().removesuffix(".gz").endswith((".csv", ".tsv")) or _is_table(head):
        return Foreign("a table with columns", _TO_LINES.format("csv"))
    return None


def _json_array(raw: bytes) -> Foreign | None:
    head = _head(raw)
    if not (head.startswith("[") and raw.rstrip().endswith(b"]")):
        return None
    array = _json_value(head)
    if len(raw) > HEAD:  # its first item only
        try:
            array = [json.JSONDecoder().raw_decode(head, len(head) - len(head[1:].lstrip()))]
        except (ValueError, RecursionError):
            array = None
    if not (isinstance(array, list) and array):
        return None
    return Foreign("a JSON array", "write one object per line: jq -c '.[]' FILE > text.jsonl")


def _head(raw: bytes) -> str:
    return raw[:HEAD].decode(errors="replace").lstrip("\ufeff").strip()


def _json_value(text: str) -> object:
    """Return the value of JSON text, or None if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_table(head: str) -> bool:
    """Return True if lines have equally many fields, below a header or after numbers or tabs.

    A header is a line of single words. Without one, ten records are needed that begin with a
    number, or have tabs inside.
    """
    first, _, _ = head.partition("\n")
    header = _HEADER.fullmatch(first.strip())
    delimiter = header[1] if header else "\t" if "\t" in first.strip() else ","
    lines = head.splitlines(keepends=True)
    try:
        records = [fields for fields in csv.reader(lines, delimiter=delimiter) if fields]
    except csv.Error:
        return False
    records = records[:-1] if len(head) > HEAD // 2 else records  # the last one may be cut
    records = records[:_MOST_RECORDS]
    if len({len(fields) for fields in records}) != 1 or len(records[0]) == 1:
        return False
    numbered = all(fields[0].strip().isdigit() for fields in records)
    tabs = delimiter == "\t" and all(fields[0].strip() for fields in records)
    return len(records) > 2 if header else len(records) > 9 and (numbered or tabs)
