"""Workers that cost little: without training, in this process, or forked from it."""

import math
import os
import pickle
import signal
import subprocess
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from multiprocessing.connection import Pipe
from pathlib import Path

import torch

from attnlab.checks import causality, cost, numbers, purity, repetition, suite, table, targets
from attnlab.config import override
from attnlab.device import child_process
from attnlab.record import TUNING_SEED, Rung
from attnlab.runner.execute import ended, execute
from attnlab.runner.schedule import open_schedule
from attnlab.runner.trial import Trial
from attnlab.study.study import Study
from attnlab.training.config import Tuning
from attnlab.training.run import RunConfig
from support import tiny_study

MOST_SECONDS = 120.0  # of a forked process, on a busy machine
# `attnlab` without the seconds that figures take, in a process
UNDRAWN = """
import pytest
from support.fake_workers import draw_nothing
draw_nothing(pytest.MonkeyPatch())
from attnlab.cli import main
main()
"""
BASE = tiny_study.base  # its own rate is 0.01
TUNED = Study(
    question="?",
    variants=tiny_study.study.only(["mha", "mqa", "identity"]).variants,
    seeds=2,
    tuning=Tuning(multiples=(1, 2, 4), most=6, challenge=False),
)
BEST = {"mha": 0.02, "mqa": 0.08, "identity": 0.005}  # mqa and identity: one further out
TUNING_RUNS = {"mha": 6, "mqa": 8, "identity": 8}  # two half octaves each, one for the warm-up


def loss_of(run):
    rate = run.config.train.learning_rate
    return 5 + round(math.log2(rate / BEST.get(run.variant, 0.02)) ** 2, 4)  # rates are rounded


def ladder(*families, **more):
    """Return a study of families at widths 16, 32 and 64, two of them searched, of two lengths."""
    at = {
        f"{family}_{width}_{budget}": (
            Rung(family, f"2x{width}", budget),
            override(config.with_size(2, width), [f"train.steps={steps}"]),
        )
        for family, config in zip(families, tiny_study.study.variants.values(), strict=False)
        for budget, steps in (("short", 12), ("long", 24))
        for width in (16, 32, 64)
    }
    only = tuple(f"{family}_{width}_short" for family in families for width in (16, 32))
    study = Study(
        question="?",
        variants={name: config for name, (_, config) in at.items()},
        ladder={name: rung for name, (rung, _) in at.items()},
        seeds=2,
        tuning=Tuning(multiples=(1, 2, 4), most=6, challenge=False, warmup=False, only=only),
    )
    return replace(study, **more)


def loss_on_ladder(run):
    """The best rate is 0.02 at each size, 2 and 4 times the own one: 8 times at the next."""
    return 5 + round(math.log2(run.config.train.learning_rate / 0.02) ** 2, 4)


def law_on_ladder(run):
    """Return a summary: a power law of the compute, by which `delta` is a tenth better."""
    size = run.config.model.n_layers * run.config.model.d_model**2
    flops = float(size * run.config.train.steps)
    rate = math.log2(run.config.train.learning_rate / 0.02)
    is_delta = run.variant.startswith("delta")
    noise = 0.002 * (1 + is_delta) * run.seed if run.seed < TUNING_SEED else 0.0
    return {
        "final_loss": 2 + 4 * (flops / 1e3) ** -0.2 - 0.1 * is_delta + 0.04 * rate**2 + noise,
        "training_flops": flops,
        "tokens": run.config.train.steps,
        "train_time": flops / 1e4,
        "parameters": {"embedding": 100, "total": size + 100},
    }


def make(study, study_dir, fingerprint="data"):
    return open_schedule(study, study_dir, dict.fromkeys(study.variants, fingerprint))


def finish(planned, study_dir, loss=loss_of):
    """Write the results of a run as a worker does, without training."""
    folder = planned.run.folder(study_dir)
    folder.open({**planned.run.config.to_dict(), "identity": planned.identity}, {})
    found = loss(planned.run)
    if isinstance(found, str):
        folder.fail(found)
    elif found is None:
        folder.finish({"status": "diverged", "reason": "loss is nan at step 3"})
    else:
        summary = found if isinstance(found, dict) else {"final_loss": found}
        folder.finish({"status": "finished", **summary})


def work(schedule, loss=loss_of, runs=10**9, at_a_time=1):
    """Execute at most `runs` runs of the schedule; return them in the order of their start."""
    schedule.record_decisions()
    started, under_way = [], []
    while runs > 0:
        while len(under_way) < at_a_time and (planned := schedule.next()) is not None:
            started.append(planned.run)
            under_way.append(planned)
        if not under_way:
            break
        planned = under_way.pop(0)
        finish(planned, schedule.study_dir, loss)
        schedule.finished(planned)
        runs -= 1
    return started


def key(run):
    return run.variant, run.tunes, run.seed, run.config.train.learning_rate


@contextmanager
def trial_here(study, places, slot, *, check, seconds):
    """Stand in for `TrialProcess`, without the seconds that a process takes to start."""
    trial, threads = Trial(study, places, slot, check=check), torch.get_num_threads()
    results = trial.results
    trial.results = lambda names: results(names, seconds)
    yield trial
    torch.set_num_threads(threads)


class InProcess:
    """Workers that train in this process what the settings say, as another process reads them."""

    def __init__(self, slots, study_dir, places):
        self.study_dir, self.places, self.planned = study_dir, places, None

    def idle(self):
        return self.planned is None

    def busy(self):
        return self.planned is not None

    def prepare(self, runs):
        pass

    def start(self, planned):
        self.planned = planned

    def events(self, seconds):
        planned, self.planned = self.planned, None
        settings = pickle.loads(pickle.dumps(planned.run.config.to_dict()))
        run = replace(planned.run, config=RunConfig.from_dict(settings))
        for event in execute(
            run, self.study_dir, planned.identity, self.places, torch.device("cpu")
        ):
            yield planned, event

    def stop(self):
        pass


class AtOnce(InProcess):
    """Workers whose runs end at once."""

    def __init__(self, study_dir):
        super().__init__((), study_dir, None)

    def events(self, seconds):
        planned, self.planned = self.planned, None
        finish(planned, self.study_dir)
        yield planned, ended(planned.run.folder(self.study_dir))


def draw_nothing(patch, *, page=False):
    """Write empty figures, which take seconds to draw, while `patch` holds; with `page` its charts.

    There is a figure of one panel.
    """
    if not page:
        patch.setattr("attnlab.reporting.files.page", lambda _: "<html></html>")
    module = "attnlab.reporting.figures.comparison"
    patch.setattr(f"{module}.comparison", lambda _: (b"PNG", b"<svg/>"))
    patch.setattr(f"{module}.panel_pdfs", lambda _: {"loss": b"%PDF"})


def judge_few(patch):
    """Judge a sixth of the properties, while `patch` holds: what is done with them is the same."""
    few = purity.repeated, numbers.shapes, causality.values, cost.flops, repetition.json_round_trip
    for module in (suite, table, targets):
        patch.setattr(module, "PROPERTIES", few)


class Forked:
    """A forked process with the methods of `subprocess.Popen` that are used."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.returncode: int | None = None
        with child_process.signals_blocked(), warnings.catch_warnings():
            # the threads of this process hold nothing that a copy needs
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
            if self.pid == 0:
                with suppress(BaseException):
                    work()
                os._exit(1)

    def poll(self) -> int | None:
        if self.returncode is None and (found := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.returncode = os.waitstatus_to_exitcode(found[1])
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + (MOST_SECONDS if timeout is None else timeout)
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("a forked process", timeout or MOST_SECONDS)
            time.sleep(0.002)
        return code

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


class ForkedChild(child_process.ChildProcess):
    """A `ChildProcess` that is forked, and so has imported everything when it starts."""

    started = staticmethod(lambda: None)  # called in each

    def __init__(self, target: str, *, silent: bool = False) -> None:
        self.pipe, theirs = Pipe()
        parent, (module, _, name) = os.getpid(), target.partition(":")

        def work() -> None:
            child_process.begin_child(parent)
            self.pipe.close()
            ForkedChild.started()
            with suppress(EOFError, ConnectionError):
                getattr(import_module(module), name)(theirs)
            os._exit(0)

        self._process = Forked(work)
        theirs.close()


def children(parent: int) -> list[int]:
    found = list[int]()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(path.parent.name))
    return sorted(found)
