"""Copies of the metrics have every point once, and an error in a tool never ends a run."""

import json
import sys
from pathlib import Path

import pytest

from attnlab.record import RunFolder
from attnlab.runner import tracking
from attnlab.runner.tracking import Tracker

CONFIG = {"identity": "a1b2", "train": {"steps": 4}}
WANDB = """
import json
from types import SimpleNamespace

LOG = []


class Settings:
    mode = "online"

    def __init__(self, **settings):
        pass


class Run:
    def __init__(self, **options):
        self.step, self.summary = 2 if "resumed" in str(options["dir"]) else 0, {}
        self.options = options

    def log(self, values, step):
        LOG.append((self.options["name"], step, values))

    def finish(self, exit_code):
        LOG.append((self.options["name"], "exit", exit_code, self.summary))


def setup():
    return SimpleNamespace(settings=Settings)


def login(prompt):
    return False


def init(**options):
    LOG.append(("init", options["project"], options["group"], options["id"]))
    return Run(**options)
"""


class Notes:
    """A tool that records its calls."""

    def __init__(self) -> None:
        self.said = list[tuple[object, ...]]()

    def copies(self, study_dir: Path):
        notes = self

        class Copy:
            def __init__(self, run):
                self.name = run.ended.relative_to(study_dir).as_posix()
                notes.said.append((self.name, "anew"))

            def add(self, step, values):
                notes.said.append((self.name, step, values))

            def end(self, summary):
                notes.said.append((self.name, "end", summary and summary["status"]))

        return Copy


class Broken(Notes):
    def copies(self, study_dir: Path):
        def refuse(run):
            raise RuntimeError("the server is on fire\nsee the manual")

        return refuse


@pytest.fixture
def notes(monkeypatch):
    notes = Notes()
    tools = {"notes": notes.copies, "broken": Broken().copies}
    monkeypatch.setattr(tracking, "TOOLS", tools)
    return notes


@pytest.fixture
def run(tmp_path):
    return begun(tmp_path / "study")


def begun(study_dir: Path, variant: str = "mha") -> RunFolder:
    run = RunFolder(study_dir, variant, 0)
    run.open(CONFIG, {})
    return run


def finish(run: RunFolder) -> None:
    run.finish({"status": "finished", "steps": 4, "final_loss": 1.5, "device": "CPU"})


def half_a_run(run: RunFolder, tools: list[str]) -> None:
    """Copied up to step 3, and interrupted; the last checkpoint was at step 1."""
    with Tracker(tools, run.ended.parents[1], print) as tracker:
        for step in (1, 2, 3):
            run.append({"step": step, "train_loss": 9.0 / step})
            tracker.update(run)
    run.inherit([line for line in run.metrics() if line["step"] <= 1])
    run.open(CONFIG, {})


def rest_of_it(run: RunFolder, tools: list[str]) -> None:
    with Tracker(tools, run.ended.parents[1], print) as tracker:
        for step in (2, 3, 4):
            run.append({"step": step, "train_loss": 9.0 / step, "eval_loss": float("nan")})
            tracker.update(run)
        finish(run)
        tracker.update(run)
        tracker.update(run)


def test_each_line_is_copied_once_and_then_the_end(notes, run, capsys):
    rest_of_it(run, ["notes"])
    assert notes.said == [
        ("mha/seed-0", "anew"),
        ("mha/seed-0", 2, {"train_loss": 4.5}),
        ("mha/seed-0", 3, {"train_loss": 3.0}),
        ("mha/seed-0", 4, {"train_loss": 2.25}),
        ("mha/seed-0", "end", "finished"),
    ]


def test_a_resumed_run_is_copied_again_from_its_first_line(notes, run):
    half_a_run(run, ["notes"])
    assert notes.said[-1] == ("mha/seed-0", "end", None)
    notes.said.clear()
    rest_of_it(run, ["notes"])
    assert [what for _, what, *_ in notes.said] == ["anew", 1, 2, 3, 4, "end"]


def test_runs_go_on_beside_each_other(notes, run, tmp_path):
    other = begun(tmp_path / "study", "mqa")
    with Tracker(["notes"], tmp_path / "study", print) as tracker:
        for step in (1, 2):
            for one in (run, other):
                one.append({"step": step, "train_loss": 1.0})
                tracker.update(one)
        other.fail("RuntimeError: no")
        tracker.update(other)
    told = [(name, what) for name, what, *_ in notes.said]
    for name in ("mha/seed-0", "mqa/seed-0"):
        assert [what for run, what in told if run == name] == ["anew", 1, 2, "end"]
    assert ("mqa/seed-0", "end", "failed") in notes.said


def test_a_tool_that_fails_stops_once_and_the_others_go_on(notes, run, tmp_path):
    said = list[str]()
    with Tracker(["broken", "notes"], tmp_path / "study", said.append) as tracker:
        for step in (1, 2):
            run.append({"step": step, "train_loss": 1.0})
            tracker.update(run)
    assert said == ["tracking with broken has stopped: RuntimeError: the server is on fire"]
    assert [what for _, what, *_ in notes.said] == ["anew", 1, 2, "end"]


def test_without_a_tool_nothing_is_read(run, monkeypatch):
    monkeypatch.setattr(RunFolder, "metrics", lambda _: pytest.fail("it was read"))
    with Tracker([], run.ended.parents[1], print) as tracker:
        tracker.update(run)


@pytest.mark.parametrize("tool", ["tensorboard", "wandb"])
def test_a_tool_that_is_not_installed_is_an_error_at_once(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"is not installed: pip install (tensorboard|wandb)"):
        Tracker([tool], tmp_path, print)


def test_an_unknown_tool_is_an_error_with_a_suggestion(tmp_path):
    with pytest.raises(ValueError, match="no tracking tool 'tensorbord'; did you mean"):
        Tracker(["tensorbord"], tmp_path, print)


def test_tensorboard_has_every_point_once_after_an_interruption(run):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    half_a_run(run, ["tensorboard"])
    rest_of_it(run, ["tensorboard"])
    folder = run.ended.parents[1] / "tensorboard" / "mha" / "seed-0"
    found = EventAccumulator(str(folder)).Reload()
    points = {
        tag: [(p.step, p.value) for p in found.Scalars(tag)] for tag in found.Tags()["scalars"]
    }
    assert points == {
        "train_loss": [(1, 9.0), (2, 4.5), (3, 3.0), (4, 2.25)],
        "final_loss": [(4, 1.5)],
    }


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A `wandb` that records its calls; nobody is logged in."""
    (tmp_path / "wandb.py").write_text(WANDB)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    import wandb

    yield wandb
    sys.modules.pop("wandb", None)


def test_wandb_without_a_key_is_an_error_before_anything_is_spent(stand_in, tmp_path):
    with pytest.raises(ValueError, match="has no key: run wandb login, or set WANDB_MODE=offline"):
        Tracker(["wandb"], tmp_path, print)


def test_wandb_has_a_run_by_variant_with_its_summary(stand_in, run):
    stand_in.Settings.mode = "offline"
    rest_of_it(run, ["wandb"])
    begin, *told, end = stand_in.LOG
    assert begin[:3] == ("init", "study", "mha")
    assert [step for _, step, _ in told] == [2, 3, 4]
    assert end[:3] == ("mha/seed-0", "exit", 0)
    assert json.loads(json.dumps(end[3]))["final_loss"] == 1.5


def test_wandb_keeps_the_id_of_a_run_that_goes_on_and_gets_no_step_again(stand_in, tmp_path):
    stand_in.Settings.mode = "offline"
    run = begun(tmp_path / "resumed")  # the stand-in's server has it up to step 1
    old = run.ended.parents[1] / "wandb"
    half_a_run(run, ["wandb"])
    ids = {entry[3] for entry in stand_in.LOG if entry[0] == "init"}
    kept = old / f"offline-run-20260101-{next(iter(ids))}"
    kept.mkdir(parents=True)
    stand_in.LOG.clear()
    rest_of_it(run, ["wandb"])
    assert {entry[3] for entry in stand_in.LOG if entry[0] == "init"} == ids
    assert [entry[1] for entry in stand_in.LOG if entry[0] != "init"] == [2, 3, 4, "exit"]
    assert not kept.exists()


@pytest.mark.parametrize(
    ("tool", "link"),
    [("tensorboard", "tensorboard"), ("tensorboard", "tensorboard/mha"), ("wandb", "wandb")],
)
def test_a_link_out_of_the_study_is_not_followed(stand_in, run, tmp_path, tool, link):
    if tool == "tensorboard":
        pytest.importorskip("tensorboard")
    stand_in.Settings.mode = "offline"
    mine = tmp_path / "mine" / "seed-0"
    mine.mkdir(parents=True)
    (mine / "offline-run-1-note.txt").write_text("mine")
    path = run.ended.parents[1] / link
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(tmp_path / "mine")
    said = list[str]()
    with Tracker([tool], run.ended.parents[1], said.append) as tracker:
        run.append({"step": 1, "train_loss": 9.0})
        tracker.update(run)
    assert "outside" in said[0]
    assert [p.name for p in mine.parent.rglob("*")] == ["seed-0", "offline-run-1-note.txt"]
    assert not any(entry[0] == "init" for entry in stand_in.LOG)
