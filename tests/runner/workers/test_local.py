"""Local workers execute the runs that remain; a process that dies fails one run, not the study.

A run that is killed loses the steps since its last checkpoint at most, at any write.

Worker slots are the devices of this machine.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
import torch
from support import SOURCE, fake_workers, killed_study, tiny_study

import attnlab
from attnlab.data import Places
from attnlab.device.child_process import ChildProcess, Printed
from attnlab.device.machine import Slot, choose_device, one_worker, worker_slots
from attnlab.mechanism import MechanismConfig
from attnlab.record import RunFolder, lease, remove_temporary, tuning_runs
from attnlab.record.temporary_files import TEMPORARY
from attnlab.runner.events import Ended, Event, Held, Progress
from attnlab.runner.execute import corpus_of, execute
from attnlab.runner.schedule import open_schedule
from attnlab.runner.workers import local, run_schedule
from attnlab.runner.workers.local import LocalWorkers
from attnlab.training import checkpoint
from attnlab.training.run import Run

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


@pytest.fixture
def forked(tmp_path, monkeypatch):
    """Fork the workers, in a folder with mechanisms of its own: they inherit what is known here."""
    monkeypatch.setattr(local, "ChildProcess", fake_workers.ForkedChild)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MechanismConfig, "kinds", dict(MechanismConfig.kinds))


def ended(study, study_dir, fingerprint, places):
    """Execute the runs that remain; return their ends by variant and seed."""
    schedule = open_schedule(study, study_dir, dict.fromkeys(study.variants, fingerprint))
    workers = LocalWorkers([Slot(("cpu",), 1)], study_dir, places)
    events = list(run_schedule(schedule, workers))
    assert schedule.unfinished_variants() == []
    assert schedule.next() is None
    return {(e.run.variant, e.run.seed): e.event for e in events if isinstance(e.event, Ended)}


@pytest.mark.usefixtures("forked")
def test_runs_that_have_ended_are_not_run_again_nor_with_other_settings(
    tmp_path, places, fingerprint
):
    study = replace(tiny_study.study.only(["mha", "identity"]), seeds=1)
    fake_workers.work(fake_workers.make(study, tmp_path, fingerprint))
    second = ended(replace(study, seeds=2), tmp_path, fingerprint, places)
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


MOVES = """
import os
from attnlab.mechanisms.identity import Identity
class Moves(Identity):
    def build(self, d_model, dropout=0.0):
        os.chdir("/")
        return super().build(d_model, dropout)
"""


@pytest.mark.usefixtures("forked")
def test_a_run_whose_code_changes_the_working_directory_is_recorded_in_its_folder(
    tmp_path, places, fingerprint
):
    (tmp_path / "moves.py").write_text(MOVES)
    moves = tiny_study.base.with_mechanisms(MechanismConfig.from_dict({"kind": "moves.py:Moves"}))
    study = replace(tiny_study.study, seeds=1, baseline="moves", variants={"moves": moves})
    found = ended(study, Path("results"), fingerprint, places)
    assert found["moves", 0].status == "finished"
    assert RunFolder(tmp_path / "results", "moves", 0).status() == "finished"


@pytest.mark.usefixtures("forked")
def test_a_worker_that_dies_fails_its_run_and_the_study_goes_on(tmp_path, places, fingerprint):
    (tmp_path / "broken.py").write_text(BROKEN)
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


LEAVES = """
from dataclasses import dataclass
from attnlab.mechanisms.identity import Identity, TokenwiseLinear
class Own(BaseException): pass
print("imported")

class Mixer(TokenwiseLinear):
    def forward(self, x_BTD):
        print(len(x_BTD), "\\x1b[1m", end="")
        raise {"Own": Own("mine"), "exit": SystemExit(3)}.get(self.by) or eval(self.by)

@dataclass(frozen=True, kw_only=True)
class Leaves(Identity):
    by: str
    def build(self, d_model, dropout=0.0):
        built = Mixer(d_model)
        built.by = self.by
        return built
"""


@pytest.mark.usefixtures("forked")
def test_an_exit_and_the_like_is_the_reason_of_its_run_and_what_it_prints_is_a_note(
    tmp_path, places, fingerprint, capfd
):
    (tmp_path / "own.py").write_text(LEAVES)
    said = {
        "exit": "it exits with code 3, which would end attnlab; remove the exit",
        "KeyboardInterrupt": "KeyboardInterrupt",
        "GeneratorExit": "GeneratorExit",
        "Own": "Own: mine",
    }
    variants = {
        by: tiny_study.base.with_mechanisms(
            MechanismConfig.from_dict({"kind": "own.py:Leaves", "by": by})
        )
        for by in said
    }
    study = replace(tiny_study.study, seeds=1, baseline="exit", variants=variants)
    schedule = open_schedule(study, tmp_path / "out", dict.fromkeys(variants, fingerprint))
    workers, notes = LocalWorkers([Slot(("cpu",), 1)], tmp_path / "out", places), list[Any]()
    for run, event, _ in run_schedule(schedule, workers):
        if isinstance(event, Ended):
            assert event.reason == f"own.py:10: {said[run.variant]}"
        elif event.note:
            notes.append((run.variant, event.note))
    assert dict(notes).keys() == said.keys()
    assert {note[:9] for _, note in notes} == {"prints: 1"}
    assert RunFolder(tmp_path / "out", "Own", 0).summary()["reason"] == "own.py:10: Own: mine"
    assert capfd.readouterr().out == "imported\n"  # by this process


def test_of_what_is_printed_the_first_lines_are_kept_each_once():
    printed = Printed()
    with printed.kept():
        sys.stdout.write("a\rb\na")
        sys.stderr.write("\n\ud800 c\n")
        assert printed.take() == ["prints: a", "prints: b", "prints: \\ud800 c"]
        sys.stdout.write("b\nd\ne")
    assert printed.take() == ["prints more, which is not shown"]
    assert printed.take() == []


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


SENDS = """
def send(pipe):
    pipe.send("never read")
    pipe.recv()
"""


def test_a_child_whose_pipe_is_closed_ends_without_a_word(tmp_path, monkeypatch, capfd):
    """What it has sent is not read, so that the system resets the pipe."""
    (tmp_path / "sends.py").write_text(SENDS)
    monkeypatch.syspath_prepend(tmp_path)
    child = ChildProcess("sends:send")
    assert child.pipe.poll(60)
    child.end(within_seconds=60)
    assert (child.wait(), capfd.readouterr().err) == (0, "")


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
    marker = "cut/twin/tuning/*/*.partial/checkpoints/step-*"
    killed(command, environment, tmp_path, marker)
    (interrupted,) = (r for r in tuning_runs(cut, "twin") if r.status() == "partial")
    found = checkpoint.load_newest(interrupted.checkpoints, interrupted.identity())
    assert found.checkpoint is not None
    assert 2 <= len(losses(cut)) < 10
    times = {path: path.stat().st_mtime_ns for path in cut.rglob("seed-*/summary.json")}
    study = tiny_study.twins
    monkeypatch.setattr("attnlab.runner.run.LocalWorkers", fake_workers.InProcess)
    attnlab.run(study, out=cut, check=False, device="cpu", workers=1, cache=places.cache)
    schedule = open_schedule(study, whole, dict.fromkeys(study.variants, fingerprint))
    list(run_schedule(schedule, fake_workers.InProcess((), whole, places)))

    assert losses(cut) == losses(whole)
    assert len(losses(whole)) == 2 * (2 + 1 + 2) + 2  # one rate further out, two between
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


CPU = torch.device("cpu")
MODEL = replace(tiny_study.base.model, n_layers=1, d_model=8)
TRAIN = replace(
    tiny_study.base.train,
    **{"steps": 6, "seq_len": 16, "warmup_steps": 1, "eval_batch_size": 512},
    **{"log_every": 1, "eval_every": 3, "checkpoint_every": 2},
)
RUN = Run(variant="mha", config=replace(tiny_study.base, model=MODEL, train=TRAIN))
CHANGES = ((os, "fsync"), (Path, "replace"), (Path, "rename"), (Path, "unlink"))
CHANGES += ((Path, "mkdir"), (Path, "write_bytes"), (Path, "chmod"), (shutil, "rmtree"))
CHANGES += ((RunFolder, "append"), (checkpoint, "save_file"))
STRIDE = 9  # with 1, every write is tried, in some minutes


class KilledError(BaseException):
    """Stands for SIGKILL: from then on, nothing of the process changes the disk."""


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Places:
    filled = Places(None, tmp_path_factory.mktemp("cache"))
    corpus_of(RUN.config.data, filled)
    return filled


def trained(study_dir: Path, filled: Places) -> Iterator[Event]:
    RUN.folder(study_dir).finalize()
    if not RUN.folder(study_dir).ended.is_dir():
        yield from execute(RUN, study_dir, "same", filled, CPU)


def killed_at(n: int, study_dir: Path, filled: Places, monkeypatch) -> tuple[bool, int]:
    """Train until the n-th change of the disk; return if that was before the end, and the step."""
    counted, step = 0, 0

    def counting(change: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal counted
            counted += 1
            if counted >= n:
                raise KilledError
            return change(*arguments, **named)

        return call

    process = lease.Holder.of_this_process()
    with monkeypatch.context() as patch:
        ended = process._replace(started=1)  # a process that has had the same id, and is gone
        patch.setattr(lease.Holder, "of_this_process", lambda: ended)
        patch.setattr(lease.Lease, "_keep", lambda _: None)
        for owner, name in CHANGES:
            patch.setattr(owner, name, counting(getattr(owner, name)))
        try:
            for event in trained(study_dir, filled):
                step = event.step if isinstance(event, Progress) else TRAIN.steps
        except KilledError:
            return True, step
    return False, step


def timeless(folder: RunFolder) -> list[dict[str, Any]]:
    return [{k: v for k, v in m.items() if k != "train_seconds"} for m in folder.metrics()]


def test_a_kill_before_any_write_loses_the_steps_since_the_last_checkpoint_alone(
    tmp_path, filled, monkeypatch
):
    whole = RUN.folder(tmp_path / "whole")
    list(trained(tmp_path / "whole", filled))
    n, killed = 1 - STRIDE, True
    while killed:
        n += STRIDE
        study_dir = tmp_path / f"killed-{n}"
        killed, reached = killed_at(n, study_dir, filled, monkeypatch)
        run = RUN.folder(study_dir)
        assert run.damage() is None, n
        events = list(trained(study_dir, filled))
        if events:
            began = events[0].step
            assert began >= (reached - 1) // 2 * 2, (n, reached, began)
            assert isinstance(events[-1], Ended)
            assert events[-1].status == "finished", events[-1]
        assert timeless(run) == timeless(whole), n
        ours, theirs = run.ended_summary(), whole.ended_summary()
        assert ours["test_loss"] == theirs["test_loss"], n
        remove_temporary(study_dir)
        left = [path.name for path in study_dir.rglob("*") if TEMPORARY.fullmatch(path.name)]
        assert left == [], n
        shutil.rmtree(study_dir)
    assert n > 60


def test_a_run_that_was_taken_over_during_a_pause_ends_without_another_write(
    tmp_path, filled, monkeypatch
):
    """As on a laptop that slept while another machine went on with the study."""
    events, run = trained(tmp_path, filled), RUN.folder(tmp_path)
    assert [next(events).step for _ in range(3)] == [0, 1, 2]
    (file,) = run.lease.iterdir()
    other = lease.Holder.parse(file.name)._replace(machine="0" * 12, id="b0", host="node-2")
    file.rename(run.lease / other.file_name())
    now = lease._now
    monkeypatch.setattr(lease, "_now", lambda: now() + 3600)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert list(events) == [Held(f"process {os.getpid()} on node-2", lost=True)]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert list(trained(tmp_path, filled)) == [Held(f"process {os.getpid()} on node-2")]


def test_processes_are_started_before_there_are_runs_for_them(tmp_path, places, monkeypatch):
    begun = []

    class NoProcess:
        def __init__(self, target):
            begun.append(self)
            self.pipe, self.ended = Pipe()[0], False

        def is_alive(self):
            return not self.ended

        def end(self, *, within_seconds=0.0):
            self.ended = True

    monkeypatch.setattr(local, "ChildProcess", NoProcess)
    workers = LocalWorkers([Slot(("cpu",), 1)] * 3, tmp_path, places)
    for runs in (0, 2, 1):
        workers.prepare(runs)
    assert len(begun) == 2
    assert workers.idle()
    assert not workers.busy()
    workers.stop()
    assert all(process.ended for process in begun)


def test_slots_share_the_cores_of_the_cpu():
    cores = len(os.sched_getaffinity(0))
    assert worker_slots("cpu", 100) == [Slot(("cpu",), 1)] * cores
    assert worker_slots("cpu", 1) == [Slot(("cpu",), cores)]
    assert worker_slots("cpu", 100, workers=1) == [Slot(("cpu",), cores)]


def test_there_is_a_slot_per_gpu_and_no_more_than_runs(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    gpus = [Slot((f"cuda:{index}",), 1) for index in range(3)]
    assert worker_slots("auto", 100) == worker_slots("cuda", 100) == gpus
    assert worker_slots("cuda", 2) == worker_slots("cuda", 100, workers=2) == gpus[:2]
    assert worker_slots("cuda:1", 100) == gpus[1:2]


@pytest.mark.parametrize(
    ("device", "workers", "message"),
    [
        ("cuda:99", None, "no device 'cuda:99': torch sees"),
        ("gpu", None, "unknown device 'gpu': use auto, cpu, cuda or cuda:1"),
        ("cpu", 0, "workers: must be at least 1, got 0"),
    ],
)
def test_a_device_that_is_not_there_is_an_error(device, workers, message):
    with pytest.raises(ValueError, match=message):
        worker_slots(device, 1, workers)


def test_one_process_computes_on_the_first_slot():
    assert choose_device("cpu") == torch.device("cpu")
    before, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
    torch.set_num_threads(cores + 1)
    try:
        with one_worker("cpu") as device:
            assert device == torch.device("cpu")
            assert torch.get_num_threads() == cores
        assert torch.get_num_threads() == cores + 1
    finally:
        torch.set_num_threads(before)
