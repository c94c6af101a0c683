"""What is missing is run, on what there is; a death is a record, not the end of the study."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import tiny_study, twin_study

from attnlab.data import Places
from attnlab.device.selection import Slot
from attnlab.mechanism import MechanismConfig
from attnlab.record import RunFolder
from attnlab.runner.events import Ended
from attnlab.runner.schedule import open_schedule
from attnlab.runner.workers import run_schedule
from attnlab.runner.workers.local import LocalWorkers
from attnlab.training import checkpoint

STUDY = Path(tiny_study.__file__)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return Places(None, tmp_path_factory.mktemp("cache"))


def fingerprints(study, places):
    fingerprint = tiny_study.base.data.load(places).fingerprint
    return dict.fromkeys(study.variants, fingerprint)


def test_what_has_ended_is_not_run_again(tmp_path, places):
    study = replace(tiny_study.study.only(["mha", "identity"]), seeds=1)
    schedule = open_schedule(study, tmp_path, fingerprints(study, places))
    assert schedule.verdict_count() == (0, 2, 2)
    first = list(run_schedule(schedule, LocalWorkers([Slot("cpu", 1)], tmp_path, places)))
    assert [h.event.status for h in first if isinstance(h.event, Ended)] == ["finished"] * 2

    more = replace(study, seeds=2)
    schedule = open_schedule(more, tmp_path, fingerprints(more, places))
    assert schedule.verdict_count() == (2, 4, 4)
    second = list(run_schedule(schedule, LocalWorkers([Slot("cpu", 1)] * 2, tmp_path, places)))
    assert {h.run.seed for h in second} == {1}
    assert schedule.verdict_count() == (4, 4, 4)


def test_other_settings_in_the_same_folder_are_refused_before_anything_is_spent(tmp_path, places):
    study = replace(tiny_study.study.only(["identity"]), seeds=1)
    schedule = open_schedule(study, tmp_path, fingerprints(study, places))
    list(run_schedule(schedule, LocalWorkers([Slot("cpu", 1)], tmp_path, places)))
    with pytest.raises(ValueError, match=r"train\.steps is 12 there, 20 requested") as error:
        open_schedule(study.override(["train.steps=20"]), tmp_path, fingerprints(study, places))
    assert "choose another --out" in str(error.value)
    with pytest.raises(ValueError, match="identity"):
        open_schedule(study, tmp_path, {"identity": "other data"})
    assert RunFolder(tmp_path, "identity", 0).status() == "finished"


def test_a_worker_that_dies_fails_its_run_and_the_study_goes_on(tmp_path, places, monkeypatch):
    (tmp_path / "deadly.py").write_text(
        "import os, signal\n"
        "from dataclasses import dataclass\n"
        "from attnlab.mechanisms.identity import Identity\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Deadly(Identity):\n"
        "    def build(self, d_model, dropout=0.0):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    (tmp_path / "broken.py").write_text(
        "from dataclasses import dataclass\n"
        "from attnlab.mechanisms.identity import Identity\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Broken(Identity):\n"
        "    def build(self, d_model, dropout=0.0):\n"
        "        raise RuntimeError('it never worked')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MechanismConfig, "kinds", dict(MechanismConfig.kinds))
    base = tiny_study.base
    study = replace(
        tiny_study.study,
        seeds=1,
        variants={
            "deadly": base.with_mechanisms(MechanismConfig.from_dict({"kind": "deadly.py:Deadly"})),
            "broken": base.with_mechanisms(MechanismConfig.from_dict({"kind": "broken.py:Broken"})),
            "mha": base,
        },
    )
    schedule = open_schedule(study, tmp_path / "out", fingerprints(study, places))
    events = list(run_schedule(schedule, LocalWorkers([Slot("cpu", 1)], tmp_path / "out", places)))
    ended = {h.run.variant: h.event for h in events if isinstance(h.event, Ended)}
    assert ended["deadly"].status == "failed"
    assert "SIGKILL" in ended["deadly"].reason
    assert ended["broken"].reason == "RuntimeError: it never worked"
    assert ended["mha"].status == "finished"
    assert RunFolder(tmp_path / "out", "deadly", 0).status() == "failed"


def test_a_study_killed_in_the_middle_goes_on_to_the_same_bits(tmp_path, places):
    """The whole command is killed with SIGKILL, workers and all, and started again."""
    arguments = [
        *(sys.executable, "-m", "attnlab", "run", str(STUDY), "--only", "mha", "--seeds", "1"),
        *("--no-check", "--device", "cpu", "--workers", "1", "train.steps=100"),
        *("train.warmup_steps=2", "train.checkpoint_every=10", "train.log_every=10"),
        "train.eval_every=50",
    ]
    environment = {**os.environ, "ATTNLAB_CACHE": str(places.cache)}

    def command(out):
        return {"args": [*arguments, "--out", str(out)], "env": environment, "cwd": tmp_path}

    subprocess.run(**command(tmp_path / "whole"), check=True, capture_output=True)
    process = subprocess.Popen(
        **command(tmp_path / "cut"), stdout=subprocess.DEVNULL, start_new_session=True
    )
    cut = RunFolder(tmp_path / "cut", "mha", 0)
    deadline = time.monotonic() + 60
    while not list(cut.checkpoints.glob("step-*0")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert cut.status() == "partial"
    assert checkpoint.load_newest(cut.checkpoints, cut.identity()).checkpoint is not None
    subprocess.run(**command(tmp_path / "cut"), check=True, capture_output=True)

    whole = RunFolder(tmp_path / "whole", "mha", 0)
    first, second = (
        [{k: v for k, v in line.items() if k != "train_seconds"} for line in folder.metrics()]
        for folder in (whole, cut)
    )
    assert first == second
    ends = [checkpoint.load_newest(f.checkpoints, f.identity()) for f in (whole, cut)]
    weights = [end.checkpoint.model for end in ends]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert json.loads((tmp_path / "cut" / "failures.json").read_text()) == {}


def losses(study_dir):
    return {
        str(path.parent.relative_to(study_dir)): json.loads(path.read_text())["final_loss"]
        for path in study_dir.rglob("summary.json")
    }


def test_tuning_killed_in_the_middle_goes_on_to_the_same_choice_and_verdict(tmp_path, places):
    """The whole command is killed with SIGKILL while it tunes, and another goes on."""
    (tmp_path / "tuned.py").write_text("from support.twin_study import study")
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "attnlab", "run", "tuned.py", "--no-check"),
            *("--device", "cpu", "--workers", "1", "--out", str(cut)),
        ],
        env={
            **os.environ,
            "ATTNLAB_CACHE": str(places.cache),
            "PYTHONPATH": os.pathsep.join(["src", str(Path(__file__).parents[1]), *sys.path]),
        },
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not list(cut.glob("twin/tuning/*/*.partial/checkpoints/step-*0")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    study, ended = twin_study.study, losses(cut)
    assert 2 <= len(ended) < 6
    times = {path: path.stat().st_mtime_ns for path in cut.rglob("seed-*/summary.json")}

    for folder in (cut, whole):
        schedule = open_schedule(study, folder, fingerprints(study, places))
        list(run_schedule(schedule, LocalWorkers([Slot("cpu", 1)], folder, places)))
    assert losses(cut) == losses(whole)
    assert len(losses(whole)) == 2 * 3 + 2
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    chosen = {
        name: json.loads((cut / name / "tuning" / "choice.json").read_text())
        for name in study.variants
    }
    assert chosen["mha"] == chosen["twin"]
    for name, choice in chosen.items():
        config = RunFolder(cut, name, 0).config()
        assert config["train"]["learning_rate"] == choice["learning_rate"]
    assert not list(cut.glob("*/tuning/*/*/checkpoints"))
