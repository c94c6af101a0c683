"""Training on several devices, or in micro-batches, is that of one device and one batch.

The module is also what the two processes of a run execute: `main`, started by torchrun.
"""

import gc
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from support import SOURCE, fake_workers, tiny_study
from torch.distributed.launcher import api as launcher
from torch.distributed.launcher.api import LaunchConfig

from attnlab.checks.small_configs import small
from attnlab.checks.suite import fitting_width
from attnlab.cli import app
from attnlab.data import Places
from attnlab.device.ranks import Ranks
from attnlab.inference.export import export
from attnlab.inference.saved_model import load_run
from attnlab.mechanism import MechanismConfig
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.model.block import Block
from attnlab.model.feedforward import Dense, SwiGLU
from attnlab.model.language_model import ModelConfig
from attnlab.model.mixture_of_experts import MixtureOfExperts
from attnlab.record import RunFolder, runs_in
from attnlab.runner.events import Ended, Progress
from attnlab.runner.execute import corpus_of, execute, execute_as
from attnlab.runner.extend import extend
from attnlab.runner.processes import death
from attnlab.runner.processes import main as main_of_rank
from attnlab.training import plausibility, sharded_checkpoint
from attnlab.training.assemble import activation_bytes, memory_advice, memory_per_gpu
from attnlab.training.checkpoint import load_newest, remove_old
from attnlab.training.config import TrainConfig
from attnlab.training.optimizer import Muon
from attnlab.training.run import Run, RunConfig
from attnlab.training.sharded_checkpoint import is_sharded, write_shards
from attnlab.training.step import TrainingStep

CPU = torch.device("cpu")
STEPS, BATCH, LENGTH, VOCAB = 6, 4, 16, 33  # an odd number has shards of unequal size
EXPERTS = MixtureOfExperts(n_experts=4, d_ff=16, balance_loss=0.1, bias_rate=0.01)
ODD = replace(EXPERTS, n_experts=3)  # shards of two and one
MHA = tiny_study.base.model.mechanisms
CHECKPOINTED = {"activation_checkpointing": True}
HANDING = (
    GroupedQuery(n_heads=2, n_kv_heads=2),
    GroupedQuery(n_heads=2, n_kv_heads=2, value_residual=True),
    *[GroupedQuery(n_heads=2, n_kv_heads=2, shared_kv=True)] * 2,
)


def model(mechanism: MechanismConfig | None = None, **settings) -> ModelConfig:
    mechanisms = MHA if mechanism is None else (mechanism,)
    base = {"n_layers": 2, "d_model": 32, "feedforward": Dense(d_ff=32)}
    return ModelConfig(mechanisms=mechanisms, **base | settings)


# by name: the model, and settings of training that do not change the result
CASES = {
    **{
        name: (model(small(kind), d_model=fitting_width(small(kind)), n_layers=1), {})
        for name, kind in sorted(MechanismConfig.kinds.items())
        if name != "fla_layer"  # needs a GPU
    },
    "experts": (model(feedforward=EXPERTS), {}),
    "experts in parts": (model(feedforward=EXPERTS), {"micro_batch_size": 1, **CHECKPOINTED}),
    "handing": (replace(model(), mechanisms=HANDING, n_layers=4), CHECKPOINTED),
    "muon, experts": (
        model(feedforward=ODD, untied_embeddings=True),
        {"optimizer": Muon(), "clip_norm": 0.3},
    ),
    "dropout": (model(dropout=0.2), {"micro_batch_size": 1, **CHECKPOINTED}),
}


def trained(
    model: ModelConfig, ranks: Ranks | None = None, steps: int = STEPS, **settings
) -> list[list[float]]:
    """Return losses, auxiliary losses and gradient norms of each step."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(VOCAB, (500,), generator=generator)
    starts_SB = torch.randint(400, (STEPS, BATCH), generator=generator).numpy()
    train = TrainConfig(
        steps=STEPS, batch_size=BATCH, seq_len=LENGTH, warmup_steps=2, learning_rate=1e-3
    )
    step = TrainingStep(
        replace(train, **settings),
        model.build(VOCAB),
        tokens,
        starts_SB,
        seed=0,
        compiled=False,
        ranks=ranks,
    )
    for _ in range(steps):
        step.advance()
    return step.measured_SC[:steps].tolist()


TRAIN = replace(tiny_study.base.train, eval_batch_size=256)
BASE = replace(tiny_study.base, model=model(feedforward=EXPERTS, dropout=0.1), train=TRAIN)
SETTINGS = {"steps": 20, "checkpoint_every": 5, "eval_batch_size": 256}
LONGER = replace(tiny_study.base, train=replace(tiny_study.base.train, **SETTINGS))
RUNS = {  # by name: the run, and up to which step how many processes train
    "whole": (BASE, [(2, None)]),
    "shards": (BASE, [(2, 6), (2, None)]),  # from the checkpoint of step 4
    "shards, moved": (BASE, [(2, 6), (1, 9), (2, None)]),  # and from that of step 8
}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    gc.freeze()  # each run collects garbage first
    plausibility.CUTS = 1
    ranks, losses = Ranks.join(CPU), {}
    for name, (config, settings) in CASES.items():
        losses[name] = trained(config, ranks, **settings)
    for name, (config, parts) in RUNS.items():
        sharded_checkpoint.WHOLE_BYTES = 0 if "shards" in name else 2**30
        for processes, until in parts:
            if processes == 2 or ranks.writes:
                them = ranks if processes == 2 else Ranks.alone(CPU)
                write_run(config, folder / name, them, until)
            ranks.wait()
    found = {"losses": losses, "refused": full_disk(folder, ranks), "pid": os.getpid()}
    os.environ["ATTNLAB_CACHE"] = str(folder / "cache")
    found["exit_code"] = train(folder / "longer", ranks)
    (folder / f"found-{ranks.rank}.json").write_text(json.dumps(found))
    train(folder / "killed", ranks)


def train(out: Path, ranks: Ranks) -> int:
    """Train `LONGER` with `attnlab train`, as one of the processes of torchrun; no report."""
    settings = [f"train.{name}={value}" for name, value in SETTINGS.items()]
    with (
        mock.patch("attnlab.reporting.files.write_report"),
        mock.patch.object(Ranks, "join", return_value=ranks),
        mock.patch.object(Ranks, "leave"),
        pytest.raises(SystemExit) as end,
    ):
        app(["train", tiny_study.__file__, "--variant=mha", f"--out={out}", *settings])
    return end.value.code


def write_run(config: RunConfig, study_dir: Path, ranks: Ranks, until: int | None = None) -> None:
    """Train a run from its last checkpoint up to a step, or all of it."""
    places, run = Places(None, study_dir.parent / "cache"), Run(variant="mha", config=config)
    if not ranks.writes:
        ranks.wait()  # the first one has cached the data
    corpus, folder = corpus_of(config.data, places), run.folder(study_dir)
    if ranks.writes:
        ranks.wait()
    identity = config.identity(corpus.fingerprint)
    events = execute_as(run, folder, identity, places, ranks, corpus=corpus)
    with folder.hold() if ranks.writes else nullcontext(), closing(events):
        for event in events:
            assert not (isinstance(event, Ended) and event.status == "failed"), event
            if until is not None and isinstance(event, Progress) and event.step >= until:
                return


def full_disk(folder: Path, ranks: Ranks) -> list[str]:
    """Let the disk refuse the shards of the second process; return what each process says."""
    if ranks.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
    said: list[str] = [""] * ranks.count
    try:
        tensors = {f"x{n}": torch.ones(100) for n in range(2)}  # one from each process
        write_shards(folder / "full" / "step-000004", {"model": tensors}, {}, ranks)
    except OSError as error:
        torch.distributed.all_gather_object(said, str(error))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return said


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory) -> Path:
    """The folder in which two processes of torchrun have left what they found.

    In their last run one of them is killed.
    """
    folder = tmp_path_factory.mktemp("two")
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *start, __file__, str(folder)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    with (folder / "said").open("w") as said:
        torchrun = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
    metrics, started = RunFolder(folder / "killed", "mha", 0).partial / "metrics.jsonl", time.time()
    while not (metrics.exists() and '"step": 12' in metrics.read_text()):
        if torchrun.poll() is not None or time.time() > started + 120:
            torchrun.kill()
            pytest.fail((folder / "said").read_text())
        time.sleep(0.01)
    os.kill(found_by(folder, rank=1)["pid"], signal.SIGKILL)
    killed = time.monotonic()
    assert torchrun.wait(timeout=20) == 1
    (folder / "seconds").write_text(str(time.monotonic() - killed))
    return folder


def found_by(folder: Path, rank: int) -> dict[str, Any]:
    return json.loads((folder / f"found-{rank}.json").read_text())


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one(name, of_two_processes):
    found = found_by(of_two_processes, rank=0)["losses"][name]
    config, settings = CASES[name]
    decides = {key: settings[key] for key in ("optimizer", "clip_norm") if key in settings}
    one = torch.tensor(trained(config, **decides))
    two = torch.tensor(found)
    torch.testing.assert_close(two, one, rtol=0, atol=1e-5)
    assert one[0, 0] > one[-1, 0]
    assert bool(one[:, 1].any()) == (name == "deepseek_sparse" or "experts" in name)


@pytest.mark.parametrize(
    "settings",
    [
        {"micro_batch_size": 1},
        {"micro_batch_size": 3},  # the last one is smaller
        CHECKPOINTED,
        {"micro_batch_size": 2, **CHECKPOINTED},
    ],
    ids=str,
)
def test_micro_batches_and_checkpointed_activations_change_nothing(settings):
    config = model(feedforward=EXPERTS, dropout=0.2)
    one, divided = (torch.tensor(trained(config, steps=5, **each)) for each in ({}, settings))
    torch.testing.assert_close(divided, one, rtol=0, atol=1e-5)


def test_a_process_that_dies_is_named_and_all_end(tmp_path, places):
    config = replace(tiny_study.base, train=replace(tiny_study.base.train, steps=5000))
    run = Run(variant="mha", config=config)
    started = list[int]()
    for event in execute(run, tmp_path, "same", places, CPU, CPU):
        if isinstance(event, Progress) and not started:
            started = [pid for pid in fake_workers.children(os.getpid()) if _is_rank(pid)]
            for pid in started:
                if b"LOCAL_RANK=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    os.kill(pid, signal.SIGKILL)
    assert len(started) == 2
    assert event == Ended("failed", f"process 1 of 2, cpu: {death(-signal.SIGKILL)}", None)
    assert not any(map(_is_rank, started))


@pytest.fixture
def forked(monkeypatch):
    """The processes of a run are copies of this one, and need not import torch again."""
    launch = launcher.elastic_launch

    def started(config: LaunchConfig, executable: str):
        config.start_method = "fork"
        return lambda *arguments: launch(config, main_of_rank)(arguments[-1])

    monkeypatch.setattr(launcher, "elastic_launch", started)


@pytest.mark.usefixtures("forked")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_killed_run_of_torchrun_ends_at_once_and_continues_to_the_same_bits(of_two_processes):
    assert float((of_two_processes / "seconds").read_text()) < 5
    found = [found_by(of_two_processes, rank) for rank in (0, 1)]
    assert not any(Path(f"/proc/{each['pid']}").exists() for each in found)
    assert [each["exit_code"] for each in found] == [0, 0]
    whole, killed = (RunFolder(of_two_processes / n, "mha", 0) for n in ("longer", "killed"))
    assert whole.status() == "finished"
    assert killed.status() in ("partial", "failed")  # the other one may have lost the connection
    identity, places = str(whole.identity()), Places(None, of_two_processes / "cache")
    run = Run(variant="mha", config=LONGER)
    *_, end = execute(run, of_two_processes / "killed", identity, places, CPU, CPU)
    assert (type(end), end.status) == (Ended, "finished")
    assert killed.environment()["begins"]["step"] >= 10
    assert untimed(killed) == untimed(whole)


def untimed(run: RunFolder) -> list[dict[str, Any]]:
    """Return the measurements of a run without those of time."""
    return [{**line, "train_seconds": None} for line in run.metrics()]


def _is_rank(process: int) -> bool:
    """True for a living process of a run."""
    try:
        command = Path(f"/proc/{process}/cmdline").read_bytes()
        return b"attnlab.runner.processes" in command and b"socket" in command
    except OSError:
        return False


@pytest.mark.parametrize("untied", [False, True])
def test_the_estimate_of_memory_counts_the_state_of_real_parameters(untied):
    config = replace(tiny_study.base, model=model(n_layers=3, untied_embeddings=untied))
    built = config.model.build(VOCAB)
    state = 16 * sum(parameter.numel() for parameter in built.parameters())
    sequences = config.train.batch_size
    part = activation_bytes(config, VOCAB, 1) / activation_bytes(config, VOCAB, sequences)
    assert 1 / sequences < part < 1
    assert memory_per_gpu(config, VOCAB, 1, state + 1000) == state + 1000
    block = sum(parameter.numel() for parameter in built.blocks[0].parameters())
    whole = 8 * ((1 + untied) * built.embed.weight.numel() + block)
    on_two = memory_per_gpu(config, VOCAB, 2, state + 1000)
    assert on_two == pytest.approx(state // 2 + 1000 * part + whole, abs=8 * 32)  # the final norm
    micro = replace(config, train=replace(config.train, micro_batch_size=1))
    assert memory_per_gpu(micro, VOCAB, 2, state + 1000) == on_two + 1000 - int(1000 * part)
    unmeasured = memory_per_gpu(config, VOCAB, 1, None)
    assert unmeasured == state + activation_bytes(config, VOCAB, sequences)


# kernels that keep scores of all pairs of tokens, or states of all chunks: a lower bound
LOWER = {"math": 0.55, "plain": 0.5, "chunked": 0.6}


@pytest.mark.parametrize("study", ["mechanisms", "deepseek", "extrapolation", "hybrids"])
def test_the_estimate_of_memory_is_near_what_published_runs_took(study):
    """It is made from the settings alone, as for a model that does not fit one GPU."""
    every = runs_in(SOURCE.parent / "published" / study)
    runs = {run.variant: run for run in every if run.status() == "finished"}
    ratios = dict[str, float]()
    for name, run in runs.items():
        summary, settings = run.summary(), run.config()
        config = RunConfig.from_dict({key: settings[key] for key in ("data", "model", "train")})
        vocab_size = summary["parameters"]["embedding"] // config.model.d_model
        estimate = memory_per_gpu(config, vocab_size, 1, None)
        ratios[name] = estimate / summary["peak_memory_bytes"]
        least = min((LOWER.get(kernel, 0.75) for kernel in summary["kernels"]), default=0.75)
        assert least < ratios[name] < 1.25, (name, ratios[name], summary["kernels"])
    assert len(ratios) > 4


def test_the_estimate_of_memory_is_near_what_four_gpus_took():
    """A Transformer of 1.13 billion parameters on four H100s: see the guide to more machines."""
    wide = ModelConfig(
        mechanisms=(GroupedQuery(n_heads=16, n_kv_heads=16),),
        n_layers=20,
        d_model=2048,
        feedforward=SwiGLU(d_ff=5632),
    )
    train = TrainConfig(batch_size=64, seq_len=1024)
    config = replace(tiny_study.base, model=wide, train=train)
    assert memory_per_gpu(config, 50_257, 4, None) / 2**30 == pytest.approx(29.8, rel=0.25)
    less = {"activation_checkpointing": True, "micro_batch_size": 8}
    smaller = replace(config, train=replace(train, **less))
    assert memory_per_gpu(smaller, 50_257, 4, None) < memory_per_gpu(config, 50_257, 4, None) / 2


@pytest.mark.parametrize(
    ("settings", "gpus", "advice"),
    [
        (
            {},
            1,
            "train.micro_batch_size=1 or train.activation_checkpointing=true or --gpus-per-run 2",
        ),
        ({"batch_size": 8, "micro_batch_size": 1, **CHECKPOINTED}, 2, "set --gpus-per-run 4."),
        ({"micro_batch_size": 1, **CHECKPOINTED}, 2, "use a larger device"),  # of 2 sequences
        ({"batch_size": 6}, 3, "set train.micro_batch_size=1 or train.activation_checkpointing="),
    ],
)
def test_too_little_memory_names_the_settings_that_are_left(settings, gpus, advice):
    assert advice in memory_advice(
        replace(tiny_study.base.train, **settings), torch.device("cuda"), gpus
    )


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        MemoryError(),
    ],
)
def test_a_run_with_too_little_memory_names_the_setting_to_change(
    tmp_path, places, monkeypatch, error
):
    def full(step):
        raise error

    monkeypatch.setattr(TrainingStep, "advance", full)
    run = Run(variant="mha", config=tiny_study.base)
    *_, end = execute(run, tmp_path, "same", places, CPU)
    assert end.reason.startswith(f"{type(error).__name__}: {error}")
    assert end.reason.endswith(memory_advice(tiny_study.base.train, CPU, 1))
    assert run.folder(tmp_path).summary()["reason"] == end.reason


def test_one_process_with_one_batch_trains_the_model_as_it_was_built():
    """Nothing of several processes is in its way: the same modules, hooks and graph."""
    before = model().build(VOCAB)
    tokens, starts_SB = torch.zeros(100, dtype=torch.int64), torch.zeros(20, BATCH).long().numpy()
    config = TrainConfig(steps=STEPS, batch_size=BATCH, seq_len=LENGTH, warmup_steps=2)
    step = TrainingStep(config, before, tokens, starts_SB, seed=0, compiled=False)
    assert step.divided is step.shards is None
    updated = [p for group in step.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in updated} == {id(p) for p in before.parameters()}
    step.advance()
    assert {type(module) for module in before.blocks} == {Block}
    for module in before.modules():
        assert not {"forward", "losses", "features"} & vars(module).keys()
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        assert not any(hooks)


def test_settings_without_influence_leave_the_identity_as_it_is():
    train = replace(tiny_study.base.train, micro_batch_size=1, **CHECKPOINTED)
    assert replace(tiny_study.base, train=train).identity("x") == tiny_study.base.identity("x")


def test_a_batch_that_cannot_be_shared_evenly_is_an_error():
    ranks = Ranks(rank=1, count=3, device=CPU)
    assert ranks.rows(6) == slice(2, 4)
    with pytest.raises(ValueError, match="4 sequences per step cannot be shared evenly by 3 GPUs"):
        ranks.rows(4)


@pytest.fixture(scope="module")
def by_one_process(tmp_path_factory) -> RunFolder:
    study_dir = tmp_path_factory.mktemp("one") / "study"
    write_run(BASE, study_dir, Ranks.alone(CPU))
    return RunFolder(study_dir, "mha", 0)


@pytest.mark.parametrize("name", ["whole", "shards", "shards, moved"])
def test_a_run_goes_on_with_another_number_of_processes(name, of_two_processes, by_one_process):
    found = RunFolder(of_two_processes / name, "mha", 0)
    for one, other in zip(found.metrics(), by_one_process.metrics(), strict=True):
        for key in ("train_loss", "auxiliary_loss", "eval_loss"):
            assert one.get(key) == pytest.approx(other.get(key), abs=1e-5), (one["step"], key)
        assert one["router_load"] == other["router_load"]
    environment = found.environment()
    parts = [*environment.get("earlier", ()), environment]
    began = [(part["processes"], part["begins"]["step"]) for part in parts]
    assert began == [(n, 4 * i) for i, (n, _) in enumerate(RUNS[name][1])]
    sharded = [*(found.checkpoints / "step-000012").glob("shard-*")]
    assert len(sharded) == (2 if "shards" in name else 0)
    for which in ("last", "best"):
        weights = [load_run(run.path, which=which) for run in (found, by_one_process)]
        assert [each.note for each in weights] == [None, None]
        states = [each.model.state_dict() for each in weights]
        torch.testing.assert_close(*states, rtol=0, atol=1e-5)


def test_shards_and_a_pause_change_no_bit(of_two_processes, tmp_path, monkeypatch):
    whole, shards = (RunFolder(of_two_processes / name, "mha", 0) for name in ("whole", "shards"))
    assert untimed(whole) == untimed(shards)
    one, other = (load_newest(run.checkpoints, str(run.identity())) for run in (whole, shards))
    for section in ("model", "optimizer"):
        tensors = [getattr(each.checkpoint, section) for each in (one, other)]
        torch.testing.assert_close(*tensors, rtol=0, atol=0)
    export(shards.path, tmp_path / "exported")
    monkeypatch.setattr("attnlab.runner.extend.write_report", lambda _: None)  # takes seconds
    longer = extend(shards.path, steps=14, out=tmp_path / "longer", cache=tmp_path)
    assert longer.status() == "finished"


@pytest.mark.parametrize("shard", [1, 2])
def test_a_damaged_shard_is_skipped_for_the_checkpoint_before(shard, of_two_processes, tmp_path):
    run = RunFolder(of_two_processes / "shards", "mha", 0)
    folder = shutil.copytree(run.checkpoints, tmp_path / "checkpoints")
    [damaged] = folder.glob(f"step-000012/shard-0000{shard}-*")
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    found = load_newest(folder, str(run.identity()))
    assert found.checkpoint.step == 8
    assert "altered or cut short" in found.note
    left = folder / f".step-000016.{'0' * 16}.tmp"  # of a process that was killed while it wrote
    shutil.copytree(damaged.parent, left)
    remove_old(folder)
    assert not left.exists()
    damaged.unlink()
    note = load_newest(folder, str(run.identity())).note
    assert f"step-000012: {damaged.name} is missing" in note


def test_a_disk_that_refuses_a_shard_is_an_error_in_all_processes(of_two_processes):
    refused = found_by(of_two_processes, rank=0)["refused"]
    assert all("File too large" in reason for reason in refused), refused
    assert list((of_two_processes / "full").iterdir()) == []


def test_checkpoints_are_in_shards_above_a_stated_size():
    largest = sharded_checkpoint.WHOLE_BYTES // 12
    assert [is_sharded(n, processes=2) for n in (largest, largest + 1)] == [False, True]
    assert not is_sharded(largest + 1, processes=1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
