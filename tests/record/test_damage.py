"""Whatever happens to a file of a study: the same result, or one line that names the file."""

import json
import os
import random
import re
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import fake_workers
from support.reported_study import NOISE
from typer.testing import CliRunner

from attnlab.analysis.profile import harness_of
from attnlab.analysis.runs_table import load_results
from attnlab.analysis.table import read_table
from attnlab.cli import app
from attnlab.record import (
    HARNESS,
    TUNING_SEED,
    DamagedError,
    RunFolder,
    StudyRecord,
    pack,
    read_tuning_choice,
    tuning_runs,
    unpack,
    write_object,
    write_tuning_choice,
)
from attnlab.record.file_types import MeasurementForm, PositionsForm
from attnlab.record.json_text import _test, mismatch
from attnlab.record.packed_file import PACKED

COMMAND = "attnlab run toy --out here"
STEPS = 40


def record(run: RunFolder, loss: float, ends: str = "finished") -> None:
    """Record a run as the trainer does, with measurements and a tokenizer."""
    train = {"learning_rate": 1e-3, "steps": STEPS, "batch_size": 4, "seq_len": 64}
    model = {"n_layers": 2, "mechanisms": [{"kind": run.variant}]}
    run.open({"identity": "x", "seed": run.seed, "model": model, "train": train}, {"device": "cpu"})
    run.write_tokenizer('{"é": 1}'.encode())
    for step in range(20, STEPS + 1, 20):
        run.append({"step": step, "train_loss": loss + 10 / step, "eval_loss": loss + 11 / step})
    if ends == "failed":
        run.fail("out of memory")
    elif ends != "partial":
        run.finish({"status": ends, "final_loss": loss, "test_loss": loss, "steps": STEPS})


def write_toy(folder: Path) -> Path:
    variants = {"mha": 5.0, "mqa": 5.1}
    StudyRecord(
        name="toy",
        question="Which?",
        baseline="mha",
        variants=tuple(variants),
        seeds=(0, 1),
        command=COMMAND,
        attnlab_version="0.1.0",
    ).write(folder)
    for name, loss in variants.items():
        for seed in (0, 1):
            record(RunFolder(folder, name, seed), loss + NOISE[seed])
    record(RunFolder(folder, "a/b", 0), 5.0, ends="diverged")
    record(RunFolder(folder, "mqa", 2), 5.0, ends="failed")
    record(RunFolder(folder, "mqa", 3), 5.0, ends="partial")
    record(RunFolder(folder, "mha", TUNING_SEED, recipe="lr-0.001"), 5.0)
    write_tuning_choice(folder, "mha", {"learning_rate": 1e-3})
    metric = {"acc": {"value": 0.5, "standard_error": 0.1}}
    results = {"task": {"metrics": metric, "identity": "x", "shots": 0}}
    write_object(folder / HARNESS, {"runs": {"mha/seed-0": results}})
    return folder


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    return write_toy(tmp_path_factory.mktemp("damage") / "toy")


@pytest.fixture
def copy(toy, tmp_path) -> Path:
    return Path(shutil.copytree(toy, tmp_path / "toy"))


@contextmanager
def within_seconds(seconds: int) -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"it hangs: {seconds} seconds have passed")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(folder: Path) -> tuple[str, tuple[str, ...]]:
    """Everything that readers find, and the lines that name damage; a refusal is one, too."""
    with within_seconds(20):
        try:
            table = read_table(folder)
        except DamagedError as error:
            return "", (str(error),)
        runs = [run for v in table.variants for run in v.runs if run.status != "partial"]
        tuned = [run.ended_summary() for run in tuning_runs(folder, "mha")]
        # a checksum under another name is a field that no reader knows
        known = re.sub(
            r", '[^']*': \{'config.json': [^}]*\}",
            "",
            repr((table.study, runs, tuned, harness_of(table))),
        )
        return known, table.damage


def assert_same_or_named(folder: Path, path: Path, before: str, what: str) -> bool:
    """Return True if the damage was named."""
    found, lines = outcome(folder)
    named = path.parent if path.name == PACKED else path
    if not lines:
        assert found == before, f"{what}: another result without a word"
    for line in lines:
        assert "\n" not in line, what
        known = (str(named), str(path.parent), path.name)
        assert any(name in line for name in known), f"{what}: {line}"
    return bool(lines)


def flip(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def cut_lines(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    return b"".join(lines[: rng.randrange(len(lines))])


def without_a_part(content: bytes, rng: random.Random) -> bytes:
    first = rng.randrange(len(content))
    return content[:first] + content[first + rng.randint(1, 40) :]


def zeroed(content: bytes, rng: random.Random) -> bytes:
    first = rng.randrange(len(content))
    return content[:first] + bytes(len(content) - first)


def twice(content: bytes, rng: random.Random) -> bytes:
    return content + content


VALUES = ("NaN", "-Infinity", "1e999", "1" + "0" * 400, "[" * 5000, "[" * 40 + "]" * 40)
VALUES += ("null", "true", '"text"', "{}", "[]", "-1", "1e308", '"\\ud800"')


def changed_value(content: bytes, rng: random.Random) -> bytes:
    """Put another value, or one of another type, in the place of a number or text."""
    first = content.index(b":", rng.randrange(content.rindex(b":") + 1)) + 1
    ends = [place for end in (b",", b"\n", b"}") if (place := content.find(end, first)) > 0]
    return content[:first] + rng.choice(VALUES).encode() + content[min(ends) :]


def renamed_field(content: bytes, rng: random.Random) -> bytes:
    first = content.index(b'":', rng.randrange(content.rindex(b'":') + 1))
    return content[:first] + rng.choice([b"_", b'": 1, "x']) + content[first:]


CHANGES = (flip, cut, cut_lines, without_a_part, zeroed, twice, changed_value, renamed_field)


def recorded_files(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in files if path.name != "tokenizer.json")


def fuzz(folder: Path, rounds: int, seed: int) -> tuple[int, int]:
    """Change every file in every way, one at a time; return how often, and how often unnoticed."""
    rng, before, changed, unnoticed = random.Random(seed), outcome(folder)[0], 0, 0
    for path in recorded_files(folder) * rounds:
        content = path.read_bytes()
        for change in CHANGES:
            if path.name == PACKED and change in (cut_lines, changed_value, renamed_field):
                continue
            now = change(content, rng)
            if now == content:
                continue
            path.write_bytes(now)
            what = f"{change.__name__} of {path.relative_to(folder)}, seed {seed}: {now!r}"
            changed += 1
            unnoticed += not assert_same_or_named(folder, path, before, what)
            path.write_bytes(content)
    assert outcome(folder) == (before, ())
    return changed, unnoticed


def test_a_changed_file_gives_the_same_result_or_is_named(copy):
    changed, unnoticed = fuzz(copy, rounds=1, seed=0)
    assert changed > 200
    assert unnoticed < 0.2 * changed


def test_a_changed_packed_file_gives_the_same_result_or_is_named(copy):
    pack(copy)
    for seed in range(6):
        fuzz(copy, rounds=1, seed=seed)


def a_folder(path: Path) -> None:
    path.mkdir()


def a_dangling_link(path: Path) -> None:
    path.symlink_to("nothing")


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def nothing(path: Path) -> None:
    pass


def a_huge_file(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**42)


THINGS = (os.mkfifo, a_folder, a_dangling_link, a_link_to_itself, a_device, a_huge_file, nothing)
PLACES = ("study.json", HARNESS, "mha/seed-0", "mqa/seed-3.partial")
PLACES += tuple(
    f"{folder}/{name}"
    for folder in ("mha/seed-0", "mqa/seed-3.partial", "mha/tuning/lr-0.001/seed-1000")
    for name in ("config.json", "environment.json", "metrics.jsonl", "summary.json")
)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("thing", THINGS, ids=lambda thing: thing.__name__)
def test_what_is_no_file_where_one_belongs_is_named_without_waiting(copy, place, thing):
    path, before = copy / place, outcome(copy)[0]
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    thing(path)
    if thing is nothing and ("partial" in place or place == HARNESS):
        return  # a run in progress may not have the file yet
    if thing is nothing and place == "study.json":
        with pytest.raises(ValueError, match=r"no study in .*study\.json"):
            read_table(copy)
    elif thing is nothing and place == "mha/seed-0":
        assert "absent" in outcome(copy)[0]
    else:
        named = assert_same_or_named(copy, path, before, f"{thing.__name__} at {place}")
        assert named or (thing is a_folder and place.endswith(".partial"))


@pytest.mark.parametrize("name", ["study.json", PACKED])
def test_a_folder_in_the_place_of_the_record_is_named_with_a_remedy(copy, name):
    (copy / "study.json").unlink()
    (copy / name).mkdir()
    with pytest.raises(DamagedError, match=rf"{name} is a folder, not a file; restore it from a"):
        StudyRecord.find(copy)


@pytest.mark.parametrize("name", ["study.json", HARNESS, "mha/seed-0/summary.json"])
@pytest.mark.parametrize("sums", [-1, None, [], {"study.json": 1}, "x", True])
def test_checksums_of_another_type_are_damage(copy, name, sums):
    path = copy / name
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sha256": sums}))
    (line,) = outcome(copy)[1]
    assert str(path) in line


def swapped(first: Path, second: Path) -> None:
    aside = first.with_name("aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


def test_a_damaged_choice_can_be_deleted_and_a_damaged_packed_file_is_restored(copy):
    choice = copy / "mha" / "tuning" / "choice.json"
    choice.write_text("{")
    with pytest.raises(DamagedError, match=f"delete it, then {COMMAND} writes it again"):
        read_tuning_choice(copy, "mha")
    choice.unlink()
    (copy / "runs.jsonl.gz").write_bytes(b"")
    with pytest.raises(DamagedError, match=r"restore it from a copy$"):
        read_tuning_choice(copy, "mha")


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "summary.json", ""])
@pytest.mark.parametrize("other", ["mha/seed-1", "mqa/seed-0"])
def test_swapped_files_and_runs_are_named(copy, name, other):
    swapped(copy / "mha" / "seed-0" / name, copy / other / name)
    table = read_table(copy)
    runs = [(v.name, run.seed) for v in table.variants for run in v.runs if run.status == "damaged"]
    assert sorted(runs) == sorted([("mha", 0), (other.split("/")[0], int(other[-1]))])


def test_a_run_whose_folder_was_renamed_is_named_with_the_name_that_it_had(copy):
    (copy / "mha" / "seed-1").rename(copy / "mha" / "seed-7")
    (damage,) = read_table(copy).damage
    assert "seed-7 holds a run of seed 1; call this folder seed-1" in damage


def test_one_bit_of_a_loss_is_no_verdict_and_the_other_runs_still_report(copy, monkeypatch):
    fake_workers.draw_nothing(monkeypatch)
    path = copy / "mha" / "seed-0" / "summary.json"
    path.write_text(path.read_text().replace('"final_loss": 5.0', '"final_loss": 1.0'))
    done = CliRunner().invoke(app, ["report", str(copy)])
    assert done.exit_code == 2
    assert done.stderr == (
        f"error: {path} was altered: its checksum differs; to run it again: {COMMAND}\n"
    )
    assert "1.0" not in done.stdout
    failures = json.loads((copy / "failures.json").read_text())
    assert failures["mha"]["seeds"]["0"]["status"] == "damaged"
    assert failures["mha"]["seeds_finished"] == [1]
    rows = {(row["variant"], row["seed"]): row for row in load_results(copy)}
    assert rows["mha", 0]["status"] == "damaged"
    assert rows["mha", 1]["final_loss"] == 5.0 + NOISE[1]


def test_a_cut_curve_of_a_run_without_checksums_is_named(copy):
    folder = copy / "mha" / "seed-0"
    summary = json.loads((folder / "summary.json").read_text())
    del summary["sha256"]
    (folder / "summary.json").write_text(json.dumps(summary))
    assert outcome(copy)[1] == ()
    lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_bytes(b"".join(lines[:-1]))
    (line,) = outcome(copy)[1]
    assert "metrics.jsonl ends at step 20, and the run at step 40" in line


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "config.json"])
def test_a_damaged_run_is_put_aside_and_continues_from_what_is_intact(copy, name):
    run = RunFolder(copy, "mha", 0)
    (run.checkpoints / "step-000040").mkdir(parents=True)
    content = (run.path / name).read_bytes()
    (run.path / name).write_bytes(content[:-9])
    assert run.status() == "damaged"
    assert f"{name} " in (run.recover("x") or "")
    assert run.status() == ("absent" if name == "config.json" else "partial")
    assert (run.checkpoints / "step-000040").is_dir() == (name != "config.json")
    assert (copy / "mha" / "seed-0.damaged" / name).read_bytes() == content[:-9]
    record(run, 5.0)
    assert run.status() == "finished"
    assert outcome(copy)[1] == ()
    assert run.recover("x") is None


def test_a_damaged_packed_run_is_run_again_in_a_folder(copy):
    path = copy / "mha" / "seed-0" / "summary.json"
    whole = path.read_text()
    pack(copy)
    unpack(copy)
    path.write_text(whole.replace('"final_loss": 5.0', '"final_loss": 1.0'))
    with pytest.raises(ValueError, match=r"seed-0/summary\.json was altered.*attnlab run toy"):
        pack(copy)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.floats(0, 1) | st.sampled_from(("a", "7")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(("a", "7", "step", "first", "loss")), inner, max_size=4)
    ),
    max_leaves=8,
)
FORMS = (
    *(None, bool, int, float, str, Any, int | None, Literal["a", 1], list[float], tuple[int, ...]),
    *(list[list[Any]], dict[str, float], Mapping[int, int | str], dict[str, PositionsForm]),
    *(PositionsForm, MeasurementForm),
)


@given(st.sampled_from(FORMS), JSON_VALUES)
def test_the_fast_test_of_a_type_and_the_one_that_explains_agree(form, value):
    form = NoneType if form is None else form
    assert _test(form)(value) == (mismatch(form, value) is None)
