"""Files that are not text are refused by their content, in one line that says what to do."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import random
import tarfile
import zipfile

import pytest

from attnlab.data.documents import read_documents
from attnlab.data.places import DataError, Places
from attnlab.data.text import Text

PROSE = "".join(
    f"Document {i}: the quick brown fox jumps over dog {i * 7919}.\n" for i in range(60)
)
LINES = "".join(json.dumps({"text": line}) + "\n" for line in PROSE.splitlines())
TABLE = "id,text\n" + "".join(f'{i},"{line}"\n' for i, line in enumerate(PROSE.splitlines()))
TABS = "".join(f"{line}\t{line.upper()}\n" for line in PROSE.splitlines())
NOISE = random.Random(0).randbytes(400)


def tar(mode="w"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        info = tarfile.TarInfo("train.txt")
        info.size = len(PROSE)
        archive.addfile(info, io.BytesIO(PROSE.encode()))
    return buffer.getvalue()


def zipped():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("train.txt", PROSE)
    return buffer.getvalue()


REFUSED = [  # name, bytes, words of the error
    ("a.txt", PROSE.encode("utf-16"), "UTF-16 text, not plain text: convert it: iconv -f UTF-16"),
    ("a.txt", PROSE.encode("utf-16-le"), "UTF-16LE text.*iconv -f UTF-16LE -t UTF-8 a.txt"),
    ("a.txt", PROSE.encode("utf-16-be"), "UTF-16BE text"),
    ("a.txt", PROSE.encode("utf-32"), "UTF-32 text"),
    ("a.txt", PROSE.encode("utf-32-le"), "UTF-32LE text"),
    ("a.txt", PROSE.encode("utf-32-be"), "UTF-32BE text"),
    ("a.jsonl", LINES.encode("utf-16"), "UTF-16 text"),
    ("a.txt.gz", gzip.compress(PROSE.encode("utf-16-le")), "UTF-16LE text"),
    ("a.txt", "Ærøskøbing café".encode("latin-1"), "not UTF-8 at byte 0; .*iconv -f LATIN1"),
    ("a.txt", b"PAR1" + NOISE + b"PAR1", "a Parquet file.*read_parquet.a.txt"),
    ("a.parquet", b"PAR1" + NOISE + b"PAR1", "a Parquet file.*JSON lines"),
    ("a.txt", b"ARROW1\0\0" + NOISE, "an Arrow file"),
    ("a.arrow", b"\xff\xff\xff\xff\x10\0\0\0" + NOISE, "an Arrow stream"),
    ("a.txt", b"ORC" + NOISE, "an ORC file"),
    ("a.txt", b"Obj\x01" + NOISE, "an Avro file"),
    ("a.txt", b"\x89HDF\r\n\x1a\n" + NOISE, "an HDF5 file"),
    ("a.txt", b"SQLite format 3\0" + NOISE, "an SQLite database"),
    ("a.zip", zipped(), "a zip archive.*unpack it"),
    ("a.txt", zipped(), "a zip archive.*unpack it"),
    ("a.txt.gz", gzip.compress(zipped()), "a zip archive.*unpack it"),
    ("a.tar", tar(), "a tar archive.*unpack it"),
    ("a.tar.gz", tar("w:gz"), "a tar archive.*unpack it"),
    ("a.txt", tar(), "a tar archive"),
    ("a.txt", gzip.compress(PROSE.encode()), "compressed with gzip.*end in .gz"),
    ("a.tgz", tar("w:gz"), "compressed with gzip"),
    ("a.txt.gz", gzip.compress(gzip.compress(PROSE.encode())), "compressed with gzip"),
    ("a.txt.bz2", bz2.compress(PROSE.encode()), "compressed with bzip2.*decompress it"),
    ("a.txt.xz", lzma.compress(PROSE.encode()), "compressed with xz"),
    ("a.jsonl.zst", b"\x28\xb5\x2f\xfd" + NOISE, "compressed with zstd"),
    ("a.txt", b"7z\xbc\xaf\x27\x1c" + NOISE, "a 7z archive"),
    ("a.txt", b"Rar!\x1a\x07" + NOISE, "a rar archive"),
    ("a.txt", b"%PDF-1.7\n" + NOISE, "a PDF document.*pdftotext a.txt"),
    ("a.txt", b"{\\rtf1\\ansi hello}", "an RTF document"),
    ("a.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + NOISE, "a Microsoft Office document"),
    ("a.txt", b"\x89PNG\r\n\x1a\n" + NOISE, "a PNG image"),
    ("a.txt", b"\xff\xd8\xff\xe0" + NOISE, "a JPEG image"),
    ("a.txt", b"RIFF\x10\0\0\0WEBP" + NOISE, "an image, sound or video"),
    ("a.txt", b"\x7fELF\x02" + NOISE, "a program"),
    ("a.txt", b"\x93NUMPY\x01\0" + NOISE, "a NumPy array.*data=tokens"),
    ("a.txt", pickle.dumps([PROSE]), "a pickle.*never read"),
    ("a.jsonl", pickle.dumps([PROSE], protocol=2), "a pickle"),
    ("a.txt", pickle.dumps([PROSE], protocol=0), "a pickle"),
    ("a.txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ("a.txt", PROSE.encode() + b"\0", "binary data .a NUL byte at"),
    ("a.txt", bytes(1000), "binary data .a NUL byte at 0"),
    ("a.csv", TABLE.encode(), "a table with columns.*read_csv.a.csv"),
    ("a.txt", TABLE.encode(), "a table with columns"),
    ("a.txt", TABLE.replace(",", ";").encode(), "a table with columns"),
    ("a.txt.gz", gzip.compress(TABLE.encode()), "a table with columns"),
    ("a.tsv", b"one\ttwo\n", "a table with columns"),
    ("a.txt", TABS.encode(), "a table with columns"),
    ("a.txt", TABLE.partition("\n")[2].encode(), "a table with columns"),
    ("a.txt", LINES.encode(), "JSON lines, not plain text: let its name end in .jsonl"),
    ("a.txt", json.dumps([PROSE, PROSE]).encode(), "a JSON array.*jq"),
    ("a.json", json.dumps([{"text": PROSE}], indent=2).encode(), "a JSON array.*jq"),
    ("a.jsonl", json.dumps([{"text": PROSE}] * 99).encode(), "a JSON array.*a.jsonl > text.jsonl"),
    ("a.json", json.dumps({"text": PROSE}, indent=2).encode(), "a.json:1 is not JSON"),
    ("a.jsonl", b"null\n", "a.jsonl:1 is null, not a JSON object; remove this line"),
    ("a.jsonl", b"[1]\n[2]\n", r"a.jsonl:1 is \[1\], not a JSON object"),
    ("a.jsonl", b'{"text": null}\n', "a.jsonl:1: 'text' is null, not text; remove this line"),
    ("a.jsonl", b'{"text": ["a"]}\n', "'text' is ..a.., not text.*data.text_field"),
    ("a.jsonl", b'{"text": 7}\n', "'text' is 7, not text"),
    ("a.jsonl", b'{"body": "x", "id": 1}', "no text in 'text'; its fields: body, id. Set data.te"),
    ("a.jsonl", b'{"text": "x"}\n{"text"\n', "a.jsonl:2 is not JSON"),
    ("a.jsonl", PROSE.encode(), "a.jsonl:1 is not JSON.*plain text ends in .txt"),
    ("a.jsonl", b'{"text": "\\ud800"}', "a.jsonl:1 holds half a surrogate pair"),
    ("a.jsonl", b'{"a":' * 100_000, "a.jsonl:1 is nested too deeply"),
    ("a.jsonl", b"[" * 100_000, "a.jsonl:1 is nested too deeply"),
    ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", "a.jsonl:1 is not JSON .*digits"),
    ("a.txt", b"", "a.txt: no text"),
    ("a.txt", b"\xef\xbb\xbf", "a.txt: no text"),
    ("a.jsonl", b"\n\n", "a.jsonl: no text"),
    ("a.txt.gz", gzip.compress(PROSE.encode())[:-9], "a.txt.gz is cut short or damaged"),
    ("a.txt.gz", PROSE.encode(), "cannot read .*a.txt.gz: Not a gzipped file"),
    ("a.txt.gz", gzip.compress(bytes(40 << 20)), "a.txt.gz expands more than 100-fold"),
]

TEXTS = [  # name, bytes, the documents that are read
    ("a.txt", b"\xef\xbb\xbf" + PROSE.encode(), [PROSE]),
    ("a.jsonl", b"\xef\xbb\xbf" + LINES.encode(), PROSE.splitlines()),
    ("a.jsonl", LINES.replace("\n", "\r\n").encode(), PROSE.splitlines()),
    ("a.json", LINES.encode(), PROSE.splitlines()),
    ("a.txt", b"ORCHARD, PAR1, RIFF and Rar!", None),
    ("ORC.txt", b"ORCHARD keepers", None),
    ("a.txt", b"[Illustration]\n\nChapter one, in which [nothing] happens [at all]", None),
    ("a.txt", b'["Hello," he said, "is it me?"]', None),
    ("a.txt", b"{\n  if (x) return;\n}\n", None),
    ("a.txt", b"chapter\none\nis the last.", None),
    ("a.txt", b"Roses are red, violets are blue,\n" * 30, None),
    ("a.txt", b"\tindented\n" * 30, None),
    ("a.txt", b"one,two\n", None),
    ("a.html", b"<!DOCTYPE html><p>text</p>", None),
    ("a.md", b"# Title\n\n| a | b |\n|---|---|\n| 1 | 2 |\n", None),
    ("a.txt", "Ærøskøbing, 東京, \U0001f98a\u2028\x0c\x1b[0m".encode(), None),
]


@pytest.mark.parametrize(("name", "raw", "words"), REFUSED, ids=range(len(REFUSED)))
def test_no_text_is_refused_in_one_line(tmp_path, name, raw, words):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=f"(?s){words}") as error:
        Text(paths=(str(tmp_path / name),)).texts(Places(None, tmp_path))
    assert "\n" not in str(error.value)
    assert name in str(error.value)


@pytest.mark.parametrize(("name", "raw", "documents"), TEXTS, ids=range(len(TEXTS)))
def test_text_that_looks_like_something_else_is_read(tmp_path, name, raw, documents):
    (tmp_path / name).write_bytes(raw)
    assert read_documents(tmp_path / name).documents == (documents or [raw.decode()])


def make(path, kind):
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "dangling":
        path.symlink_to("nowhere.txt")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("pipe", "is a pipe, not a file; save its content to a file"),
        ("device", "is a device, not a file"),
        ("dangling", "links to nowhere.txt, which does not exist"),
        ("loop", "cannot read .*symbolic links"),
        ("folder", "holds no file that ends in .txt"),
    ],
)
@pytest.mark.parametrize("inside", [False, True], ids=["named", "in a folder"])
def test_what_is_no_file_is_said_without_waiting_for_it(tmp_path, kind, words, inside):
    make(tmp_path / "train.txt", kind)
    named = tmp_path if inside else tmp_path / "train.txt"
    with pytest.raises(DataError, match=words):
        Text(paths=(str(named),)).texts(Places(None, tmp_path))


@pytest.mark.parametrize("path", ["a\0b", "~nobody-of-this-name/x", "x" * 5000, "/proc/1/mem"])
def test_a_path_that_leads_nowhere_is_one_error(tmp_path, path):
    with pytest.raises(DataError):
        Text(paths=(path,)).texts(Places(tmp_path, tmp_path))
