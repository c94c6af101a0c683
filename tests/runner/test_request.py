"""A request applies its options to the study, once, and names its folders and devices."""

from dataclasses import replace
from pathlib import Path

import pytest
from support import ROOT, fake_workers, tiny_study

from attnlab.config import ConfigError
from attnlab.device.selection import Slot
from attnlab.runner.request import Request
from attnlab.study.load import load_study, shipped_names

TUNED = fake_workers.TUNED


def test_without_options_the_study_is_as_it_is():
    assert Request(study=TUNED).apply_options() is TUNED


def test_all_options_change_the_study():
    request = Request(
        study=TUNED,
        only="mha, mqa",
        seeds=5,
        steps=20,
        overrides=iter(["train.warmup_steps=3"]),
        tune=False,
    )
    study = request.apply_options()
    assert study == request.apply_options()
    assert (list(study.variants), study.seeds, study.learning_rates) == (["mha", "mqa"], 5, None)
    assert {(c.train.steps, c.train.warmup_steps) for c in study.variants.values()} == {(20, 3)}


def test_a_study_has_a_name_a_path_and_lengths():
    assert Request(study="fair_search", length="medium").apply_options().name == (
        "fair_search_medium"
    )
    loaded = Request(study=Path(tiny_study.__file__), only=iter(["mha"])).apply_options()
    assert (loaded.name, list(loaded.variants)) == ("tiny_study", ["mha"])
    with pytest.raises(ValueError, match="no study 'quikstart'; did you mean 'quickstart'"):
        Request(study="quikstart").apply_options()
    with pytest.raises(ConfigError, match="no variant 'mhx'; did you mean 'mha'"):
        Request(study=TUNED, only=["mhx"]).apply_options()


def test_the_results_are_in_the_folder_that_is_named():
    assert Request(study=TUNED, out="here").study_dir(TUNED) == Path("here")
    assert Request(study=TUNED).study_dir(replace(TUNED, name="mine")) == Path("results/mine")
    with pytest.raises(ValueError, match="the study has no name"):
        Request(study=TUNED).study_dir(TUNED)


def test_no_command_writes_to_the_published_results_by_default():
    for name in shipped_names():
        study = load_study(name)
        assert Request(study=study).study_dir(study) == Path("results") / name
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "/results/" in ignored
    assert not any(line.startswith("!") for line in ignored)
    assert (ROOT / "published/mechanisms/runs.jsonl.gz").is_file()


def test_there_are_no_more_workers_than_runs():
    alone = replace(TUNED.only(["mha"]), seeds=1, learning_rates=None)
    (slot,) = Request(study=alone, device="cpu").slots(alone)
    assert slot.device == "cpu"
    assert Request(study=TUNED, device="cpu", workers=1).slots(TUNED) == [slot]
    assert isinstance(slot, Slot)


def test_the_call_names_what_was_given():
    assert Request(study="quickstart").call() == "attnlab.run('quickstart')"
    request = Request(study="a.py", only=("x", "y"), seeds=1, overrides=["train.steps=2"])
    assert request.call() == (
        "attnlab.run('a.py', only=['x', 'y'], seeds=1, overrides=['train.steps=2'])"
    )
