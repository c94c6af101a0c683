"""Training on several devices, or in micro-batches, is that of one device and one batch.

The module is also what two processes execute: `main`, which becomes both.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed.fsdp  # two processes share what was imported
from support import fake_workers, tiny_study

from attnlab.checks.small_configs import small
from attnlab.checks.suite import fitting_width
from attnlab.data import Places
from attnlab.device.ranks import Ranks
from attnlab.mechanism import MechanismConfig
from attnlab.model.feedforward import Dense, MixtureOfExperts
from attnlab.model.language_model import ModelConfig
from attnlab.record import RunFolder
from attnlab.runner.events import Ended, Progress
from attnlab.runner.execute import execute
from attnlab.runner.processes import death
from attnlab.training.assemble import memory_advice, memory_per_gpu
from attnlab.training.checkpoint import load_newest
from attnlab.training.config import TrainConfig
from attnlab.training.run import Run
from attnlab.training.step import TrainingStep

CPU = torch.device("cpu")
STEPS, BATCH, LENGTH, VOCAB = 12, 4, 16, 32
EXPERTS = MixtureOfExperts(n_experts=4, d_ff=16, balance_loss=0.1, bias_rate=0.01)
MHA = tiny_study.base.model.mechanisms
CHECKPOINTED = {"activation_checkpointing": True}


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
    "experts in micro-batches": (model(feedforward=EXPERTS), {"micro_batch_size": 1}),
    "experts again": (model(feedforward=EXPERTS), {"micro_batch_size": 1, **CHECKPOINTED}),
    "dropout": (model(dropout=0.2), {"micro_batch_size": 1, **CHECKPOINTED}),
    "dropout of experts": (model(feedforward=EXPERTS, dropout=0.2), {}),
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


def main(out: Path) -> None:
    """Train as two processes, with the environment that torchrun would give them."""
    torch.set_num_threads(1)
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    other = os.fork()
    os.environ.update({**place, "RANK": "0" if other else "1"})
    ranks, found = Ranks.join(CPU), {}
    for name, (config, settings) in CASES.items():
        found[name] = trained(config, ranks, **settings)
    if ranks.writes:
        out.write_text(json.dumps(found))
    ranks.leave()
    if other:
        sys.exit(os.waitpid(other, 0)[1])


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory) -> dict[str, list[list[float]]]:
    out = tmp_path_factory.mktemp("two") / "found.json"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(out)]
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=300)
    return json.loads(out.read_text())


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one(name, of_two_processes):
    one, two = torch.tensor(trained(CASES[name][0])), torch.tensor(of_two_processes[name])
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


def test_a_process_that_dies_is_named_and_all_end(tmp_path):
    config = replace(tiny_study.base, train=replace(tiny_study.base.train, steps=5000))
    run, places = Run(variant="x", config=config), Places(None, tmp_path / "cache")
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


def _is_rank(process: int) -> bool:
    """True for a living process of a run."""
    try:
        command = Path(f"/proc/{process}/cmdline").read_bytes()
        return b"attnlab.runner.processes" in command and b"socket" in command
    except OSError:
        return False


def test_the_estimate_of_memory_counts_the_state_of_real_parameters():
    config = replace(tiny_study.base, model=model(n_layers=3))
    built = config.model.build(VOCAB)
    state = 16 * sum(parameter.numel() for parameter in built.parameters())
    assert memory_per_gpu(config, VOCAB, 1, None) == state
    assert memory_per_gpu(config, VOCAB, 1, state + 1000) == state + 1000
    block = sum(parameter.numel() for parameter in built.blocks[0].parameters())
    whole = 8 * (built.embed.weight.numel() + block)
    on_two = memory_per_gpu(config, VOCAB, 2, state + 1000)
    assert on_two == pytest.approx(state // 2 + 500 + whole, abs=8 * 32)  # the final norm
    micro = replace(config, train=replace(config.train, micro_batch_size=1))
    assert memory_per_gpu(micro, VOCAB, 2, state + 1000) == on_two + 500


@pytest.mark.parametrize(
    ("settings", "gpus", "advice"),
    [
        (
            {},
            1,
            "train.micro_batch_size=1 or train.activation_checkpointing=true or --gpus-per-run 2",
        ),
        ({"micro_batch_size": 1, **CHECKPOINTED}, 2, "set --gpus-per-run 4"),
    ],
)
def test_too_little_memory_names_the_settings_that_are_left(settings, gpus, advice):
    assert advice in memory_advice(replace(tiny_study.base.train, **settings), gpus)


def test_settings_without_influence_leave_the_identity_as_it_is():
    train = replace(tiny_study.base.train, micro_batch_size=1, **CHECKPOINTED)
    assert replace(tiny_study.base, train=train).identity("x") == tiny_study.base.identity("x")


def test_a_batch_that_cannot_be_shared_evenly_is_an_error():
    ranks = Ranks(rank=1, count=3, device=CPU)
    assert ranks.rows(6) == slice(2, 4)
    with pytest.raises(ValueError, match="4 sequences per step cannot be shared evenly by 3 GPUs"):
        ranks.rows(4)


def write_run(study_dir: Path, processes: int, until: int | None = None) -> None:
    """Train a run on this number of processes, from its last checkpoint up to a step, or all."""
    config = replace(tiny_study.base, model=model(feedforward=EXPERTS, dropout=0.1))
    places, run = Places(None, study_dir / "cache"), Run(variant="x", config=config)
    with closing(execute(run, study_dir, "same", places, *[CPU] * processes)) as events:
        for event in events:
            assert not (isinstance(event, Ended) and event.status == "failed"), event
            if until is not None and isinstance(event, Progress) and event.step >= until:
                return


def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    write_run(tmp_path / "moved", 1, until=6)  # its last checkpoint is that of step 4
    write_run(tmp_path / "moved", 2, until=9)  # 8
    write_run(tmp_path / "moved", 1)
    write_run(tmp_path / "whole", 1)
    moved, whole = (RunFolder(tmp_path / name, "x", 0) for name in ("moved", "whole"))
    for one, other in zip(moved.metrics(), whole.metrics(), strict=True):
        for name in ("train_loss", "auxiliary_loss", "eval_loss"):
            assert one.get(name) == pytest.approx(other.get(name), abs=1e-5), (one["step"], name)
        assert one["router_load"] == other["router_load"]
    environment = moved.environment()
    assert environment is not None
    parts = [*environment["earlier"], environment]
    began = [(part["processes"], part["begins"]["step"]) for part in parts]
    assert began == [(1, 0), (2, 4), (1, 8)]
    found = [load_newest(run.checkpoints, "same").checkpoint for run in (moved, whole)]
    for name, tensor in found[0].model.items():
        torch.testing.assert_close(tensor, found[1].model[name], rtol=0, atol=1e-5)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
