"""Train a run in processes that are killed, until it has ended; then start another one.

    python killed_trainer.py FOLDER KILLS SEED

Each process is killed with SIGKILL, at a random time or just before a random one of the calls that
change the disk. After each kill the files of the folder must be readable; each run that ends must
have the same bits as a run that was not killed. The times of the kills are printed.

Processes are forks of this one, which has imported torch and computed nothing.
"""

import gc
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # an optimizer imports it, which takes seconds per process

from attnlab.data import Places
from attnlab.device.environment import describe
from attnlab.record import RunFolder
from attnlab.runner.execute import corpus_of, execute
from attnlab.training import checkpoint
from attnlab.training.checkpoint import load_newest
from attnlab.training.run import Run
from support import tiny_study

CONFIG = replace(
    tiny_study.base,
    train=replace(tiny_study.base.train, steps=16, eval_every=8, checkpoint_every=2),
)
RUN = Run(variant="mha", config=CONFIG)
CHANGES = ((os, "fsync"), (Path, "rename"), (Path, "replace"), (shutil, "rmtree"))
CHANGES += ((checkpoint, "save_file"),)


def main(folder: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    places = Places(None, folder / "cache")
    corpus_of(CONFIG.data, places), describe(torch.device("cpu"))  # once, for all processes
    gc.freeze()  # the collector of the processes skips what was imported
    began = time.monotonic()
    process = fork(lambda: train(folder / "whole", places, folder / "changes"))
    assert os.waitpid(process, 0)[1] == 0
    seconds = time.monotonic() - began
    changes = int((folder / "changes").read_text())
    say(f"without a kill: {seconds:.2f} seconds, {changes} changes of the disk")

    rng, run, killed = random.Random(seed), 0, 0
    while killed < kills:
        at_change = rng.randint(1, changes) if killed % 2 else None
        after = rng.uniform(0, seconds)
        say(f"kill {killed}: at {f'change {at_change}' if at_change else f'{after:.3f} seconds'}")
        process = fork(partial(train, folder / f"run-{run}", places, kill_at=at_change))
        status = None if at_change else ended_within(process, after)
        if status is None:
            if not at_change:
                os.kill(process, signal.SIGKILL)
            status = os.waitpid(process, 0)[1]
        killed += os.WIFSIGNALED(status)
        assert status in (0, signal.SIGKILL), status
        assert_readable(folder / f"run-{run}")
        if status == 0:
            assert_same(folder / "whole", folder / f"run-{run}")
            run += 1
    process = fork(lambda: train(folder / f"run-{run}", places))
    assert os.waitpid(process, 0)[1] == 0
    assert_same(folder / "whole", folder / f"run-{run}")
    say(f"{killed} kills, {run + 1} runs ended")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def fork(work: Callable[[], None]) -> int:
    process = os.fork()
    if process:
        return process
    try:
        work()
        os._exit(0)
    except BaseException as error:
        say(f"{type(error).__name__}: {error}")
        os._exit(1)


def train(
    study_dir: Path, places: Places, count_in: Path | None = None, kill_at: int | None = None
) -> None:
    """Execute the run as a worker does, and count the calls that change the disk."""
    counted = 0

    def counting(change: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal counted
            counted += 1
            if counted == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*arguments, **named)

        return call

    for owner, name in CHANGES:
        setattr(owner, name, counting(getattr(owner, name)))
    folder = RUN.folder(study_dir)
    folder.finalize()
    if not folder.ended.is_dir():
        *_, end = execute(RUN, study_dir, "same", places, torch.device("cpu"))
        assert end.status == "finished", end
    if count_in is not None:
        count_in.write_text(str(counted))


def ended_within(process: int, seconds: float) -> int | None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return status
        time.sleep(0.002)
    return None


def assert_readable(study_dir: Path) -> None:
    """Assert that every file with its final name is whole, after a kill at any time."""
    folder = RUN.folder(study_dir)
    folder.config(), folder.environment(), folder.summary(), folder.metrics()
    assert load_newest(folder.checkpoints, "same").skipped == ()


def assert_same(first: Path, second: Path) -> None:
    ours, theirs = RUN.folder(first), RUN.folder(second)
    assert timeless(ours) == timeless(theirs)
    files = {path.relative_to(ours.path): path for path in ours.path.rglob("*")}
    others = {path.relative_to(theirs.path): path for path in theirs.path.rglob("*")}
    assert files.keys() == others.keys(), files.keys() ^ others.keys()
    for name in (name for name in files if name.suffix == ".safetensors"):
        assert files[name].read_bytes() == others[name].read_bytes(), name
    assert ours.summary()["test_loss"] == theirs.summary()["test_loss"]


def timeless(folder: RunFolder) -> list[dict[str, Any]]:
    return [{k: v for k, v in m.items() if k != "train_seconds"} for m in folder.metrics()]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
