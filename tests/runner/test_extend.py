"""An extended run equals a run of its length, and its folder is like any other."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import fake_workers, tiny_study
from support.reported_study import edit
from typer.testing import CliRunner

import attnlab
from attnlab.analysis.analysis import analysis_of
from attnlab.analysis.compare_folders import read_folders
from attnlab.cli import app
from attnlab.config import ConfigError
from attnlab.data import Places
from attnlab.record import RunFolder
from attnlab.reporting.files import write_report
from attnlab.runner import extend as extending
from attnlab.runner.events import Progress
from attnlab.runner.execute import corpus_of, execute
from attnlab.training.checkpoint import load_newest
from attnlab.training.config import Extension
from attnlab.training.learning_rate import WarmupStableDecay
from attnlab.training.run import Run, RunConfig
from attnlab.training.step import _rates

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return Places(None, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def results(tmp_path_factory, places):
    """A folder with the study `tiny`, whose run `sparse` has finished its 12 steps."""
    folder = tmp_path_factory.mktemp("results")
    trained(tiny_study.study.variants["sparse"], folder / "tiny", places)
    return folder


@pytest.fixture
def parent(results, tmp_path, monkeypatch):
    """A copy of that run. No report is written, which takes longer than training."""
    monkeypatch.setattr(extending, "write_report", Path.is_dir)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(results, "results")
    return Path("results/tiny/sparse/seed-0")


def trained(config: RunConfig, study_dir: Path, places: Places, variant: str = "sparse"):
    identity = config.identity(corpus_of(config.data, places).fingerprint)
    events = list(execute(Run(variant=variant, config=config), study_dir, identity, places, CPU))
    assert events[-1].status == "finished", events[-1]
    return RunFolder(study_dir, variant, config.seed)


def extend(run: Path, places: Places, **asked: object) -> RunFolder:
    return attnlab.extend(run, cache=places.cache, device="cpu", **asked)


def state(run: RunFolder):
    found = load_newest(run.checkpoints, run.identity()).checkpoint
    return found.model | {f"optimizer.{name}": tensor for name, tensor in found.optimizer.items()}


def timeless(metrics):
    return [{k: v for k, v in line.items() if k != "train_seconds"} for line in metrics]


def assert_same(first: RunFolder, second: RunFolder, *, after: int) -> None:
    """Assert equal weights, moments and metrics after a step."""
    ours, theirs = state(first), state(second)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    measured, expected = (
        [line for line in timeless(run.metrics()) if line["step"] > after]
        for run in (first, second)
    )
    assert measured == expected != []
    assert first.summary()["test_loss"] == second.summary()["test_loss"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, places):
    """The run `sparse` of 20 steps with the schedule of the extended run, trained from step 0."""
    config = tiny_study.study.variants["sparse"].extended(20, "rederived")
    return trained(config, tmp_path_factory.mktemp("whole"), places)


def test_an_extended_run_has_the_bits_of_one_that_was_this_long(parent, places, whole):
    """It has dropout, and attention that is dense in the first steps and then sparse."""
    extended = extend(parent, places, steps=20)
    assert_same(extended, whole, after=12)
    before = timeless(RunFolder.at(parent).metrics())
    assert timeless(extended.metrics())[: len(before)] == before


def test_a_longer_run_branches_off_before_the_decay(tmp_path, places, monkeypatch):
    """It is the run that trains alone to that length: settings, identity, weights, moments."""
    monkeypatch.setattr(extending, "write_report", Path.is_dir)
    decays = WarmupStableDecay(decay_fraction=0.5)
    short = replace(tiny_study.base, train=replace(tiny_study.base.train, schedule=decays))
    alone = replace(short, train=replace(short.train, steps=20))
    first = trained(short, tmp_path / "short", places, "mha")
    kept = sorted(path.name for path in first.checkpoints.iterdir())
    assert kept == ["step-000006-stable", "step-000008", "step-000012"]

    def interrupt(event: object) -> None:
        if isinstance(event, Progress) and event.step == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extend(first.path, places, steps=20, watch=interrupt, out=tmp_path / "long")
    begun = RunFolder(tmp_path / "long", "mha", 0)
    assert begun.environment()["begins"]["step"] == 6
    longer = extend(first.path, places, steps=20, out=tmp_path / "long")
    whole = trained(alone, tmp_path / "alone", places, "mha")
    assert_same(longer, whole, after=0)
    assert longer.identity() == whole.identity()
    parents = [run.summary()["parent"] for run in (first, longer, whole)]
    assert parents == [None, first.identity(), None]


def test_a_run_extended_twice_has_the_bits_of_one_with_the_same_rates(parent, places):
    once = extend(parent, places, steps=16, schedule="constant")
    twice = extend(once.path, places, steps=20)
    config = tiny_study.study.variants["sparse"].extended(16, "constant")
    config = config.extended(20, "rederived")
    assert_same(twice, trained(config, Path("whole"), places), after=16)


def test_past_learning_rates_stay_and_later_ones_follow_the_schedule():
    short = tiny_study.base.train
    long = replace(short, steps=20)
    ended, whole = _rates(short), _rates(long)
    rederived = _rates(short.extended(20, "rederived"))
    np.testing.assert_array_equal(rederived, ended + whole[12:])
    assert rederived[12] > rederived[11]
    constant = _rates(short.extended(20, "constant"))
    np.testing.assert_array_equal(constant, ended + [ended[-1]] * 8)
    both = short.extended(20, "constant").extended(30, "rederived")
    np.testing.assert_array_equal(_rates(both), constant + _rates(replace(short, steps=30))[20:])
    assert both.shorter() == short.extended(20, "constant")
    assert both.shorter().shorter() == short


def test_only_a_shorter_run_can_be_extended():
    with pytest.raises(ConfigError, match=r"extends\.steps: must be below 12, got 12"):
        replace(tiny_study.base.train, extends=Extension(steps=12, schedule="constant"))
    with pytest.raises(ConfigError, match=r"extends\.steps: must be below 8, got 9"):
        Extension(steps=8, schedule="constant", extends=Extension(steps=9, schedule="constant"))


def test_the_parent_is_in_the_record_and_stays_as_it_is(parent, places):
    before = {path: path.read_bytes() for path in parent.rglob("*") if path.is_file()}
    extended = extend(parent, places, steps=20)
    assert extended.path == Path("results/tiny_to_20/sparse/seed-0")
    assert extended.summary()["parent"] == RunFolder.at(parent).identity()
    assert RunFolder.at(parent).summary()["parent"] is None
    assert extended.config()["train"]["extends"] == {
        "steps": 12,
        "schedule": "rederived",
        "extends": None,
    }
    assert {path: path.read_bytes() for path in parent.rglob("*") if path.is_file()} == before


def test_it_is_reported_compared_generated_from_and_exported_like_any_other(
    parent, places, monkeypatch
):
    monkeypatch.setattr(extending, "write_report", write_report)
    fake_workers.draw_nothing(monkeypatch)
    extended = extend(parent, places, steps=20)
    analysis = attnlab.analyse(Path("results/tiny_to_20"))
    (variant,) = analysis.table.variants
    assert variant.curve("eval_loss").steps == (6, 12, 18, 20)
    assert variant.numbers["tokens"].mean == 20 * 2 * 32
    assert Path("results/tiny_to_20/report.html").is_file()
    table = read_folders([parent, extended.path], out=Path("out"), command="")
    assert table.unfair == (f"training steps: 12 in {parent}; 20 in {extended.path}",)
    assert analysis_of(table).order == ("tiny_to_20/sparse", "tiny/sparse")
    assert attnlab.load_run(extended.path).step == 20
    assert attnlab.export(extended.path, "mine").step == 20


def test_runs_extended_alike_are_one_study(parent, places):
    trained(replace(tiny_study.base, seed=1), Path("results/tiny"), places, "mha")
    for run in (parent, Path("results/tiny/mha/seed-1")):
        extend(run, places, steps=20)
    study = json.loads(Path("results/tiny_to_20/study.json").read_text())
    assert (study["variants"], study["seeds"]) == (["sparse", "mha"], [0, 1])
    assert study["command"].splitlines() == [
        f"attnlab.extend({str(run)!r}, steps=20, schedule='rederived')"
        for run in (parent, "results/tiny/mha/seed-1")
    ]


@pytest.mark.parametrize("interrupted_at", [12, 18])
def test_an_interrupted_extension_resumes_to_the_same_bits(parent, places, whole, interrupted_at):
    def interrupt(event: object) -> None:
        if isinstance(event, Progress) and event.step == interrupted_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extend(parent, places, steps=20, watch=interrupt)
    assert RunFolder(Path("results/tiny_to_20"), "sparse", 0).status() == "partial"
    seen = list[int]()
    extended = extend(parent, places, steps=20, watch=lambda e: seen.append(getattr(e, "step", 0)))
    assert seen[0] == {12: 12, 18: 16}[interrupted_at]
    assert_same(extended, whole, after=12)
    assert len(extended.metrics()) == len({line["step"] for line in extended.metrics()})

    def fail(event: object) -> None:
        pytest.fail("a run that has ended was started again")

    assert extend(parent, places, steps=20, watch=fail).path == extended.path


def test_a_damaged_last_checkpoint_is_replaced_by_the_one_before(parent, places, whole):
    (parent / "checkpoints/step-000012/model.safetensors").write_bytes(b"cut")
    notes = list[str | None]()
    extended = extend(
        parent, places, steps=20, watch=lambda event: notes.append(getattr(event, "note", None))
    )
    assert "step-000012: model.safetensors was altered or cut short" in notes[0]
    assert "that of step 8 is used instead" in notes[0]
    assert_same(extended, whole, after=8)


def test_an_invalid_extension_is_an_error_and_writes_nothing(parent, places, monkeypatch):
    def refused(run: Path, message: str, **asked: object) -> None:
        with pytest.raises(ValueError, match=message):
            extend(run, places, **{"steps": 20, **asked})
        assert not Path("results/tiny_to_20").exists()

    said = r"name the folder of a run, such as results/tiny/sparse/seed-0$"
    refused(parent.parent, f"no run in results/tiny/sparse: {said}")
    refused(parent.parent.parent, f"no run in results/tiny: {said}")
    refused(parent, "has 12 steps; 12 is not more", steps=12)
    extend(parent, places, steps=20, out="there")
    refused(parent, "'rederived' there, 'constant' requested", schedule="constant", out="there")

    keeps_none = replace(tiny_study.base, train=replace(tiny_study.base.train, keep="none"))
    bare = trained(keeps_none, Path("results/tiny"), places, "bare")
    refused(bare.path, r"no usable checkpoint in .*: there is none, as with train\.keep=none")
    other = corpus_of(tiny_study.base.data, places)
    with monkeypatch.context() as patch:
        patch.setattr(extending, "corpus_of", lambda *_: replace(other, fingerprint="other"))
        refused(parent, r"cannot be extended: its data has changed \(stdlib")
    edit(parent / "summary.json", status="diverged")
    refused(parent, r"has not finished \(diverged\): it cannot be extended")


def test_a_published_run_is_extended_beside_ones_own(parent, places):
    shutil.copytree("results/tiny", "published/tiny")
    before = {path: path.read_bytes() for path in Path("published").rglob("*") if path.is_file()}
    extended = extend(Path("published/tiny/sparse/seed-0"), places, by=1)
    assert extended.path == Path("results/tiny_to_13/sparse/seed-0")
    assert before == {
        path: path.read_bytes() for path in Path("published").rglob("*") if path.is_file()
    }


def test_runs_that_are_not_comparable_are_extended_on_demand(parent, places):
    extend(parent, places, by=1, out="there")
    trained(replace(tiny_study.base, seed=1), Path("results/tiny"), places, "mha")
    other = Path("results/tiny/mha/seed-1")
    with pytest.raises(ValueError, match=r"training steps: 13 in sparse.*\n.*use --anyway"):
        extend(other, places, by=2, out="there")
    extend(other, places, by=2, out="there", anyway=True)
    assert attnlab.analyse("there").table.unfair == ("training steps: 13 in sparse; 14 in mha",)


def test_the_command_prints_the_losses_before_and_after(parent, places, monkeypatch):
    monkeypatch.setenv("ATTNLAB_CACHE", str(places.cache))
    done = CliRunner().invoke(app, ["extend", str(parent), "--steps", "20", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    losses = [RunFolder.at(run).summary()["final_loss"] for run in (parent, _new())]
    assert "sparse seed 0: validation loss {:.4f} after 12 steps, {:.4f} after 20 steps".format(
        *losses
    ) in " ".join(done.output.split())
    assert f"Run: {_new()}" in done.output
    less = CliRunner().invoke(app, ["extend", str(parent), "--steps", "10", "--device", "cpu"])
    assert less.exit_code == 2
    assert "has 12 steps; 10 is not more" in less.stderr


@pytest.mark.gpu
def test_on_a_gpu_an_extended_run_is_that_of_its_length_but_for_rounding(tmp_path, places):
    cuda, config = torch.device("cuda", 0), tiny_study.base
    fingerprint = corpus_of(config.data, places).fingerprint
    longer = config.extended(20, "rederived")
    for folder, of_folder in (("short", config), ("whole", longer)):
        run, identity = Run(variant="mha", config=of_folder), of_folder.identity(fingerprint)
        list(execute(run, tmp_path / folder, identity, places, cuda))
    extended = attnlab.extend(
        tmp_path / "short/mha/seed-0", steps=20, cache=places.cache, device="cuda:0"
    )
    whole = RunFolder(tmp_path / "whole", "mha", 0)
    losses = [run.summary()["final_loss"] for run in (extended, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def _new() -> Path:
    return Path("results/tiny_to_20/sparse/seed-0")
