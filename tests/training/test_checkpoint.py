"""A run keeps its last and its best weights, completely or not at all, and detects damage."""

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import tiny_study
from typer.testing import CliRunner

from attnlab.cli import app
from attnlab.data import Places
from attnlab.inference.export import export
from attnlab.inference.saved_model import load_run
from attnlab.record import RunFolder
from attnlab.record.atomic_files import DamagedError
from attnlab.record.verified_folder import read_verified, write_verified
from attnlab.runner.events import Ended, Event, Progress
from attnlab.runner.execute import corpus_of, execute
from attnlab.training import checkpoint
from attnlab.training.evaluate import Quality
from attnlab.training.run import Run, RunConfig

CPU = torch.device("cpu")
BASE = tiny_study.base  # 12 steps, checkpoints at 4, 8 and 12, evaluations at 6 and 12


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, places) -> Path:
    """A study's folder with a run that has ended, for tests that change nothing in it."""
    folder = tmp_path_factory.mktemp("whole")
    list(run(BASE, folder, places))
    return folder


@pytest.fixture(scope="module")
def interrupted_run(tmp_path_factory, places) -> Path:
    """A study's folder with a run that was interrupted at step 9; its last checkpoint is at 8."""
    folder = tmp_path_factory.mktemp("interrupted")
    run_to(9, BASE, folder, places).close()
    return folder


@pytest.fixture
def interrupted(tmp_path, interrupted_run) -> Path:
    """A copy of it, for one test to change and to continue."""
    return shutil.copytree(interrupted_run, tmp_path / "interrupted")


def with_train(**changes: object) -> RunConfig:
    return replace(BASE, train=replace(BASE.train, **changes))


def run(config: RunConfig, folder: Path, places: Places) -> Iterator[Event]:
    identity = config.identity(corpus_of(config.data, places).fingerprint)
    return execute(Run(variant="mha", config=config), folder, identity, places, CPU)


def run_to(step: int, config: RunConfig, folder: Path, places: Places) -> Iterator[Event]:
    """The rest of its events, after that of a step."""
    events = run(config, folder, places)
    while not (isinstance(event := next(events), Progress) and event.step == step):
        assert isinstance(event, Progress), event
    return events


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first.keys() | second.keys())


def newest(folder: RunFolder) -> checkpoint.Checkpoint:
    return checkpoint.load_newest(folder.checkpoints, folder.identity()).checkpoint


def test_a_run_that_keeps_none_has_checkpoints_until_it_has_ended(tmp_path, places, monkeypatch):
    config, written, save = with_train(keep="none"), [], checkpoint.save
    monkeypatch.setattr(
        checkpoint,
        "save",
        lambda folder, state, *others: (
            written.append(state.step),
            save(folder, state, *others),
        ),
    )
    events = run(config, tmp_path, places)
    while not (isinstance(event := next(events), Progress) and event.step == 9):
        pass
    folder = RunFolder(tmp_path, "mha", 0)
    assert newest(folder).step == 8
    events.close()  # the process ends here
    events = run(config, tmp_path, places)
    assert next(events).step == 8
    list(events)
    assert written == [4, 8]  # and not at the last step, 12
    assert folder.status() == "finished"
    assert not folder.checkpoints.exists()


@pytest.mark.parametrize("keep", ["best_and_last", "last", "none"])
def test_what_is_kept_does_not_make_it_another_run(keep):
    config = with_train(keep=keep)
    assert config.identity("data") == BASE.identity("data")
    assert config.identity("data") != with_train(keep=keep, checkpoint_every=5).identity("data")


@pytest.fixture
def losses(monkeypatch) -> Callable[..., None]:
    """Makes the evaluations say these losses, in order."""

    def say(*values: float) -> None:
        said, mean = iter(values), Quality.mean
        monkeypatch.setattr(
            Quality,
            "mean",
            lambda quality, prefix: (
                mean(quality, prefix) | ({"eval_loss": next(said)} if prefix == "eval" else {})
            ),
        )

    return say


EVERY_THIRD = {"eval_every": 3, "checkpoint_every": 3}


def test_the_best_weights_are_those_of_the_lowest_validation_loss(tmp_path, places, losses):
    losses(3.0, 2.0, 2.5, 2.0)  # at steps 3, 6, 9 and 12
    events = run_to(9, with_train(**EVERY_THIRD), tmp_path, places)
    folder = RunFolder(tmp_path, "mha", 0)
    at_6 = newest(folder).model
    list(events)
    found = newest(folder)
    assert (found.step, found.best.step, found.best.loss) == (12, 6, 2.0)
    assert same(found.best.model, at_6)
    assert not same(found.model, at_6)
    assert (folder.summary()["best_step"], folder.summary()["best_loss"]) == (6, 2.0)
    best, last = (load_run(folder.path, which=which) for which in ("best", "last"))
    assert (best.step, last.step) == (6, 12)
    assert same(best.model.state_dict(), at_6)
    assert same(last.model.state_dict(), found.model)


@pytest.mark.parametrize("cut", [9, 12])
def test_an_interrupted_run_keeps_its_best_weights(tmp_path, places, losses, cut):
    losses(3.0, 2.0, 2.5, 2.5)
    config = with_train(**EVERY_THIRD)
    run_to(cut, config, tmp_path, places).close()
    folder = RunFolder(tmp_path, "mha", 0)
    at_best = newest(folder).best.model
    losses(2.5, 2.5)
    list(run(config, tmp_path, places))
    assert newest(folder).best.step == 6
    assert same(newest(folder).best.model, at_best)


def test_the_best_weights_are_not_stored_twice_if_they_are_the_last(whole_run):
    folder = RunFolder(whole_run, "mha", 0)
    assert newest(folder).best.step == 12
    assert not (folder.checkpoints / "step-000012" / "best.safetensors").exists()
    assert load_run(folder.path, which="best").step == 12


def test_a_run_that_keeps_its_last_alone_has_no_best(tmp_path, places):
    list(run(with_train(keep="last"), tmp_path, places))
    folder = RunFolder(tmp_path, "mha", 0).path
    assert load_run(folder).step == 12
    with pytest.raises(ValueError, match=r"only train\.keep=best_and_last keeps them"):
        load_run(folder, which="best")


def altered(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", altered),
        ("model.safetensors", Path.unlink),
        ("optimizer.safetensors", altered),
        ("optimizer.safetensors", truncated),
        ("state.json", truncated),
        ("state.json", Path.unlink),
    ],
)
def test_a_damaged_checkpoint_is_skipped_for_the_one_before_with_a_note(
    interrupted, places, name, damage
):
    folder = RunFolder(interrupted, "mha", 0)
    damage(folder.checkpoints / "step-000008" / name)
    events = run(BASE, interrupted, places)
    first = next(events)
    assert first.step == 4
    assert first.note.startswith(f"checkpoint step-000008: {name} ")
    assert first.note.endswith("; that of step 4 is used instead")
    begins = folder.environment()["begins"]
    assert begins["step"] == 4
    assert begins["skipped"][0].startswith(f"step-000008: {name} ")
    list(events)
    assert newest(folder).step == 12


def test_a_run_without_an_intact_checkpoint_starts_again_with_a_note(interrupted, places):
    folder = RunFolder(interrupted, "mha", 0)
    for weights in folder.checkpoints.glob("*/model.safetensors"):
        altered(weights)
    first = next(run(BASE, interrupted, places))
    assert (first.step, first.note.count("altered")) == (0, 2)
    assert first.note.endswith("; there is no other")
    other = checkpoint.load_newest(folder.checkpoints, "another run")
    assert other.checkpoint is None


def test_an_intact_checkpoint_needs_no_note(interrupted, places):
    assert next(run(BASE, interrupted, places)).note is None
    begins = RunFolder(interrupted, "mha", 0).environment()["begins"]
    assert begins == {"step": 8, "skipped": []}


@contextmanager
def no_file_above(n_bytes: int) -> Iterator[None]:
    """The system refuses to write more into a file of this process, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room_for", ["the first file", "nothing, not even the reason"])
def test_a_full_disk_stops_the_run_with_the_last_checkpoint_intact(
    tmp_path, places, whole_run, room_for
):
    events = run_to(6, BASE, tmp_path / "full", places)
    folder = RunFolder(tmp_path / "full", "mha", 0)
    model, optimizer = (
        (folder.checkpoints / "step-000004" / f"{name}.safetensors").stat().st_size
        for name in ("model", "optimizer")
    )
    assert model < optimizer
    with no_file_above(model if room_for == "the first file" else 0):
        *_, ended = events
    assert isinstance(ended, Ended)
    assert ended.status == "failed"
    assert "the checkpoint of step 8 could not be written" in ended.reason
    assert "File too large" in ended.reason
    assert "step-000004 is intact, and the same command continues from there" in ended.reason
    if room_for == "the first file":
        assert folder.summary()["reason"] == ended.reason
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-000004"]

    events = run(BASE, tmp_path / "full", places)
    first = next(events)
    assert (first.step, first.note) == (4, None)
    list(events)
    whole = newest(RunFolder(whole_run, "mha", 0))
    assert same(newest(folder).model, whole.model)


def test_a_folder_is_replaced_as_a_whole_and_says_what_was_done_to_it(tmp_path):
    folder = tmp_path / "verified"
    for value in (1, 2):
        files = {
            "a.safetensors": checkpoint.tensor_file({"x": torch.tensor([value])}),
            "b": b"text",
        }
        write_verified(folder, files, {"n": value})
    assert [path.name for path in tmp_path.iterdir()] == ["verified"]
    assert read_verified(folder) == {"n": 2}
    state = folder / "state.json"
    state.write_text(state.read_text().replace('"n": 2', '"n": 3'))
    with pytest.raises(DamagedError, match=r"state\.json was altered"):
        read_verified(folder)
    state.write_text(state.read_text().replace('"n": 3', '"n": 2'))
    (folder / "b").write_text("other")
    with pytest.raises(DamagedError, match="b was altered or cut short"):
        read_verified(folder)


def test_an_exported_run_needs_no_other_file_and_loads_with_one_call(tmp_path, places, losses):
    losses(3.0, 2.0, 2.5, 2.5)
    list(run(with_train(**EVERY_THIRD), tmp_path / "study", places))
    folder = tmp_path / "study" / "mha" / "seed-0"
    for best in (False, True):
        command = ["export", str(folder), "--out", str(tmp_path / f"{best}"), *["--best"] * best]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
    kept = newest(RunFolder(tmp_path / "study", "mha", 0))
    last, best = (load_run(tmp_path / name) for name in ("False", "True"))
    assert same(last.model.state_dict(), kept.model)
    assert same(best.model.state_dict(), kept.best.model)
    assert (last.step, best.step) == (12, 6)
    assert last.config == with_train(**EVERY_THIRD)
    assert last.codec.decode(last.codec.encode(["def é"])) == "def é"
    files = {"config.json", "model.safetensors", "state.json", "tokenizer.json"}
    assert {path.name for path in (tmp_path / "True").iterdir()} == files
    text = CliRunner().invoke(app, ["generate", str(tmp_path / "True"), "--prompt", "def "])
    assert text.exit_code == 0, text.output


def test_a_run_that_cannot_be_exported_or_loaded_is_an_error(tmp_path, whole_run):
    folder = shutil.copytree(whole_run, tmp_path / "study") / "mha" / "seed-0"
    with pytest.raises(ValueError, match=r"no run in .*did you mean .*seed-0"):
        export(folder.parent, tmp_path / "out")
    with pytest.raises(ValueError, match="is the folder of a run; choose another --out"):
        export(folder, folder)
    folder.rename(f"{folder}.partial")
    with pytest.raises(ValueError, match=r"no run in .*did you mean .*/seed-0\.partial\?"):
        export(folder, tmp_path / "out")
    Path(f"{folder}.partial").rename(folder)
    tokenizer = (folder / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match=r"/seed-0/tokenizer\.json is missing; restore it"):
        export(folder, tmp_path / "out")
    tokenizer.rename(folder / "tokenizer.json")
    altered(folder / "checkpoints" / "step-000012" / "model.safetensors")
    done = CliRunner().invoke(app, ["export", str(folder), "--out", str(tmp_path / "out")])
    assert "that of step 8 is used instead" in " ".join(done.stderr.split())
    assert "of step 8" in done.stdout
    text = CliRunner().invoke(app, ["generate", str(folder), "--prompt", "x"])
    assert "that of step 8 is used instead" in " ".join(text.stderr.split())
    with pytest.raises(ValueError, match="has the last weights only"):
        load_run(tmp_path / "out", which="best")
    tokenizer = tmp_path / "out" / "tokenizer.json"
    tokenizer.write_text(json.dumps({"another": "tokenizer"}))
    with pytest.raises(ValueError, match=r"is damaged: tokenizer\.json was altered"):
        load_run(tmp_path / "out")
