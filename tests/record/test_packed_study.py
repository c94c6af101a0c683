"""A study is packed and unpacked byte for byte, read the same either way, and survives any kill."""

import gzip
import hashlib
import json
import math
import os
import shutil
import tempfile
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.reported_study import steady, write_run, write_study

from attnlab.analysis.analysis import analyse
from attnlab.analysis.compare_folders import read_folders
from attnlab.analysis.runs_table import load_results
from attnlab.record import (
    TUNING_SEED,
    DamagedError,
    RunFolder,
    StudyRecord,
    lease,
    pack,
    packed_file,
    packed_study,
    runs_in,
    to_json,
    tuning_runs,
    unpack,
    write_tuning_choice,
)
from attnlab.record.packed_file import PACKED, STUDY, read_packed

DERIVED = ("config.json", "metrics.json")


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def as_read(folder: Path) -> dict[object, object]:
    """Everything that readers find of every run."""
    by_variant = StudyRecord.read(folder).runs(folder)
    found = [run for of_variant in by_variant.values() for run in of_variant]
    found += [run for name in by_variant for run in tuning_runs(folder, name)]
    return {
        run.key: (
            *(run.status(), run.identity(), run.config(), run.environment()),
            *(run.summary(), run.metrics()),
        )
        for run in found
    }


def lines_of(folder: Path) -> list[bytes]:
    return gzip.decompress((folder / PACKED).read_bytes()).splitlines(keepends=True)


def as_an_earlier_version(folder: Path) -> None:
    """Turn a packed study into format 1: study.json beside a packed file without it."""
    content = read_packed(folder).record
    assert content is not None
    (folder / STUDY).write_bytes(content)
    (folder / PACKED).write_bytes(gzip.compress(b"".join(lines_of(folder)[1:])))


@pytest.fixture
def study(tmp_path):
    """Finished, diverged, failed, partial and absent runs, and runs that tuned a rate."""
    folder = tmp_path / "toy"
    write_study(
        folder,
        {
            "mha": [5.0, 5.1, 5.2],
            "hybrid 3:1": [4.9, "loss is nan", "failed: out of memory"],
            "new": [5.3, None, None],
        },
    )
    for rate, loss in ((3e-4, 5.5), (math.sqrt(2) * 1e-3, 5.4), (1.2e-3, "nan")):
        write_run(RunFolder(folder, "mha", TUNING_SEED, recipe=f"lr-{rate:g}"), loss, rate=rate)
    write_tuning_choice(folder, "mha", {"learning_rate": 0.00141421, "failure": None})
    partial = RunFolder(folder, "new", 1)
    partial.open({"identity": "y", "train": {"learning_rate": 1.0}}, {"device": "cpu"})
    partial.append({"step": 1, "train_loss": math.nan})
    with (partial.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "train_l')  # cut off by a kill
    return folder


def test_a_study_is_packed_into_one_file_and_unpacked_byte_for_byte(study):
    before, read = files(study), as_read(study)
    done = pack(study)
    assert set(files(study)) == {PACKED}
    assert (done.runs, done.n_bytes) == (11, (study / PACKED).stat().st_size)
    assert [path.name for path in study.iterdir() if path.is_dir()] == []
    assert as_read(study) == read
    assert unpack(study) == 11
    assert files(study) == before
    assert as_read(study) == read


def test_a_line_of_the_file_is_a_run_that_other_programs_can_read(study):
    pack(study)
    record, *lines = map(json.loads, lines_of(study))
    assert (record["format"], record["study"]["variants"]) == (2, ["mha", "hybrid 3:1", "new"])
    by_key = {(line["variant"], line.get("seed"), line.get("recipe")): line for line in lines}
    finished = by_key["mha", 0, None]
    assert (finished["status"], finished["summary"]["final_loss"]) == ("finished", 5.0)
    assert (finished["config"]["train"]["learning_rate"], finished["metrics"]) == (3e-4, [])
    assert by_key["hybrid 3:1", 2, None]["status"] == "failed"
    assert by_key["mha", TUNING_SEED, "lr-0.00141421"]["summary"]["final_loss"] == 5.4
    assert by_key["new", 1, None]["raw"]["metrics.jsonl"].endswith('"train_l')
    assert by_key["mha", None, None]["tuning_choice"]["learning_rate"] == 0.00141421


def test_equal_runs_give_equal_bytes(study):
    pack(study)
    first = (study / PACKED).read_bytes()
    unpack(study)
    os.utime(study / "mha" / "seed-0" / "config.json", (0, 0))
    pack(study)
    assert (study / PACKED).read_bytes() == first
    pack(study)
    assert (study / PACKED).read_bytes() == first


def test_the_analysis_of_a_packed_study_is_that_of_its_folders(tmp_path):
    folder = write_study(tmp_path / "toy", {"mha": steady(5.0), "mqa": steady(5.2, 1)})
    for rate, loss in ((1.5e-4, 5.3), (3e-4, 5.0), (6e-4, 5.2)):
        write_run(RunFolder(folder, "mha", TUNING_SEED, recipe=f"lr-{rate:g}"), loss, rate=rate)
    before = analyse(folder)
    assert before.rates["mha"].chosen == 3e-4
    pack(folder)
    assert repr(analyse(folder)) == repr(before)


def test_folders_of_packed_variants_and_runs_are_compared(tmp_path):
    one = write_study(tmp_path / "one", {"mha": [5.0, 5.1], "mqa": [5.2, 5.3]})
    two = write_study(tmp_path / "two", {"mla": [4.9, 4.8]})
    for folder in (one, two):
        pack(folder)
    given = [one / "mha", one / "mqa" / "seed-1", two]
    table = read_folders(given, out=tmp_path / "out", command="compare")
    found = {v.name: [(run.seed, run.status) for run in v.runs] for v in table.variants}
    finished = [(0, "finished"), (1, "finished")]
    assert found == {"mha": finished, "mqa": [(1, "finished")], "mla": finished}
    with pytest.raises(ValueError, match="holds no run"):
        read_folders([one / "mha" / "seed-7"], out=tmp_path / "out", command="compare")
    assert [run.key for run in runs_in(one / "mha" / "seed-1")] == [("mha", 1, None)]
    assert RunFolder.at(one / "mha" / "seed-1").summary()["final_loss"] == 5.1


def test_new_runs_lie_beside_the_packed_file_and_win(study):
    read = as_read(study)
    pack(study)
    new = RunFolder(study, "new", 2)
    assert new.status() == "absent"
    write_run(new, 5.5)
    again = RunFolder(study, "hybrid 3:1", 2)
    assert again.status() == "failed"
    write_run(again, 4.8)
    assert (again.status(), again.summary()["final_loss"]) == ("finished", 4.8)
    union = as_read(study)
    assert {key for key in union if union[key] != read.get(key)} == {new.key, again.key}
    pack(study)
    assert as_read(study) == union
    assert set(files(study)) == {PACKED}
    unpack(study)
    assert as_read(study) == union


def test_a_packed_run_is_continued_in_its_folder_with_what_was_recorded(study):
    pack(study)
    partial = RunFolder(study, "new", 1)
    partial.open({"identity": "y", "train": {"learning_rate": 1.0}}, {"device": "cuda"})
    assert partial.environment() == {"device": "cuda", "earlier": [{"device": "cpu"}]}
    assert [line["step"] for line in partial.metrics()] == [1]
    with pytest.raises(AssertionError, match="holds another run"):
        RunFolder(study, "hybrid 3:1", 2).open({"identity": "z"}, {})


def test_what_is_decided_again_makes_no_folder_in_a_packed_study(study):
    pack(study)
    write_tuning_choice(study, "mha", {"learning_rate": 0.00141421, "failure": None})
    RunFolder(study, "hybrid 3:1", 2).fail("out of memory")
    RunFolder(study, "mha", 0).finalize()
    assert set(files(study)) == {PACKED}
    write_tuning_choice(study, "mha", {"learning_rate": 1.0})
    assert "mha/tuning/choice.json" in files(study)


def test_weights_are_never_lost_silently(study):
    weights = RunFolder(study, "mha", 0).checkpoints / "step-000001" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    (weights.parents[2] / "tokenizer.json").write_text("{}")
    before = files(study)
    with pytest.raises(ValueError, match=r"1 runs? ha.* checkpoints .*--drop-checkpoints"):
        pack(study)
    assert files(study) == before
    pack(study, drop_checkpoints=True)
    assert set(files(study)) == {PACKED}


def test_files_of_others_are_not_removed(study):
    note = RunFolder(study, "mha", 0).path / "note.txt"
    note.write_text("mine")
    with pytest.raises(ValueError, match=r"seed-0 holds note\.txt, which a packed study cannot"):
        pack(study)
    note.rename(study / "mha" / "note.txt")
    pack(study)
    assert set(files(study)) == {PACKED, "mha/note.txt"}
    in_the_way = study / "mha" / "seed-0" / "note.txt"
    in_the_way.parent.mkdir()
    in_the_way.write_text("mine")
    with pytest.raises(ValueError, match="holds other files: move them elsewhere"):
        unpack(study)
    in_the_way.unlink()
    unpack(study)
    assert RunFolder(study, "mha", 0).status() == "finished"


def test_derived_files_of_variants_go_with_their_runs(study):
    for name in DERIVED:
        (study / "mha" / name).write_text("{}")
    pack(study)
    assert set(files(study)) == {PACKED}


def test_what_cannot_be_packed_or_unpacked_says_why(study, tmp_path):
    with pytest.raises(ValueError, match="no study in"):
        pack(tmp_path)
    with pytest.raises(ValueError, match=r"is not packed: there is no .*runs\.jsonl\.gz"):
        unpack(study)
    empty = write_study(tmp_path / "empty", {"mha": [None]})
    with pytest.raises(ValueError, match="holds no run"):
        pack(empty)
    partial = RunFolder(study, "mha", 0).partial
    shutil.copytree(RunFolder(study, "mha", 0).ended, partial)
    with pytest.raises(ValueError, match="hold the same run: delete one of them"):
        pack(study)


def test_a_run_that_is_written_to_meanwhile_keeps_its_folder(study, monkeypatch):
    partial = RunFolder(study, "new", 1)

    def written_meanwhile(descriptor):
        with (partial.path / "metrics.jsonl").open("a") as file:
            file.write("oss")

    monkeypatch.setattr(os, "fsync", written_meanwhile)
    done = pack(study)
    assert done.changed == (partial.path,)
    assert partial.in_folder()
    assert (partial.path / "metrics.jsonl").read_text().endswith("oss")
    assert (partial.status(), RunFolder(study, "mha", 0).in_folder()) == ("partial", False)


class KilledError(BaseException):
    """Stands for SIGKILL: from then on, nothing of the process changes the disk."""


CHANGES = ((os, "fsync"), (Path, "replace"), (Path, "rename"), (Path, "unlink"))
CHANGES += ((Path, "rmdir"), (shutil, "rmtree"), (Path, "mkdir"), (Path, "write_bytes"))


def killed_at(n: int, work, monkeypatch) -> bool:
    """Do the work until its n-th change of the disk; True if it was killed before its end."""
    counted = 0

    def counting(change):
        def call(*arguments, **named):
            nonlocal counted
            counted += 1
            if counted >= n:
                raise KilledError
            return change(*arguments, **named)

        return call

    ended = lease.Holder.of_this_process()._replace(started=1)  # a process that is gone
    with monkeypatch.context() as patch:
        patch.setattr(lease.Holder, "of_this_process", lambda: ended)
        patch.setattr(lease.Lease, "_keep", lambda _: None)
        patch.setattr(lease, "_PAUSE_SECONDS", 0.0)
        for owner, name in CHANGES:
            patch.setattr(owner, name, counting(getattr(owner, name)))
        try:
            work()
        except KilledError:
            return True
    return False


@pytest.mark.parametrize("work", [pack, unpack])
def test_a_kill_at_any_change_of_the_disk_loses_nothing(study, tmp_path, monkeypatch, work):
    monkeypatch.setattr(lease, "_PAUSE_SECONDS", 0.0)
    for variant, seed in (
        *(("mha", 1), ("mha", 2), ("hybrid 3:1", 0), ("hybrid 3:1", 1), ("new", 0)),
    ):
        shutil.rmtree(RunFolder(study, variant, seed).path)
    for rate in (3e-4, 1.2e-3):
        shutil.rmtree(RunFolder(study, "mha", TUNING_SEED, recipe=f"lr-{rate:g}").path.parent)
    read = as_read(study)
    if work is unpack:
        pack(study)
    n, killed = 0, True
    while killed:
        n += 1
        copy = tmp_path / f"copy-{n}"
        shutil.copytree(study, copy)
        killed = killed_at(n, lambda copy=copy: work(copy), monkeypatch)
        assert as_read(copy) == read, n
        if killed and (work is pack or (copy / PACKED).exists()):
            work(copy)
            assert as_read(copy) == read, n
        assert (copy / PACKED).exists() == (work is pack)
        assert not any(path.name.endswith(".tmp") and path.is_dir() for path in copy.rglob("*"))
        shutil.rmtree(copy)
    assert n > 20


TEXT = "x" * 2**20
BOMBS = {
    "one line": b" " * 2**20,
    "many lines": packed_file._line(
        {"tokenizer": hashlib.sha256(TEXT.encode()).hexdigest(), "text": TEXT}
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_gzip_bomb_in_a_packed_study_is_a_line_and_no_memory(study, monkeypatch, bomb):
    monkeypatch.setattr(packed_file, "FREE_BYTES", 2**20)
    monkeypatch.setattr(packed_file, "MOST_LINE_BYTES", 2**23)
    (study / PACKED).write_bytes(60 * gzip.compress(BOMBS[bomb]))
    tracemalloc.start()
    with pytest.raises(ValueError, match=rf"{PACKED} is damaged .*unpacks to far more than runs"):
        read_packed(study)
    assert tracemalloc.get_traced_memory()[1] < 30 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("work", [pack, unpack])
def test_a_run_that_another_process_writes_is_named_and_nothing_is_changed(study, work):
    if work is unpack:
        pack(study)
    with RunFolder(study, "mha", 2).hold():
        before = files(study)
        with pytest.raises(ValueError, match=r"mha/seed-2 is being written by process \d+ on "):
            work(study)
        assert files(study) == before
    work(study)
    assert (study / PACKED).exists() == (work is pack)


def test_a_record_that_was_edited_by_hand_is_restored_byte_for_byte(study):
    content = json.dumps(json.loads((study / STUDY).read_text()) | {"question": "Why?"})
    (study / STUDY).write_text(content.replace('"sha256"', '"no sum"'))
    before = files(study)
    pack(study)
    assert json.loads(lines_of(study)[0])["raw"] == {STUDY: before[STUDY].decode()}
    assert StudyRecord.read(study).question == "Why?"
    unpack(study)
    assert files(study) == before


def test_a_study_of_an_earlier_version_is_read_unpacked_and_packed_anew(study, tmp_path):
    before, read = files(study), as_read(study)
    pack(study)
    packed = files(study)
    as_an_earlier_version(study)
    assert as_read(study) == read
    shutil.copytree(study, tmp_path / "copy")
    unpack(tmp_path / "copy")
    assert files(tmp_path / "copy") == before
    pack(study)
    assert files(study) == packed


def test_a_record_beside_the_packed_file_is_newer_and_counts(study):
    pack(study)
    record = StudyRecord.read(study)
    record.write(study)
    assert set(files(study)) == {PACKED}  # it is packed with the same content
    replace(record, margin=0.5).write(study)
    assert set(files(study)) == {PACKED, STUDY}
    assert StudyRecord.read(study).margin == 0.5
    record.write(study)
    assert StudyRecord.read(study) == record
    replace(record, margin=0.25).write(study)
    pack(study)
    assert set(files(study)) == {PACKED}
    assert StudyRecord.read(study).margin == 0.25
    newer = replace(record, margin=0.125)
    newer.write(study)
    unpack(study)
    assert StudyRecord.read(study) == newer


def test_a_record_that_is_written_to_meanwhile_is_kept(study, monkeypatch):
    newer = replace(StudyRecord.read(study), margin=0.5)
    written = packed_study.write_packed
    monkeypatch.setattr(
        packed_study, "write_packed", lambda *of: (written(*of), newer.write(study))
    )
    assert pack(study).changed == (study / STUDY,)
    assert StudyRecord.read(study) == newer


def test_a_packed_study_without_a_record_says_so(study):
    pack(study)
    as_an_earlier_version(study)
    (study / STUDY).unlink()
    missing = rf"no study in .*: there is no .*/{STUDY}, which {PACKED} lacks, too: restore it"
    for work in (as_read, analyse, pack):
        with pytest.raises(ValueError, match=missing):
            work(study)
    assert RunFolder(study, "mha", 0).summary()["final_loss"] == 5.0


RECORDS = {
    "null": "expected an object, got null",
    "7": "expected an object, got 7",
    '{"format": 2}': "study is missing",
    '{"format": 2, "study": []}': r"study: expected an object, got \[\]",
    '{"format": 2, "raw": {"study.json": 1}}': r"raw\.study\.json: expected a text, got 1",
    '{"format": "2", "study": {}}': 'format: expected a whole number, got "2"',
    '{"format": true, "study": {}}': "format: expected a whole number, got true",
    '{"format": 1, "study": {}}': "format: expected 2, got 1",
    '{"study": {}}': "ended is missing",
}


@pytest.mark.parametrize("line", RECORDS)
def test_a_first_line_that_is_no_record_is_damage(study, line):
    pack(study)
    content = gzip.compress(b"".join([line.encode(), b"\n", *lines_of(study)[1:]]))
    (study / PACKED).write_bytes(content)
    for work in (as_read, analyse, load_results, pack, unpack, runs_in):
        with pytest.raises(DamagedError, match=rf"damaged at line 1 \({RECORDS[line]}\); restore"):
            work(study)
    assert files(study) == {PACKED: content}


def test_a_record_on_a_later_line_is_damage(study):
    pack(study)
    (study / PACKED).write_bytes(gzip.compress(b"".join(lines_of(study)[:2] * 2)))
    with pytest.raises(DamagedError, match="damaged at line 3"):
        as_read(study)


def test_a_format_of_a_later_version_is_no_damage(study):
    pack(study)
    lines = [b'{"format": 3, "cells": []}\n', *lines_of(study)[1:]]
    (study / PACKED).write_bytes(gzip.compress(b"".join(lines)))
    for work in (as_read, analyse, load_results, pack, unpack, runs_in):
        with pytest.raises(
            ValueError, match=r"format 3, .* reads 2 at most: install a later"
        ) as of:
            work(study)
        assert not isinstance(of.value, DamagedError)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda record: record | {"margin": 0.5}, "was altered: its checksum differs; restore it"),
        (lambda record: {"name": "toy"}, "lacks attnlab_version, .*; restore it from a copy$"),
        (lambda record: record | {"sha256": 1}, r"is damaged \(sha256: expected an object, got 1"),
    ],
)
def test_a_packed_record_that_is_not_as_it_was_written_is_named(study, change, words):
    pack(study)
    first, *lines = lines_of(study)
    record = json.loads(first)
    first = json.dumps(record | {"study": change(record["study"])}).encode() + b"\n"
    (study / PACKED).write_bytes(gzip.compress(b"".join([first, *lines])))
    for work in (as_read, analyse, load_results, pack):
        with pytest.raises(DamagedError, match=rf"{PACKED}, line 1/{STUDY} {words}"):
            work(study)


@pytest.mark.parametrize(
    "damage", ["cut", "flipped", "not json", "nan", "deep", "no seed", "empty"]
)
def test_a_damaged_file_is_named_with_its_line(study, damage):
    pack(study)
    path, lines = study / PACKED, lines_of(study)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
        line = r"\d+"
    elif damage == "flipped":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        line = r"\d+"
    elif damage == "not json":
        path.write_bytes(gzip.compress(b"".join([*lines[:3], b'{"variant": \n', *lines[3:]])))
        line = "4"
    elif damage == "nan":
        values = {**json.loads(lines[2]), "environment": {"seconds": math.nan}}
        lines[2] = json.dumps(values).encode() + b"\n"
        path.write_bytes(gzip.compress(b"".join(lines)))
        line = "3"
    elif damage == "deep":
        deep = b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"\n"
        path.write_bytes(gzip.compress(b"".join([*lines[:3], deep, *lines[3:]])))
        line = r"4 \(it is nested too deep\)"
    elif damage == "no seed":
        path.write_bytes(gzip.compress(b"".join([*lines[:2], b'{"variant": "x"}\n'])))
        line = "3"
    else:
        path.write_bytes(b"")
        line = "1"
    with pytest.raises(ValueError, match=rf"runs\.jsonl\.gz is damaged at line {line}.* restore"):
        as_read(study)
    with pytest.raises(ValueError, match=r"runs\.jsonl\.gz is damaged"):
        unpack(study)


def can_name_a_folder(text: str) -> bool:
    return bool(text.strip()) and text.isprintable()


names = st.text(min_size=1, max_size=8).filter(can_name_a_folder)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
numbers = st.integers(-(10**17), 10**17) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
unknown = texts.map("no field {}".format)  # a field that attnlab knows has a type
objects = st.dictionaries(unknown, values, max_size=4)


@st.composite
def run_files(draw, *, ended: bool) -> dict[str, bytes]:
    """Files that this package could have written, and others: formatted by hand, or cut."""

    def written(value, indented):
        return to_json(value) if indented else json.dumps(value).encode()

    found = {}
    status = draw(st.sampled_from(["finished", "diverged"] if ended else ["failed"]))
    known = {"config.json": {"identity": "x", "train": {}}, "summary.json": {"status": status}}
    for name in ("config.json", "environment.json", "summary.json"):
        value = draw(objects) | known.get(name, {})
        found[name] = written(value, draw(st.booleans()))
    lines = draw(st.lists(objects, max_size=3))
    text = "".join(json.dumps(line | {"step": n}) + "\n" for n, line in enumerate(lines)).encode()
    cut = 0 if ended else draw(st.integers(0, 3))
    found["metrics.jsonl"] = text[: len(text) - cut]
    if draw(st.booleans()):
        found["tokenizer.json"] = draw(st.sampled_from([b"{}", b'{"\xff": 1}']))
    kept = found if ended else {"environment.json", *draw(st.sets(st.sampled_from(sorted(found))))}
    return {name: found[name] for name in kept}


rates = st.none() | st.floats(1e-6, 1)
runs = st.booleans().flatmap(
    lambda ended: st.tuples(
        st.tuples(names, st.integers(0, 3), rates, st.just(ended)), run_files(ended=ended)
    )
)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(runs, min_size=1, max_size=4))
def test_any_runs_are_packed_and_unpacked_byte_for_byte(written):
    with tempfile.TemporaryDirectory() as name:
        folder = write_study(Path(name), {"mha": [None]})
        seen = set[str]()
        for (variant, seed, rate, ended), content in written:
            recipe = None if rate is None else f"lr-{rate:g}"
            run = RunFolder(folder, variant, seed, recipe=recipe)
            place = str(run.ended).casefold()
            if place not in seen:
                seen.add(place)
                path = run.ended if ended else run.partial
                path.mkdir(parents=True)
                for file, data in content.items():
                    (path / file).write_bytes(data)
                run.finalize()
        before = files(folder)
        pack(folder)
        assert set(files(folder)) == {PACKED}
        unpack(folder)
        assert files(folder) == before
