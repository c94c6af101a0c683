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
import tiny_study
import torch

from attnlab import checkpoint
from attnlab.data import Places
from attnlab.launch import Seat, launch, plan, seats
from attnlab.mechanism import MechanismConfig
from attnlab.record import RunFolder
from attnlab.run import Ended

STUDY = Path(tiny_study.__file__)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return Places(None, tmp_path_factory.mktemp("cache"))


def fingerprints(study, places):
    fingerprint = tiny_study.base.data.load(places).fingerprint
    return dict.fromkeys(study.variants, fingerprint)


def test_what_has_ended_is_not_run_again(tmp_path, places):
    study = replace(tiny_study.study.only(["mha", "identity"]), seeds=1)
    planned = plan(study, tmp_path, fingerprints(study, places))
    assert [p.ended for p in planned] == [False, False]
    first = list(launch(planned, tmp_path, places, [Seat("cpu", 1)]))
    assert [h.event.status for h in first if isinstance(h.event, Ended)] == ["finished"] * 2

    more = replace(study, seeds=2)
    planned = plan(more, tmp_path, fingerprints(more, places))
    assert [p.ended for p in planned] == [True, True, False, False]
    second = list(launch(planned, tmp_path, places, [Seat("cpu", 1)] * 2))
    assert {h.planned.run.seed for h in second} == {1}


def test_other_settings_in_the_same_folder_are_refused_before_anything_is_spent(tmp_path, places):
    study = replace(tiny_study.study.only(["identity"]), seeds=1)
    planned = plan(study, tmp_path, fingerprints(study, places))
    list(launch(planned, tmp_path, places, [Seat("cpu", 1)]))
    with pytest.raises(ValueError, match=r"train\.steps is 12 there, 20 asked") as error:
        plan(study.override(["train.steps=20"]), tmp_path, fingerprints(study, places))
    assert "choose another --out" in str(error.value)
    with pytest.raises(ValueError, match="identity"):
        plan(study, tmp_path, {"identity": "other data"})
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
    planned = plan(study, tmp_path / "out", fingerprints(study, places))
    events = list(launch(planned, tmp_path / "out", places, [Seat("cpu", 1)]))
    ended = {h.planned.run.variant: h.event for h in events if isinstance(h.event, Ended)}
    assert ended["deadly"].status == "failed"
    assert "SIGKILL" in ended["deadly"].reason
    assert ended["broken"].reason == "RuntimeError: it never worked"
    assert ended["mha"].status == "finished"
    assert RunFolder(tmp_path / "out", "deadly", 0).status() == "failed"


def test_a_study_killed_in_the_middle_goes_on_to_the_same_bits(tmp_path, places):
    """The whole command is killed with SIGKILL, workers and all, and started again."""
    arguments = [
        *(sys.executable, "-m", "attnlab", "run", str(STUDY), "--only", "mha", "--seeds", "1"),
        *("--device", "cpu", "--workers", "1", "train.steps=300", "train.warmup_steps=2"),
        *("train.checkpoint_every=10", "train.log_every=10", "train.eval_every=100"),
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
    assert checkpoint.load_newest(cut.checkpoints, cut.identity()) is not None
    subprocess.run(**command(tmp_path / "cut"), check=True, capture_output=True)

    whole = RunFolder(tmp_path / "whole", "mha", 0)
    first, second = (
        [{k: v for k, v in line.items() if k != "train_seconds"} for line in folder.metrics()]
        for folder in (whole, cut)
    )
    assert first == second
    weights = [checkpoint.load_newest(f.checkpoints, f.identity()).model for f in (whole, cut)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert json.loads((tmp_path / "cut" / "failures.json").read_text()) == {}


def test_seats_are_the_devices_there_are():
    cores = len(os.sched_getaffinity(0))
    assert seats("cpu", 100) == [Seat("cpu", 1)] * cores
    assert seats("cpu", 1) == [Seat("cpu", cores)]
    assert seats("cpu", 100, workers=1) == [Seat("cpu", cores)]
    with pytest.raises(ValueError, match="'cuda:99' is not there"):
        seats("cuda:99", 1)
