"""A run that is killed loses the steps since its last checkpoint at most, at any write."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_study

from attnlab.data import Places
from attnlab.record import RunFolder, lease, remove_temporary
from attnlab.record.temporary_files import TEMPORARY
from attnlab.runner.events import Ended, Event, Held, Progress
from attnlab.runner.execute import corpus_of, execute
from attnlab.training import checkpoint
from attnlab.training.run import Run

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
def places(tmp_path_factory) -> Places:
    places = Places(None, tmp_path_factory.mktemp("cache"))
    corpus_of(RUN.config.data, places)
    return places


def trained(study_dir: Path, places: Places) -> Iterator[Event]:
    RUN.folder(study_dir).finalize()
    if not RUN.folder(study_dir).ended.is_dir():
        yield from execute(RUN, study_dir, "same", places, CPU)


def killed_at(n: int, study_dir: Path, places: Places, monkeypatch) -> tuple[bool, int]:
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
            for event in trained(study_dir, places):
                step = event.step if isinstance(event, Progress) else TRAIN.steps
        except KilledError:
            return True, step
    return False, step


def timeless(folder: RunFolder) -> list[dict[str, Any]]:
    return [{k: v for k, v in m.items() if k != "train_seconds"} for m in folder.metrics()]


def test_a_kill_before_any_write_loses_the_steps_since_the_last_checkpoint_alone(
    tmp_path, places, monkeypatch
):
    whole = RUN.folder(tmp_path / "whole")
    list(trained(tmp_path / "whole", places))
    n, killed = 1 - STRIDE, True
    while killed:
        n += STRIDE
        study_dir = tmp_path / f"killed-{n}"
        killed, reached = killed_at(n, study_dir, places, monkeypatch)
        run = RUN.folder(study_dir)
        assert run.damage() is None, n
        events = list(trained(study_dir, places))
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
    tmp_path, places, monkeypatch
):
    """As on a laptop that slept while another machine went on with the study."""
    events, run = trained(tmp_path, places), RUN.folder(tmp_path)
    assert [next(events).step for _ in range(3)] == [0, 1, 2]
    (file,) = run.lease.iterdir()
    other = lease.Holder.parse(file.name)._replace(machine="0" * 12, id="b0", host="node-2")
    file.rename(run.lease / other.file_name())
    now = lease._now
    monkeypatch.setattr(lease, "_now", lambda: now() + 3600)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert list(events) == [Held(f"process {os.getpid()} on node-2", lost=True)]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert list(trained(tmp_path, places)) == [Held(f"process {os.getpid()} on node-2")]
