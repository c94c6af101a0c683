"""Text of one's own: files are read to the byte, and what is held out follows from the text."""

import gzip
import json

import pytest

from attnlab.config import ConfigError
from attnlab.data.source import DataError, Places
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
    assert found.train == ["\ufeffone\r\n\n", "twø\u2028", "three\u2028x", "four"]
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


def test_a_folder_above_the_one_that_was_named_does_not_make_a_split(tmp_path):
    for i in range(4):
        write(tmp_path / "train" / f"{i}.txt", f"{i}\n" * 100)
    write(tmp_path / "train" / "test" / "x.txt", "prove")
    assert texts(tmp_path / "train", held_out=0.5).valid  # a test folder alone makes no splits


def test_a_test_file_without_a_validation_file_is_an_error(tmp_path):
    write(tmp_path / "train.txt", "learn")
    write(tmp_path / "test.txt", "prove")
    with pytest.raises(DataError, match="but none valid"):
        texts(tmp_path)


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
    with pytest.raises(DataError, match="the train split of text is empty"):
        config.load(Places(None, tmp_path))
    write(tmp_path / "a.txt", "")
    with pytest.raises(DataError, match="the train split of text is empty"):
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
        f"\n  {tmp_path / 'nowhere'}",
        "data.paths=",
        "ATTNLAB_DATA",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"caf\xe9 cr\xe8me", r"a.txt is not UTF-8 at byte 3; .*iconv"),
        ("a.jsonl", '{"text": "x"}\n{"text"\n', r"a.jsonl:2 is not JSON"),
        ("a.jsonl", "[1]\n", r"a.jsonl:1 holds no JSON object"),
        ("a.jsonl", '{"body": "x", "id": 1}', r"no text in 'text'; its fields: body, id. Set data"),
        ("a.jsonl", '{"text": null}', r"no text in 'text'"),
        ("a.jsonl", '{"text": "\\ud800"}', r"a.jsonl:1 holds half a surrogate pair"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_named(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        texts(write(tmp_path / name, content))


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
    with pytest.raises(DataError, match=r"holds no file that ends in \.txt, \.txt\.gz, \.jsonl"):
        texts(tmp_path)


def test_the_field_of_a_line_is_a_setting(tmp_path):
    path = write(tmp_path / "a.jsonl", lines_of(*({"body": f"{i:03}"} for i in range(100))))
    assert len(texts(path, text_field="body").train) == 90


@pytest.mark.parametrize("settings", [{"held_out": 0.0}, {"held_out": 1.0}, {"paths": ()}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Text(**{"paths": ("a.txt",), **settings})
