"""A run folder stays readable whatever instant its writer is killed at."""

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from attnlab.record import (
    RunFolder,
    StudyRecord,
    atomic_files,
    folder_name,
    replace_file,
    tuning_runs,
    write_json,
)
from attnlab.record.recorded_run import command_of

CONFIG = {"identity": "aaaa", "train": {"steps": 100, "learning_rate": 0.1}}
ENVIRONMENT = {"device": "cpu"}


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path, "mha", 0)
    run.open(CONFIG, ENVIRONMENT)
    return run


def study(variants, seeds=(0, 1)):
    return StudyRecord(
        name="toy",
        question="?",
        baseline=variants[0],
        variants=tuple(variants),
        seeds=seeds,
        command="attnlab run toy",
        attnlab_version="0.1.0",
    )


def strict(text):
    """Parse JSON and refuse what only Python writes: NaN, Infinity."""
    return json.loads(text, parse_constant=pytest.fail)


def test_a_run_goes_from_absent_to_partial_to_finished(tmp_path):
    run = RunFolder(tmp_path, "mha", 3)
    assert (run.status(), run.identity()) == ("absent", None)
    assert list(tmp_path.iterdir()) == []
    run.open(CONFIG, ENVIRONMENT)
    assert (run.status(), run.path.name) == ("partial", "seed-3.partial")
    run.append({"step": 50, "train_loss": 5.0})
    (run.checkpoints / "weights").write_text("kept")
    run.finish({"status": "finished", "final_loss": 5.0})
    assert (run.status(), run.path) == ("finished", tmp_path / "mha" / "seed-3")
    assert run.summary() == {
        "status": "finished",
        "reason": None,
        "final_loss": 5.0,
        "variant": "mha",
        "seed": 3,
        "identity": "aaaa",
    }
    assert run.config() == {**CONFIG, "variant": "mha", "seed": 3}
    assert run.environment() == ENVIRONMENT
    assert run.metrics() == [{"step": 50, "train_loss": 5.0}]
    assert (run.checkpoints / "weights").read_text() == "kept"


def test_a_diverged_run_has_ended(run):
    run.finish({"status": "diverged", "reason": "loss is nan at step 7"})
    assert (run.status(), run.path.name) == ("diverged", "seed-0")
    assert run.summary()["reason"] == "loss is nan at step 7"


def test_a_failed_run_is_recorded_and_can_be_tried_again(run):
    run.append({"step": 50, "train_loss": 5.0})
    run.fail("RuntimeError: out of memory")
    assert (run.status(), run.path.name) == ("failed", "seed-0.partial")
    assert run.summary()["reason"] == "RuntimeError: out of memory"
    run.open(CONFIG, ENVIRONMENT)
    assert run.status() == "partial"
    assert [line["step"] for line in run.metrics()] == [50]


def test_a_run_that_failed_before_it_began_is_recorded(tmp_path):
    run = RunFolder(tmp_path, "mha", 0)
    run.fail("no data")
    assert (run.status(), run.identity()) == ("failed", None)


def test_resuming_goes_back_to_the_checkpoint(run):
    for step in (50, 100, 150):
        run.append({"step": step, "train_loss": 1.0})
    run.inherit([line for line in run.metrics() if line["step"] <= 100])
    run.open(CONFIG, ENVIRONMENT)
    run.append({"step": 150, "train_loss": 2.0})
    assert [(line["step"], line["train_loss"]) for line in run.metrics()] == [
        (50, 1.0),
        (100, 1.0),
        (150, 2.0),
    ]
    run.inherit([])
    assert run.metrics() == []


@pytest.mark.parametrize("lost", range(1, 36))
def test_a_last_line_cut_anywhere_is_no_line(run, lost):
    run.append({"step": 50, "train_loss": 1.0})
    first = (run.path / "metrics.jsonl").stat().st_size
    run.append({"step": 100, "note": "é", "loss": 2})
    both = (run.path / "metrics.jsonl").read_bytes()
    assert lost < len(both) - first
    (run.path / "metrics.jsonl").write_bytes(both[:-lost])
    assert [line["step"] for line in run.metrics()] == [50]
    run.open(CONFIG, ENVIRONMENT)
    run.append({"step": 100, "train_loss": 2.0})
    assert [line["step"] for line in run.metrics()] == [50, 100]


def test_damage_in_the_middle_is_named_and_not_passed_over(run):
    run.append({"step": 50})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step"\n')
    run.append({"step": 100})
    with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged at line 2"):
        run.metrics()


def test_a_kill_between_summary_and_renaming_loses_nothing(run):
    write_json(run.partial / "summary.json", {"status": "finished"})
    assert run.status() == "finished"
    run.finalize()
    assert run.path.name == "seed-0"
    assert run.status() == "finished"
    run.finalize()


def test_a_kill_before_the_settings_are_written_leaves_a_run_that_can_begin(tmp_path):
    run = RunFolder(tmp_path, "mha", 0)
    run.checkpoints.mkdir(parents=True)
    assert (run.status(), run.identity(), run.conflict(CONFIG)) == ("partial", None, {})
    run.open(CONFIG, ENVIRONMENT)
    assert run.identity() == "aaaa"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"value": 1})

    def full(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(atomic_files.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_json(path, {"value": 2})
    assert json.loads(path.read_text()) == {"value": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_killed_at_any_instant_leaves_whole_files(tmp_path):
    writer = """
import sys
from pathlib import Path
from attnlab.record import RunFolder
run = RunFolder(Path(sys.argv[1]), "mha", 0)
run.open({"identity": "aaaa"}, {})
print("open", flush=True)
for step in range(10**9):
    run.append({"step": step, "text": "x" * 5000})
    run.open({"identity": "aaaa"}, {"text": "y" * 5000, "step": step})
    run.write_metrics([line for line in run.metrics() if line["step"] <= step - 20])
"""
    command = [sys.executable, "-c", writer, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"open\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        os.kill(process.pid, signal.SIGKILL)
    run = RunFolder(tmp_path, "mha", 0)
    assert run.status() == "partial"
    assert run.identity() == "aaaa"
    assert run.environment() is not None
    steps = [line["step"] for line in run.metrics()]
    assert steps == sorted(steps)


def test_of_two_processes_with_one_run_the_first_to_finish_stands(run, tmp_path):
    other = RunFolder(tmp_path, "mha", 0)
    other.finish({"status": "finished", "final_loss": 1.0})
    run.partial.mkdir()
    run.finish({"status": "finished", "final_loss": 2.0})
    assert run.summary()["final_loss"] == 1.0


def test_changed_settings_are_a_conflict_that_names_them(run):
    changed = {"identity": "bbbb", "train": {"steps": 200, "learning_rate": 0.1}}
    assert run.conflict(CONFIG) == {}
    assert run.conflict(changed) == {"train.steps": (100, 200)}
    assert run.conflict({**CONFIG, "identity": "cccc"}) == {"identity": ("aaaa", "cccc")}


def test_where_a_run_ran_before_a_resume_stays_in_the_record(run):
    run.open(CONFIG, {"device": "cuda"})
    run.open(CONFIG, {"device": "mps"})
    assert run.environment() == {
        "device": "mps",
        "earlier": [{"device": "cpu"}, {"device": "cuda"}],
    }


def test_numbers_that_are_not_finite_stay_standard_json_with_their_reason(run):
    run.append({"step": np.int64(50), "train_loss": math.nan, "grad_norm": np.float32("inf")})
    line = strict((run.path / "metrics.jsonl").read_text())
    assert line == {
        "step": 50,
        "train_loss": None,
        "grad_norm": None,
        "not_finite": {"train_loss": "nan", "grad_norm": "inf"},
    }
    run.finish({"status": "diverged", "reason": "nan", "kernels": ("a", "b"), "by_layer": {1: 2}})
    summary = strict((run.path / "summary.json").read_text())
    assert summary["kernels"] == ["a", "b"]
    assert summary["by_layer"] == {"1": 2}


NAMES = ["mha", "hybrid 3:1", "a/b", "../up", ".", "..", "report.md", "50%", "lr 0.5", "é", "a\\b"]


def test_variant_names_survive_the_file_system(tmp_path):
    study(NAMES).write(tmp_path)
    for name in NAMES:
        RunFolder(tmp_path, name, 0).open(CONFIG, ENVIRONMENT)
    folders = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert len(folders) == len(NAMES)
    assert StudyRecord.read(tmp_path).variants == tuple(NAMES)
    on_disk = study(["mha"], seeds=()).runs(tmp_path)
    assert set(on_disk) == set(NAMES)
    assert all(RunFolder(tmp_path, name, 0).config()["variant"] == name for name in NAMES)


def test_plain_names_are_their_own_folders():
    assert [folder_name(name) for name in ("gqa_2", "lr 0.5", "a-b+c")] == [
        "gqa_2",
        "lr 0.5",
        "a-b+c",
    ]
    with pytest.raises(ValueError, match="a variant needs a name"):
        folder_name(" ")


def test_variants_that_would_share_a_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'MHA' and 'mha' would share a folder"):
        study(["MHA", "mha"]).write(tmp_path)


def test_a_study_is_read_back_with_every_run_planned_or_present(tmp_path):
    written = study(["mha", "mla"], seeds=(0, 1))
    written.write(tmp_path)
    RunFolder(tmp_path, "mha", 7).open(CONFIG, ENVIRONMENT)
    RunFolder(tmp_path, "dropped", 0).open(CONFIG, ENVIRONMENT)
    assert StudyRecord.read(tmp_path) == written
    runs = written.runs(tmp_path)
    seeds = {name: [run.seed for run in folders] for name, folders in runs.items()}
    assert seeds == {"mha": [0, 1, 7], "mla": [0, 1], "dropped": [0]}


def test_a_record_of_the_first_version_is_read_with_defaults(tmp_path):
    study(["mha"]).write(tmp_path)
    path = tmp_path / "study.json"
    fields = json.loads(path.read_text())
    for name in ("tuning", "match", "margin", "hypotheses", "checked", "sha256"):
        del fields[name]
    path.write_text(json.dumps(fields))
    assert StudyRecord.read(tmp_path) == study(["mha"])
    path.write_text(json.dumps({**fields, "learning_rates": {"most": 7}}))
    assert StudyRecord.read(tmp_path).tuning == {"most": 7}


def test_what_a_study_asks_and_how_it_was_tuned_is_read_back(tmp_path):
    written = replace(
        study(["mha"]),
        tuning={"multiples": [1.0, 2.0]},
        match={"what": "params", "mismatch": {"mha": 0.0}},
        margin=0.02,
        hypotheses=({"kind": "ranked", "variant": "mha"},),
    )
    written.write(tmp_path)
    assert StudyRecord.read(tmp_path) == written


def test_a_part_of_a_study_joins_what_the_folder_has(tmp_path):
    whole = replace(
        study(["mha", "mla", "gqa"], seeds=(0, 1, 2)),
        checked=True,
        tuning={"most": 7},
        match={"what": "params", "mismatch": {"mha": 0.0, "mla": 0.1, "gqa": 0.2}},
    )
    assert whole.joined(tmp_path) == whole
    whole.write(tmp_path)
    part = replace(
        study(["mla", "new"], seeds=(0,)),
        baseline="mla",
        match={"what": "params", "mismatch": {"mla": 0.3, "new": 0.4}},
    )
    joined = replace(part, command="attnlab run toy --only new").joined(tmp_path)
    assert joined.command == "attnlab run toy\nattnlab run toy --only new"
    assert joined.variants == ("mha", "mla", "gqa", "new")
    assert joined.seeds == (0, 1, 2)
    assert joined.baseline == "mha"  # left out, not given up
    assert not joined.checked
    assert joined.tuning == {"most": 7}
    assert joined.match["mismatch"] == {"mha": 0.0, "mla": 0.3, "gqa": 0.2, "new": 0.4}
    moved = replace(study(["mha", "mla"]), baseline="mla")
    assert moved.joined(tmp_path).baseline == "mla"
    joined.write(tmp_path)
    assert command_of(tmp_path) == "attnlab run toy or attnlab run toy --only new"


def test_tuning_runs_are_apart_from_the_runs_of_the_verdict(tmp_path):
    written = study(["a/b 0.5"], seeds=(0,))
    for rate in (3e-4, 1e-5, 0.0012):
        RunFolder(tmp_path, "a/b 0.5", 1000, recipe=f"lr-{rate:g}").open(CONFIG, ENVIRONMENT)
    tuning = tuning_runs(tmp_path, "a/b 0.5")
    assert [run.recipe for run in tuning] == ["lr-1e-05", "lr-0.0003", "lr-0.0012"]
    assert all(folder.status() == "partial" for folder in tuning)
    assert tuning_runs(tmp_path, "a/b") == []
    assert [run.status() for run in written.runs(tmp_path)["a/b 0.5"]] == ["absent"]


@pytest.mark.parametrize(
    ("path", "meant"),
    {
        "results/small/mha": "the study's folder is results/small",
        "results/small/mha/seed-0": "the study's folder is results/small",
        "small.py": "the study's folder is results/small",
        "small": "the study's folder is results/small",
        "results": "did you mean results/large or results/small?",
        "results/smal": "did you mean results/small?",
        "other": "attnlab run writes the folder of a study, such as results/other",
        "results/other": "attnlab run writes the folder of a study, such as results/STUDY",
    }.items(),
)
def test_a_path_without_a_study_names_the_folder_that_was_meant(tmp_path, monkeypatch, path, meant):
    monkeypatch.chdir(tmp_path)
    for name in ("small", "large"):
        (folder := Path("results") / name / "mha" / "seed-0").mkdir(parents=True)
        (folder.parents[1] / "study.json").touch()
    with pytest.raises(ValueError, match="no study in") as error:
        StudyRecord.read(Path(path))
    assert str(error.value).endswith(f"there is no {path}/study.json; {meant}")


def test_two_writers_of_one_file_leave_one_whole_file(tmp_path):
    path = tmp_path / "shared"
    replace_file(path, b"first")
    replace_file(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


def test_a_record_of_another_version_is_read_and_an_incomplete_one_is_named(tmp_path):
    study(["mha"], seeds=(0,)).write(tmp_path)
    path = tmp_path / "study.json"
    record = json.loads(path.read_text())
    del record["sha256"]
    path.write_text(json.dumps({**record, "questions": [{"kind": "pick"}], "claims": []}))
    assert StudyRecord.read(tmp_path).variants == ("mha",)
    del record["question"], record["seeds"]
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"study.json lacks question, seeds; restore it"):
        StudyRecord.read(tmp_path)
