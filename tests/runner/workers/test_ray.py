"""Runs on a Ray cluster end with the bits of local ones, whatever dies meanwhile."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from support import tiny_study

from attnlab.config import carried_sources, load_file, own_classes
from attnlab.data import Places
from attnlab.mechanism import MechanismConfig
from attnlab.record.lease import holder_of
from attnlab.runner.events import Ended, Lost, Progress
from attnlab.runner.execute import execute
from attnlab.runner.schedule import open_schedule
from attnlab.runner.workers import run_schedule
from attnlab.runner.workers.ray import MOST_LOSSES, Cluster, RayWorkers
from attnlab.runner.workers.ray_actor import Actor, Changes, Copy, Order, config_of
from attnlab.runner.workers.ray_cluster import Needs, Token
from attnlab.training import checkpoint
from attnlab.version import __version__

OWN = """
import os, signal, time
from dataclasses import dataclass, replace
from pathlib import Path
from attnlab.mechanisms.identity import Identity, TokenwiseLinear
from support import tiny_study

MARK = Path(__file__).with_name("died")

class Layer(TokenwiseLinear):
    steps = 0

    def forward(self, x_BTD):
        if self.training and MARK.with_name("slow").exists():
            time.sleep(0.03 if self.steps < 9 else 0.2)  # a node is added meanwhile
        self.steps += self.training
        if self.steps == 10 and MARK.with_name("deadly").exists() and not MARK.exists():
            MARK.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x_BTD)

@dataclass(frozen=True, kw_only=True)
class Slow(Identity):
    def build(self, d_model, dropout=0.0):
        return Layer(d_model)

base = tiny_study.base.with_mechanisms(Slow())
base = replace(base, train=replace(base.train, steps=40))
study = replace(tiny_study.study, seeds=2, baseline="slow", variants={"slow": base})
"""

# of the death of a node: by default it takes some 10 seconds
QUICK_TO_NOTICE = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 5_000,
    "health_check_failure_threshold": 3,
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def corpus(cache):
    return tiny_study.base.data.load(Places(None, cache))


@pytest.fixture(scope="module")
def nodes():
    """A cluster whose head executes no runs."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install ray")
    from ray.cluster_utils import Cluster as Nodes

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK_TO_NOTICE}
    found = Nodes(initialize_head=True, head_node_args=head)
    yield found
    found.shutdown()


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study with a mechanism of the user's, in a file; its steps may take a while."""
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "slow").touch()
    monkeypatch.setattr(MechanismConfig, "kinds", dict(MechanismConfig.kinds))
    return load_file(tmp_path / "own.py").study


def on_cluster(address, study, study_dir, corpus, **options):
    """Yield the events of the study's runs on a Ray cluster."""
    cluster = Cluster(address)
    try:
        study_dir.mkdir(exist_ok=True)
        corpora = dict.fromkeys(study.variants, corpus)
        schedule = open_schedule(study, study_dir, dict.fromkeys(corpora, corpus.fingerprint))
        workers = RayWorkers(cluster, study_dir, corpora, Needs(0, 1), **options)
        yield from run_schedule(schedule, workers)
    finally:
        cluster.close()


def assert_same_as_local(study, study_dir, whole, corpus):
    """Train the runs here, undisturbed; compare measurements, losses and weights."""
    for name in study.variants:
        for seed in range(study.seeds):
            run = study.verdict_run(name, seed)
            there, here = run.folder(study_dir), run.folder(whole)
            identity = run.config.identity(corpus.fingerprint)
            list(
                execute(
                    run, whole, identity, Places(None, whole), torch.device("cpu"), corpus=corpus
                )
            )
            assert there.summary()["final_loss"] == here.summary()["final_loss"]
            assert there.damage() is None
            assert timeless(there) == timeless(here)
            weights = [
                checkpoint.load_newest(one.checkpoints, identity).checkpoint.model
                for one in (there, here)
            ]
            assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])


def timeless(folder):
    return [{k: v for k, v in m.items() if k != "train_seconds"} for m in folder.metrics()]


@pytest.mark.filterwarnings("default")
def test_after_a_killed_driver_and_node_a_study_has_the_bits_of_an_undisturbed_one(
    tmp_path, nodes, study, corpus, cache
):
    first, out = nodes.add_node(num_cpus=1, node_name="first"), tmp_path / "out"
    command = [sys.executable, "-m", "attnlab", "run", "own.py", "--engine", "ray"]
    command += ["--address", nodes.address, "--no-check", "--device", "cpu", "--out", str(out)]
    folder = study.verdict_run("slow", 0).folder(out)
    environment = {**os.environ, "ATTNLAB_CACHE": str(cache)}
    driver = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    until(lambda: list(folder.checkpoints.glob("step-*4")), driver)
    holder = holder_of(folder.lease)
    driver.kill()
    driver.wait()
    until(holder.has_ended, seconds=20)
    assert folder.status() == "partial"

    events, where = [], set()
    for event in on_cluster(nodes.address, study, out, corpus):
        events.append(event.event)
        if isinstance(event.event, Progress):
            if event.event.step >= 8 and first is not None:
                late = nodes.add_node(num_cpus=1, node_name="late")
                nodes.remove_node(first, allow_graceful=False)
                first = None
            where.add(event.event.node)
        if isinstance(event.event, Lost):  # before, the run could end while its node does
            (tmp_path / "slow").unlink()
    nodes.remove_node(late, allow_graceful=False)
    started = next(event for event in events if isinstance(event, Progress))
    assert started.step >= 4
    assert [event.node for event in events if isinstance(event, Lost)] == ["first"]
    assert {event.status for event in events if isinstance(event, Ended)} == {"finished"}
    assert where == {"first", "late"}
    assert_same_as_local(study, out, tmp_path / "whole", corpus)


@pytest.mark.filterwarnings("default")
def test_without_a_shared_folder_a_run_continues_from_the_checkpoint_that_was_sent(
    tmp_path, nodes, study, corpus
):
    """The process dies in the middle of the first run. The user's code is sent, too."""
    nodes.add_node(num_cpus=1, node_name="alone")
    study, out = replace(study, seeds=1), tmp_path / "out"
    (tmp_path / "slow").rename(tmp_path / "deadly")
    notices = []
    events = [
        event.event
        for event in on_cluster(
            nodes.address, study, out, corpus, shared=False, notify=notices.append
        )
    ]
    (lost,) = (number for number, event in enumerate(events) if isinstance(event, Lost))
    assert events[lost] == Lost("alone", "its process died", 1, MOST_LOSSES)
    assert events[lost + 1].step in (4, 8)
    assert isinstance(events[-1], Ended)
    assert not list(out.rglob("*.tmp"))
    assert not list(out.rglob("*.lease"))
    assert "each run takes 1 CPU" in notices[0]
    (tmp_path / "deadly").unlink()
    assert_same_as_local(study, out, tmp_path / "whole", corpus)


def until(happened, process=None, seconds=120):
    end = time.monotonic() + seconds
    while not happened():
        assert process is None or process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)


def test_every_change_of_a_folder_arrives_whole_and_in_order(tmp_path, corpus):
    run = tiny_study.study.verdict_run("identity", 0)
    identity = run.config.identity(corpus.fingerprint)
    folder, there = run.folder(tmp_path / "there"), run.folder(tmp_path / "here")
    changes, copy, grown = Changes(), Copy(there), 0
    for _ in execute(
        run,
        tmp_path / "there",
        identity,
        Places(None, tmp_path),
        torch.device("cpu"),
        corpus=corpus,
    ):
        pieces = iter(list(changes.pieces(folder.path)))
        for piece in pieces:
            grown += piece.path == "metrics.jsonl" and piece.offset > 0
            copy.apply(piece, pieces)
        assert not checkpoint.load_newest(there.checkpoints, identity).skipped
    copy.finalize()
    assert grown
    assert contents(there.path) == contents(folder.path)


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_large_file_is_sent_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("attnlab.runner.workers.ray_actor.PIECE_BYTES", 4)
    run = tiny_study.study.verdict_run("mha", 0)
    folder, there = run.folder(tmp_path / "there"), run.folder(tmp_path / "here")
    for name in ("checkpoints/step-000004/a", "checkpoints/step-000004/b", "tokenizer.json"):
        (folder.partial / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.partial / name).write_bytes(name.encode())
    pieces = list(Changes().pieces(folder.partial))
    assert max(len(piece.content) for piece in pieces) == 4
    following = iter(pieces)
    for piece in following:
        Copy(there).apply(piece, following)
    assert contents(there.partial) == contents(folder.partial)


def test_the_code_of_the_user_is_executed_as_it_was_sent(tmp_path, study):
    run = study.verdict_run("slow", 0)
    code, sources = carried_sources(own_classes(run.config)), run.config.sources()
    order = Order("slow", run.config.to_dict(), None, "", sources, code, "")
    (tmp_path / "own.py").unlink()
    (tmp_path / "node").mkdir()
    config = config_of(order, tmp_path / "node")
    assert config.sources(executed=True) == sources
    assert code["own.py"] == OWN.encode()


def test_an_actor_finds_out_if_it_shares_the_folder(tmp_path):
    (tmp_path / "other").mkdir()
    token = Token(tmp_path)
    arguments = (token.path.name, token.content), ("cpu",), torch.get_num_threads(), None
    assert Actor(__version__, tmp_path, *arguments).shared
    assert not Actor(__version__, tmp_path / "other", *arguments).shared
    shutil.copy(token.path, tmp_path / "other")
    token.remove()
    assert not list(tmp_path.glob("*.tmp"))
    with pytest.raises(ValueError, match=r"attnlab is .* there, 0\.0 here: install the same"):
        Actor("0.0", tmp_path, *arguments)


def test_needs_are_those_of_the_devices():
    assert Needs(4, 8).devices() == ("cuda:0", "cuda:1", "cuda:2", "cuda:3")
    assert Needs(0, 2, 2).devices() == ("cpu", "cpu")
    assert (str(Needs(4, 8)), str(Needs(1, 1)), str(Needs(0, 2))) == (
        "4 GPUs and 8 CPUs",
        "1 GPU and 1 CPU",
        "2 CPUs",
    )


def test_without_ray_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("attnlab.runner.workers.ray_cluster.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^Ray is not installed: pip install ray$"):
        Cluster()


class FakeRay:
    """The calls of Ray that the driver makes, and actors that die after some events each."""

    class RayError(Exception):
        """As ray.exceptions.RayError."""

    class RayTaskError(RayError):
        """As ray.exceptions.RayTaskError."""

    def __init__(self, lives):
        self.exceptions, self.ray, self.lives = self, self, iter(lives)

    def describe(self):
        return "a node"

    def nodes(self):
        return {"id-1": "node-1"}

    def put(self, value):
        return value

    def get(self, value):
        if isinstance(value, Exception):
            raise value
        return value

    def wait(self, references, num_returns=1, timeout=0):
        return references, []

    def kill(self, actor):
        """Do nothing."""

    def remote(self, *_):
        """Return itself, as the class of actors and as an actor, or what its methods return."""
        return self

    def options(self, **_):
        return self

    @property
    def introduce(self):
        return SimpleNamespace(remote=lambda: ("id-1", True))

    @property
    def execute(self):
        died = self.RayError("the actor died")
        return self.options_of(iter([*next(self.lives), died]))

    def options_of(self, events):
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *_: events))


def test_a_run_is_given_up_after_three_losses_without_progress(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr("attnlab.runner.workers.ray.in_memory", lambda corpus: corpus)
    study = tiny_study.study.only(["mha"])
    study = replace(study, seeds=1)
    at_4, at_8 = Progress(4, 12, 3.0, 1.0), Progress(8, 12, 2.0, 1.0)
    lives = [[], [], [at_4], [at_4], [at_8], [at_8], [at_8]]  # the same step is no progress
    schedule = open_schedule(study, tmp_path, {"mha": corpus.fingerprint})
    workers = RayWorkers(FakeRay(lives), tmp_path, {"mha": corpus}, Needs(0, 1))
    events = [found.event for found in run_schedule(schedule, workers)]
    losses = [event.losses for event in events if isinstance(event, Lost)]
    assert losses == [1, 2, 1, 2, 1, 2]
    reason = f"its worker was lost {MOST_LOSSES} times without progress, last on node-1: "
    assert events[-1] == Ended("failed", f"{reason}its process died", None)
    assert [event.step for event in events if isinstance(event, Progress)] == [4, 4, 8, 8, 8]
    assert study.verdict_run("mha", 0).folder(tmp_path).status() == "failed"
