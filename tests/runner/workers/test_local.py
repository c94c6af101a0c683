"""Local workers execute the runs that remain; a process that dies fails one run, not the study."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import SOURCE, fake_workers, killed_study, tiny_study

import attnlab
from attnlab.data import Places
from attnlab.device.selection import Slot
from attnlab.mechanism import MechanismConfig
from attnlab.record import RunFolder, tuning_runs
from attnlab.runner.events import Ended
from attnlab.runner.schedule import open_schedule
from attnlab.runner.workers import run_schedule
from attnlab.runner.workers.local import LocalWorkers
from attnlab.training import checkpoint

TESTS = Path(__file__).parents[2]
BROKEN = """
import os, signal
from dataclasses import dataclass
from attnlab.mechanisms.identity import Identity

@dataclass(frozen=True, kw_only=True)
class Deadly(Identity):
    def build(self, d_model, dropout=0.0):
        os.kill(os.getpid(), signal.SIGKILL)

@dataclass(frozen=True, kw_only=True)
class Raises(Identity):
    def build(self, d_model, dropout=0.0):
        raise RuntimeError('it never worked')
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return Places(None, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def fingerprint(places):
    return tiny_study.base.data.load(places).fingerprint


def ended(study, study_dir, fingerprint, places, slots=1):
    """Execute the runs that remain; return their ends by variant and seed."""
    schedule = open_schedule(study, study_dir, dict.fromkeys(study.variants, fingerprint))
    workers = LocalWorkers([Slot(("cpu",), 1)] * slots, study_dir, places)
    events = list(run_schedule(schedule, workers))
    assert schedule.unfinished_variants() == []
    assert schedule.next() is None
    return {(e.run.variant, e.run.seed): e.event for e in events if isinstance(e.event, Ended)}


def test_runs_that_have_ended_are_not_run_again_nor_with_other_settings(
    tmp_path, places, fingerprint
):
    study = replace(tiny_study.study.only(["mha", "identity"]), seeds=1)
    fake_workers.work(fake_workers.make(study, tmp_path, fingerprint))
    second = ended(replace(study, seeds=2), tmp_path, fingerprint, places, slots=2)
    assert {run: end.status for run, end in second.items()} == {
        ("mha", 1): "finished",
        ("identity", 1): "finished",
    }

    fingerprints = dict.fromkeys(study.variants, fingerprint)
    with pytest.raises(ValueError, match=r"train\.steps is 12 there, 20 requested") as error:
        open_schedule(study.override(["train.steps=20"]), tmp_path, fingerprints)
    assert "existing runs were made with different settings" in str(error.value)
    assert "choose another --out" in str(error.value)
    with pytest.raises(ValueError, match="identity"):
        open_schedule(study, tmp_path, dict.fromkeys(study.variants, "other data"))
    assert RunFolder(tmp_path, "identity", 0).status() == "finished"


def test_a_worker_that_dies_fails_its_run_and_the_study_goes_on(
    tmp_path, places, fingerprint, monkeypatch
):
    (tmp_path / "broken.py").write_text(BROKEN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MechanismConfig, "kinds", dict(MechanismConfig.kinds))
    kinds = {"deadly": "broken.py:Deadly", "raises": "broken.py:Raises", "mha": "grouped_query"}
    variants = {
        name: tiny_study.base.with_mechanisms(MechanismConfig.from_dict({"kind": kind}))
        for name, kind in kinds.items()
    }
    study = replace(tiny_study.study, seeds=1, variants=variants | {"mha": tiny_study.base})
    ends = ended(study, tmp_path / "out", fingerprint, places)
    assert ends["deadly", 0].status == "failed"
    assert "SIGKILL" in ends["deadly", 0].reason
    assert ends["raises", 0].reason == "RuntimeError: it never worked"
    assert ends["mha", 0].status == "finished"
    assert RunFolder(tmp_path / "out", "deadly", 0).status() == "failed"


def test_every_kill_of_the_table_changes_nothing_and_leaves_no_process(tmp_path):
    """Each row once for one command, and some for two commands that share the folder."""
    script = [sys.executable, killed_study.__file__, str(tmp_path), "0", "12", "2"]
    path = os.pathsep.join([str(SOURCE), str(TESTS)])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(script, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "12 kills of 1" in done.stdout
    assert "2 kills of 2" in done.stdout


PARENT = """
import os, sys, time
from attnlab.device.child_process import ChildProcess, begin_child, signals_blocked
parent = os.getpid()
if sys.argv[1] == "fork":
    with signals_blocked():
        child = os.fork()
    if child == 0:
        begin_child(parent)
        import busy
else:
    child = ChildProcess(sys.argv[1]).pid
print(child, flush=True)
time.sleep(60)
"""
BUSY = """
import ctypes, sys, time
def call(pipe=None):
    ctypes.PyDLL(None).sleep(60)  # no thread of Python runs meanwhile
if not sys.argv[-1].endswith(":call"):
    call()
"""


@pytest.mark.parametrize("doing", ["busy:call", "busy:", "fork", "at once"])
def test_a_child_ends_with_its_killed_parent_whatever_it_is_doing(tmp_path, doing):
    """A long call that holds the interpreter, an import, a copy of the parent, and its start."""
    (tmp_path / "busy.py").write_text(BUSY)
    target = "busy:call" if doing == "at once" else doing
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, target],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(SOURCE), str(tmp_path)])},
        stdout=subprocess.PIPE,
    ) as process:
        child = int(process.stdout.readline())
        if doing != "at once":
            time.sleep(0.5)
        process.kill()
    deadline = time.monotonic() + 5
    while Path(f"/proc/{child}").exists():
        assert time.monotonic() < deadline, "the child outlives its parent"
        time.sleep(0.01)


def killed(command, environment, cwd, marker):
    """Start a command; kill it with SIGKILL once `marker` finds a file. Its workers then end."""
    process = subprocess.Popen(
        command, env=environment, cwd=cwd, stdout=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not list(cwd.glob(marker)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while True:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        assert time.monotonic() < deadline, "a worker outlives its driver"
        time.sleep(0.05)


def losses(study_dir):
    return {
        str(path.parent.relative_to(study_dir)): json.loads(path.read_text())["final_loss"]
        for path in study_dir.rglob("summary.json")
    }


def measurements(study_dir):
    """The metrics of all runs, without times."""
    return {
        str(path.parent.relative_to(study_dir)): [
            {k: v for k, v in json.loads(line).items() if k != "train_seconds"}
            for line in path.read_text().splitlines()
        ]
        for path in study_dir.rglob("metrics.jsonl")
    }


def test_a_killed_study_resumes_to_the_same_bits_choices_and_verdict(
    tmp_path, places, fingerprint, monkeypatch
):
    """The command is killed with SIGKILL while it tunes; its workers end by themselves."""
    fake_workers.draw_nothing(monkeypatch)
    (tmp_path / "tuned.py").write_text("from support.tiny_study import twins as study")
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    command = [
        *(sys.executable, "-c", fake_workers.UNDRAWN, "run", "tuned.py", "--no-check"),
        *("--device", "cpu", "--workers", "1", "--out", str(cut)),
    ]
    environment = {
        **os.environ,
        "ATTNLAB_CACHE": str(places.cache),
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent / "src"), str(TESTS), *sys.path]),
    }
    marker = "cut/twin/tuning/*/*.partial/checkpoints/step-*0"
    killed(command, environment, tmp_path, marker)
    (interrupted,) = (r for r in tuning_runs(cut, "twin") if r.status() == "partial")
    found = checkpoint.load_newest(interrupted.checkpoints, interrupted.identity())
    assert found.checkpoint is not None
    assert 2 <= len(losses(cut)) < 10
    times = {path: path.stat().st_mtime_ns for path in cut.rglob("seed-*/summary.json")}
    study = tiny_study.twins
    attnlab.run(study, out=cut, check=False, device="cpu", workers=1, cache=places.cache)
    schedule = open_schedule(study, whole, dict.fromkeys(study.variants, fingerprint))
    list(run_schedule(schedule, fake_workers.InProcess((), whole, places)))

    assert losses(cut) == losses(whole)
    assert len(losses(whole)) == 2 * (3 + 2) + 2
    assert measurements(cut) == measurements(whole)
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert json.loads((cut / "failures.json").read_text()) == {}
    chosen = {
        name: json.loads((cut / name / "tuning" / "choice.json").read_text())
        for name in study.variants
    }
    assert chosen["mha"]["seed"] != chosen["twin"]["seed"]
    for name, choice in chosen.items():
        runs = [RunFolder(folder, name, 0) for folder in (cut, whole)]
        for run in runs:
            assert run.config()["train"]["learning_rate"] == choice["learning_rate"]
        weights = [
            checkpoint.load_newest(run.checkpoints, run.identity()).checkpoint.model for run in runs
        ]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not list(cut.glob("*/tuning/*/*/checkpoints"))
