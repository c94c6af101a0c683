"""Text of one's own: files are read to the byte, and what is held out follows from the text.

Files that are not text are refused by their content, in one line that says what to do.
"""

import bz2
import gzip
import importlib.util
import io
import json
import lzma
import os
import pickle
import random
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from attnlab.config import ConfigError
from attnlab.data.documents import read_documents
from attnlab.data.places import DataError, Places
from attnlab.data.text import Text


def texts(*paths, data=None, **settings):
    return Text(paths=tuple(map(str, paths)), **settings).texts(Places(data, data))


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def lines_of(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


def a_thousand(folder):
    """A thousand different documents of about the same size."""
    return write(folder / "all.jsonl", lines_of(*({"text": f"number {i:04}"} for i in range(1000))))


def test_every_kind_of_file_is_read_as_it_is(tmp_path):
    write(tmp_path / "train" / "a.txt", "\ufeffone\r\n\n")
    write(tmp_path / "train" / "b.txt.gz", "twø\u2028")
    write(tmp_path / "train" / "c.jsonl", lines_of({"text": "three\u2028x"}, {"text": ""}) + "\n")
    write(tmp_path / "train" / "d.jsonl.gz", lines_of({"text": "four"}))
    write(tmp_path / "train" / "ignored.md", "no")
    write(tmp_path / "train" / ".hidden" / "x.txt", "no")
    write(tmp_path / "valid" / "e.txt", "five")
    found = texts(tmp_path)
    assert found.train == ["one\r\n\n", "twø\u2028", "three\u2028x", "four"]
    assert found.notes == ("a.txt: lines end in CRLF, which is kept; dos2unix removes it",)
    assert found.valid == ["five"]
    assert found.test is None


@pytest.mark.parametrize("valid", ["valid.txt", "val.jsonl", "validation.txt.gz", "Val/0.txt"])
def test_files_or_folders_called_after_a_split_are_that_split_and_no_others_are_read(
    tmp_path, valid
):
    write(tmp_path / "train.txt", "learn")
    write(tmp_path / valid, lines_of({"text": "check"}) if valid.endswith("jsonl") else "check")
    write(tmp_path / "test.txt", "prove")
    write(tmp_path / "ABOUT.txt", "not part of it")
    found = texts(tmp_path)
    assert (found.train, found.valid, found.test) == (["learn"], ["check"], ["prove"])


def test_splits_may_be_named_file_by_file(tmp_path):
    train = write(tmp_path / "x" / "train.txt", "learn")
    valid = write(tmp_path / "y" / "valid.txt", "check")
    assert texts(valid, train).train == ["learn"]


# files, and the splits that they are: None if they are pooled, or the words of an error
NAMES = [
    ("train-00000-of-00002.jsonl train-00001-of-00002.jsonl validation-00000-of-00001.jsonl", "tv"),
    ("train-0.jsonl.gz validation-0.jsonl.gz test-0.jsonl.gz", "tve"),
    ("wikitext/train.txt wikitext/valid.txt wikitext/test.txt", "tve"),
    ("wiki.train.raw wiki.valid.raw wiki.test.raw", "tve"),
    ("wiki.train.tokens wiki.valid.tokens wiki.test.tokens", "tve"),
    ("en/train/0.txt en/valid/0.txt de/train/0.txt de/valid/0.txt", "tv"),
    ("TRAIN.TXT DEV.TXT TEST.TXT", "tve"),
    ("trn.txt dev.txt tst.txt", "tve"),
    ("training_set.txt eval.txt", "tv"),
    ("trainset.txt DevSet.txt testset.txt", "tve"),
    ("my-train.txt my-held-out.txt", "tv"),
    ("Corpus_Train01.txt Corpus_Val01.txt", "tv"),
    ("TinyStoriesV2-GPT4-train.txt TinyStoriesV2-GPT4-valid.txt", "tv"),
    ("train validation test", "tve"),
    ("ptb.train ptb.valid ptb.test", "tve"),
    ("train.json validation.json", "tv"),
    ("train.ndjson valid.jsonlines", "tv"),
    ("train.txt evaluate.py test_of_it.py valid.txt train.log", "tv"),
    ("contest.txt restrained.txt old_testament.txt medieval.txt devil.txt", None),
    ("train.txt", None),
    ("train-0.txt train-1.txt", None),
    ("train.txt test.txt", " has test.txt and train.txt, but nothing is named valid"),
    ("test.txt other.txt", " has test.txt, but nothing is named train; name the files"),
    (
        "corpus.txt corpus.valid.txt",
        " has corpus.valid.txt, but nothing is named train",
    ),
    ("train.txt val.txt validation.txt", "both named as the valid split"),
    ("train.txt dev.txt eval.txt", "dev.txt and eval.txt are both named as the valid split"),
    ("train.txt train.txt.gz valid.txt", "train.txt and train.txt.gz are both named as the train"),
    ("train/valid.txt x.txt", "train/valid.txt names two splits, 'train' and 'valid'"),
    ("devtest.txt train.txt", "'devtest.txt' has words for two splits, 'dev' and 'test'"),
    ("train_test_split.txt", "has words for two splits, 'train' and 'test'"),
]


@pytest.mark.parametrize(("names", "expected"), NAMES, ids=[names for names, _ in NAMES])
def test_a_word_for_a_split_in_a_name_is_used_or_refused(tmp_path, names, expected):
    for name in names.split():
        content = f"{name} " * 40 + "\n\n" + f"{name} " * 40
        lines = any(ending in name for ending in (".json", ".ndjson"))
        write(tmp_path / name, lines_of({"text": content}) if lines else content)
    if expected and len(expected) > 3:
        with pytest.raises(DataError, match=re.escape(expected)):
            texts(tmp_path)
        assert texts(tmp_path, ignore_split_names=True, held_out=0.5).valid
        return
    found = texts(tmp_path)
    if expected is None:
        assert "held out" in found.origin
        return
    splits = {"t": "train", "v": "valid", "e": "test"}
    assert list(found.splits()) == [splits[letter] for letter in expected]
    for split, documents in found.splits().items():
        for name in (document.split()[0] for document in documents):
            assert (split == "train") == bool(re.search("(?i)tr(ai)?n", name))
            assert (split == "test") == bool(re.search("(?i)te?st", name))


def test_names_count_below_the_folder_that_all_paths_share(tmp_path):
    for split in ("train", "valid"):
        write(tmp_path / "dev" / split / "0.txt", f"{split}\n\n" * 9)
    apart = texts(tmp_path / "dev" / "train", tmp_path / "dev" / "valid" / "0.txt")
    assert (set(apart.train[0].split()), set(apart.valid[0].split())) == ({"train"}, {"valid"})
    assert texts(tmp_path / "dev" / "valid", held_out=0.5).origin.endswith("end of each document")


def test_every_path_that_is_named_is_read_or_refused(tmp_path):
    for name in ("hub/train.txt", "hub/valid.txt", "hub/about.txt", "more.txt", "folder/x.txt"):
        write(tmp_path / name, f"{name}\n" * 40)
    assert len(texts(tmp_path / "hub", tmp_path / "hub" / "train.txt").train) == 1
    files = [tmp_path / "hub" / name for name in ("train.txt", "valid.txt")]
    assert texts(*files, tmp_path / "hub").train == texts(*files).train
    for other in ("more.txt", "folder", "hub/about.txt"):
        with pytest.raises(DataError, match=f"{other} is not named after a split, but others are"):
            texts(tmp_path / other, *files)


def test_whole_documents_are_held_out_about_as_many_as_asked_for(tmp_path):
    found = texts(a_thousand(tmp_path), held_out=0.2)
    everything = [*found.train, *found.valid, *found.test]
    assert sorted(everything) == [f"number {i:04}" for i in range(1000)]
    assert (len(found.valid), len(found.test)) == (100, 100)
    assert "whole documents" in found.origin
    assert found.train == sorted(found.train)  # in their order


def test_what_is_held_out_follows_from_contents_and_not_from_order_or_place(tmp_path):
    first = texts(a_thousand(tmp_path))
    for i in range(1000):
        write(tmp_path / "b" / f"{999 - i}.txt", f"number {i:04}")
    second = texts(tmp_path / "b")
    assert set(first.valid) == set(second.valid)
    assert set(first.test) == set(second.test)


def test_the_same_document_twice_is_never_on_both_sides(tmp_path):
    path = tmp_path / "twice.jsonl"
    write(path, lines_of(*({"text": f"number {i % 300}"} for i in range(900))))
    found = texts(path, held_out=0.3)
    sides = [set(found.train), set(found.valid), set(found.test)]
    assert all(sides)
    assert len(set.union(*sides)) == sum(map(len, sides)) == 300


def test_of_one_long_file_the_end_is_held_out_at_a_paragraph(tmp_path):
    text = "".join(f"Paragraph {i}\nof two lines.\n\n" for i in range(200))
    found = texts(write(tmp_path / "book.txt", text), held_out=0.1)
    (train,), (valid,), (test,) = found.train, found.valid, found.test
    assert train + valid + test == text
    assert train.endswith(".\n\n")
    assert valid.endswith(".\n\n")
    assert len(valid) == pytest.approx(0.05 * len(text), rel=0.1)
    assert len(test) == pytest.approx(0.05 * len(text), rel=0.1)
    assert "the end of each document" in found.origin


def test_of_a_few_long_files_the_end_of_each_is_held_out(tmp_path):
    for name in "abc":
        write(tmp_path / f"{name}.txt", f"{name}\n" * 1000)
    found = texts(tmp_path, held_out=0.2)
    assert [set(part) for part in found.valid] == [{"a", "\n"}, {"b", "\n"}, {"c", "\n"}]
    assert [len(part) for part in found.test] == [200, 200, 200]


def test_a_file_without_line_ends_is_cut_all_the_same(tmp_path):
    found = texts(write(tmp_path / "line.txt", "é" * 1000), held_out=0.1)
    assert [len(split[0]) for split in (found.train, found.valid, found.test)] == [900, 50, 50]


def test_one_giant_among_small_documents_is_learned_from(tmp_path):
    a_thousand(tmp_path)
    write(tmp_path / "giant.txt", "x" * 5000)
    found = texts(tmp_path, held_out=0.1)
    assert "x" * 5000 in found.train
    assert sum(map(len, found.valid)) == pytest.approx(0.05 * 16_000, rel=0.05)


def test_too_little_text_to_hold_anything_out_is_an_error(tmp_path):
    config = Text(paths=(str(write(tmp_path / "a.txt", "x")),))
    with pytest.raises(DataError, match=r"the train split of text \(a.txt.*is empty: give more"):
        config.load(Places(None, tmp_path))
    write(tmp_path / "a.txt", "")
    with pytest.raises(DataError, match=r"a\.txt: no text; name others with data.paths$"):
        config.load(Places(None, tmp_path))


def test_a_file_named_twice_is_read_once(tmp_path):
    path = a_thousand(tmp_path)
    found = texts(path, tmp_path)
    assert len(found.train) + len(found.valid) + len(found.test) == 1000


def test_relative_paths_are_found_in_the_data_folder(tmp_path):
    a_thousand(tmp_path / "corpus")
    assert texts("corpus/all.jsonl", data=tmp_path).valid
    with pytest.raises(DataError) as error:
        texts("nowhere", data=tmp_path)
    for part in (
        "'nowhere' not found",
        f", {tmp_path / 'nowhere'}",
        "data.paths=",
        "ATTNLAB_DATA",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-9], lambda raw: b"plain text", lambda raw: raw[:12] + b"\xff" * 9]
)
def test_a_damaged_archive_is_named(tmp_path, damage):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(damage(gzip.compress(b"some text, some text" * 50)))
    with pytest.raises(DataError, match=r"a\.txt\.gz"):
        texts(path)


def test_a_folder_without_text_says_what_it_would_take(tmp_path):
    write(tmp_path / "notes.md", "x")
    with pytest.raises(DataError, match=r"holds no file that ends in \.txt, .*\.gz; name files"):
        texts(tmp_path)


def test_rows_of_parquet_and_arrow_are_documents_of_the_splits_that_names_say(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import ipc, parquet

    rows = arrow.table({"body": ["one", "", "twö"], "n": [1, 2, 3]})
    parquet.write_table(rows, tmp_path / "train-00000-of-00002.parquet")
    with ipc.new_file(str(tmp_path / "train-00001-of-00002.arrow"), rows.schema) as file:
        file.write(rows)
    with ipc.new_stream(str(tmp_path / "validation.arrow"), rows.schema) as file:
        file.write(rows.slice(2))
    found = texts(tmp_path, text_field="body")
    assert (found.train, found.valid, found.test) == (["one", "twö"] * 2, ["twö"], None)
    with pytest.raises(DataError, match=r"no column 'text'; it has body, n\. Set data\.text_field"):
        texts(tmp_path)
    with pytest.raises(DataError, match="row 0 of 'n' is 1, not text"):
        texts(tmp_path, text_field="n")


def test_the_field_of_a_line_is_a_setting(tmp_path):
    path = write(tmp_path / "a.jsonl", lines_of(*({"body": f"{i:03}"} for i in range(100))))
    assert len(texts(path, text_field="body").train) == 90


@pytest.mark.parametrize("settings", [{"held_out": 0.0}, {"held_out": 1.0}, {"paths": ()}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Text(**{"paths": ("a.txt",), **settings})


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
    ("a.txt", b"PAR1" + NOISE + b"PAR1", "a Parquet file.*end in .parquet"),
    ("a.parquet", b"PAR1" + NOISE + b"PAR1", "need pyarrow|is damaged"),
    ("a.txt", b"ARROW1\0\0" + NOISE, "an Arrow file"),
    ("a.arrow", b"\xff\xff\xff\xff\x10\0\0\0" + NOISE, "need pyarrow|is damaged"),
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
    ("a.csv", TABLE.encode(), "a table with columns.*read_csv..a.csv.\\)"),
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
    ("a.txt.gz", PROSE.encode(), "a.txt.gz: Not a gzipped file .*; if it is plain, drop"),
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


LANGUAGES = Path(__file__).parents[2] / "benchmarks" / "languages.py"
LICENCE = "Dies ist freie Software; Sie dürfen sie weitergeben und verändern."


def page(name, text, *, licence=True):
    whole = f'.TH {name} 1 "2024" "x" "Handbuch"\n.SH NAME\n{name} \\- {text}\n'
    return whole + (f".SH LIZENZ\n{LICENCE}\n" if licence else "")


@pytest.fixture
def languages():
    spec = importlib.util.spec_from_file_location("languages", LANGUAGES)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def manual(tmp_path):
    """A folder of manual pages: two languages, a redirection, a link in a circle, and Latin-1."""
    folder = tmp_path / "man"
    write(folder / "de" / "man1" / "test.1.gz", page("test", "prüft Dateien"))
    write(folder / "de" / "man8" / "zebra.8", page("zebra", "zählt Streifen"))
    write(folder / "de" / "man1" / "other.1.gz", ".so man1/test.1\n")
    write(folder / "de" / "man1" / "alt.1", page("alt", "grüßt").encode("latin-1"))
    write(folder / "ja" / "man1" / "test.1.gz", page("test", "ファイルの検査", licence=False))
    write(folder / "man1" / "test.1.gz", page("test", "checks files", licence=False))
    (folder / "de" / "man1" / "twin.1.gz").symlink_to(folder / "de" / "man1" / "test.1.gz")
    (folder / "de" / "circle").symlink_to(folder)
    return folder


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff sets manual pages")
def test_manual_pages_become_a_folder_per_language(tmp_path, languages, manual):
    made = languages.made(tmp_path / "out", manual)
    assert {language: pages for language, (pages, _, _) in made.items()} == {
        "de": 2, "en": 1, "ja": 1,
    }  # fmt: skip
    assert made["de"][2] == ["alt.1"]
    lines = (tmp_path / "out" / "de" / "pages.jsonl").read_text(encoding="utf-8").splitlines()
    first, second = map(json.loads, lines)
    assert first == {
        "name": "test(1)",
        "text": f"NAME\ntest - prüft Dateien\n\nLIZENZ\n{LICENCE}\n",
    }
    assert second["text"] == "NAME\nzebra - zählt Streifen\n\nLIZENZ\n"  # the licence is known
    assert languages.made(tmp_path / "again", manual, ["de"]) == {"de": made["de"]}
    again = (tmp_path / "again" / "de" / "pages.jsonl").read_text(encoding="utf-8")
    assert again.splitlines() == lines
    found = texts(tmp_path / "out" / "de", held_out=0.5)  # the page test(1) is no test split
    assert sum(map(len, (found.train, found.valid, found.test))) >= 2


def test_a_language_without_pages_says_what_to_install(tmp_path, languages, manual, monkeypatch):
    monkeypatch.setattr(languages.shutil, "which", lambda name: name)
    with pytest.raises(
        ValueError, match=r"no pages in pt_BR; it has: de, en, ja. Install manpages-pt"
    ):
        languages.made(tmp_path, manual, ["pt_BR"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no manual pages"):
        languages.made(tmp_path, tmp_path / "empty")
    with pytest.raises(ValueError, match="is no folder of manual pages"):
        languages.made(tmp_path, tmp_path / "missing")
    monkeypatch.setattr(languages.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit) as left:
        languages.main([str(tmp_path / "out"), "--pages", str(manual)])
    assert left.value.code == 2
