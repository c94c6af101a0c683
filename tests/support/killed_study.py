"""Run a study by commands that are killed, until it has ended; then start another one.

    python killed_study.py FOLDER SEED KILLS [KILLS_OF_TWO [KILLS_OF_THREE]]

Each kill is a row of the table {driver, worker, group} x {SIGKILL, SIGTERM, SIGHUP, SIGINT}. It
comes at a random time, or just before a random change of the disk by the driver or a worker. After
each one no process is left, no traceback was printed, the exit code is the documented one, and all
files can be read; each study that ends has the same bits as one that was not killed. Then two, and
three commands share each folder, and one of them is killed.

Commands and workers are forks of this process, which has imported torch and computed nothing: they
differ from real ones in their start alone.
"""

import gc
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from typer.testing import CliRunner

from attnlab.cli import app, early_end
from attnlab.cli.console import console, errors
from attnlab.data import Places
from attnlab.device.machine import describe
from attnlab.record import RunFolder
from attnlab.reporting import files, pages
from attnlab.reporting.figures import comparison
from attnlab.runner.execute import corpus_of
from attnlab.runner.workers import local
from attnlab.training import checkpoint, plausibility
from support import tiny_study
from support.fake_workers import Forked, ForkedChild, children

MODEL = replace(tiny_study.base.model, n_layers=1, d_model=8)
TRAIN = replace(
    tiny_study.base.train,
    **{"steps": 8, "seq_len": 16, "eval_batch_size": 512},
    **{"log_every": 2, "eval_every": 4, "checkpoint_every": 2},
)
BASE = replace(tiny_study.base, model=MODEL, train=TRAIN)
STUDY = replace(tiny_study.study, seeds=1, variants={"mha": BASE, "twin": BASE})
SOURCE = "from support.killed_study import STUDY as study"
CHANGES = ((os, "fsync"), (Path, "rename"), (Path, "replace"), (Path, "unlink"))
CHANGES += ((shutil, "rmtree"), (checkpoint, "save_file"))
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
TABLE = list(itertools.product(("driver", "worker", "group"), SIGNALS))


class Kill(NamedTuple):
    """Whom to send which signal, and when."""

    target: str
    signal: int
    after: float | None = None  # seconds
    change: tuple[str, int] | None = None  # by the driver or a worker, and its number


_kill: Kill | None = None  # of this process
_counts: Path | None = None  # where a process writes how many changes it made


def count_changes(role: str) -> None:
    """Kill before the change of the disk that the kill names."""
    counted, process = 0, os.getpid()

    def counting(change: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal counted
            if os.getpid() != process:  # a copy of it, with a role of its own
                return change(*arguments, **named)
            counted += 1
            if _counts:
                (_counts / role).write_text(str(counted))
            if _kill and _kill.change == (role, counted):
                send(_kill, os.getpid() if role == "driver" else os.getppid())
            return change(*arguments, **named)

        return call

    for owner, name in CHANGES:
        setattr(owner, name, counting(getattr(owner, name)))


def send(kill: Kill, driver: int) -> None:
    """Send the signal to the driver, to a worker of it, or to the group of both."""
    with suppress(ProcessLookupError):
        if kill.target == "group":
            os.killpg(driver, kill.signal)
        elif kill.target == "driver":
            os.kill(driver, kill.signal)
        else:
            for worker in children(driver)[:1]:
                os.kill(worker, kill.signal)


def command(study_dir: Path, folder: Path, kill: Kill | None = None) -> Forked:
    """Start `attnlab run` for the study, in a group of its own."""

    def work() -> None:
        global _kill
        _kill = kill
        os.setsid()
        log = os.open(study_dir.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for output in (1, 2):
            os.dup2(log, output)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell ignores it in the background
        early_end.raise_on_signals()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS[1:])
        count_changes("driver")
        ForkedChild.started = staticmethod(lambda: count_changes("worker"))
        options = ["--no-check", "--device", "cpu", "--workers", "2", "--out", str(study_dir)]
        try:
            app(["run", str(folder / "study.py"), *options])
        except SystemExit as exit_:
            for output in (console, errors):
                output.file.flush()
            os._exit(int(exit_.code or 0))

    return Forked(work)


def killed(study_dir: Path, folder: Path, kill: Kill, drivers: int = 1) -> int:
    """Run commands, send the signal to the first one, and return its exit code.

    The other commands then end the study. No process is left five seconds after its command.
    """
    others = [command(study_dir, folder) for _ in range(drivers - 1)]
    process = command(study_dir, folder, kill)
    if kill.after is not None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(kill.after)
        if process.poll() is None:
            send(kill, process.pid)
    codes = [one.wait() for one in (process, *others)]
    for one in (process, *others):
        deadline = time.monotonic() + 5
        with suppress(ProcessLookupError):
            while True:
                os.killpg(one.pid, 0)
                assert time.monotonic() < deadline, f"processes are left after {kill}"
                time.sleep(0.01)
    assert set(codes[1:]) <= ({0, 1} if kill.target == "worker" else {0}), codes
    return codes[0]


def expected_codes(kill: Kill) -> set[int]:
    """Return the exit codes of a command that was killed, or that ended just before."""
    if kill.signal == signal.SIGKILL:
        return {0, -signal.SIGKILL} if kill.target != "worker" else {0, 1}
    if kill.target == "worker":
        return {0, 1} if kill.signal == signal.SIGTERM else {0}
    return {0, 128 + kill.signal}


def main(folder: Path, seed: int, *kills: int) -> None:
    """Kill this number of commands, alone; then of two that share a folder; then of three."""
    global _counts
    prepare(folder)
    whole = folder / "whole"
    _counts, began = folder / "counts", time.monotonic()
    _counts.mkdir()
    assert killed(whole, folder, Kill("driver", 0)) == 0, log_of(whole)
    seconds, counts = time.monotonic() - began, _counts
    _counts = None
    changes = {role: int((counts / role).read_text()) for role in ("driver", "worker")}
    say(f"without a kill: {seconds:.2f} seconds, {changes} changes of the disk")

    for drivers, number in enumerate(kills, 1):
        kill_commands(folder, random.Random(seed), number, drivers, seconds, changes)


def kill_commands(
    folder: Path,
    rng: random.Random,
    kills: int,
    drivers: int,
    seconds: float,
    changes: Mapping[str, int],
) -> None:
    """Kill one of some commands that share a folder, in turn for each row of the table."""
    whole, run, done, effective = folder / "whole", 0, 0, 0
    while done < kills:
        target, number = TABLE[done % len(TABLE)]
        kill = Kill(target, number, after=rng.uniform(0.02, 0.8 * seconds))
        if rng.random() < 0.5:
            role = rng.choice(["driver", "worker"]) if target == "group" else target
            kill = kill._replace(after=None, change=(role, rng.randint(1, changes[role])))
        study_dir = folder / f"drivers-{drivers}-run-{run}"
        before = ended(study_dir)
        code = killed(study_dir, folder, kill, drivers)
        say(f"kill {done}: {kill}: exit code {code}")
        assert code in expected_codes(kill), log_of(study_dir)
        assert "Traceback" not in log_of(study_dir), log_of(study_dir)
        assert_readable(study_dir)
        assert before.items() <= ended(study_dir).items(), "a run was trained twice"
        done, effective = done + 1, effective + (code != 0)
        if code == 0 or drivers > 1 or done == kills:
            while code != 0:
                code = killed(study_dir, folder, Kill("driver", 0))
                assert code == 0 or failed(study_dir), log_of(study_dir)
            assert_same(whole, study_dir)
            run += 1
    say(f"{done} kills of {drivers}: {effective} before the end; {run} studies ended")


def prepare(folder: Path) -> None:
    """Make what all commands share, and stand in for what takes them seconds.

    Nothing is flushed to the disk: the system, which keeps what was written, is not killed.
    """
    torch.set_num_threads(1)
    os.fsync = lambda descriptor: None
    os.environ["ATTNLAB_CACHE"] = str(folder / "cache")
    corpus = corpus_of(BASE.data, Places.from_environment())
    plausibility._ngram_loss(corpus, TRAIN.seq_len), describe(torch.device("cpu"))
    pages._templates().get_template("report.md.j2")
    for name in ("attnlab.runner.run", "attnlab.cli.plan", "attnlab.cli.progress", "numpy.random"):
        import_module(name)
    CliRunner().invoke(app, ["list", "mla"])  # the parser of arguments imports more
    (folder / "study.py").write_text(SOURCE)
    plausibility.CUTS = 1
    comparison.comparison = lambda _: (b"PNG", b"<svg/>")
    comparison.panel_pdfs = lambda _: {}
    files.page = lambda _: "<html></html>"
    local.ChildProcess = ForkedChild
    gc.freeze()  # the collector of the processes skips what was imported


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def log_of(study_dir: Path) -> str:
    return study_dir.with_suffix(".log").read_text()


def runs(study_dir: Path) -> list[RunFolder]:
    return [RunFolder(study_dir, variant, 0) for variant in STUDY.variants]


def ended(study_dir: Path) -> dict[str, int]:
    """Return when the summaries of the runs that have ended were written."""
    paths = [run.ended / "summary.json" for run in runs(study_dir)]
    return {str(path): path.stat().st_mtime_ns for path in paths if path.is_file()}


def failed(study_dir: Path) -> bool:
    return any(run.status() == "failed" for run in runs(study_dir))


def assert_readable(study_dir: Path) -> None:
    """Assert that every file with its final name is whole, after a kill at any time."""
    for run in runs(study_dir):
        assert run.damage() is None, run.damage()
        identity = run.identity()
        if identity is not None:
            assert checkpoint.load_newest(run.checkpoints, identity).skipped == ()


def assert_same(first: Path, second: Path) -> None:
    """Assert that two studies have the same files and bits, apart from times."""
    for ours, theirs in zip(runs(first), runs(second), strict=True):
        assert timeless(ours) == timeless(theirs)
        there = [{path.relative_to(r.path) for path in r.path.rglob("*")} for r in (ours, theirs)]
        assert there[0] == there[1], there[0] ^ there[1]
        for name in (name for name in there[0] if name.suffix == ".safetensors"):
            assert (ours.path / name).read_bytes() == (theirs.path / name).read_bytes(), name
        assert ours.summary()["test_loss"] == theirs.summary()["test_loss"]
    names = [sorted(path.name for path in where.iterdir()) for where in (first, second)]
    assert names[0] == names[1], names
    assert not list(second.rglob("*.lease")) + list(second.rglob("*.tmp"))
    assert json.loads((second / "failures.json").read_text()) == {}
    losses = [json.loads((w / "comprehensive_results.json").read_text()) for w in (first, second)]
    assert [{k: v["final_loss"] for k, v in one.items()} for one in losses[:1]] == [
        {k: v["final_loss"] for k, v in one.items()} for one in losses[1:]
    ]


def timeless(folder: RunFolder) -> list[dict[str, Any]]:
    return [{k: v for k, v in m.items() if k != "train_seconds"} for m in folder.metrics()]


if __name__ == "__main__":
    from support import killed_study  # the study's source imports this module by that name

    killed_study.main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
