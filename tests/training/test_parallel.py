"""Training on several devices, or in micro-batches, is that of one device and one batch.

The module is also what the two processes of a run execute: `main`, started by torchrun.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import tiny_study

from attnlab.checks.small_configs import small
from attnlab.checks.suite import fitting_width
from attnlab.device.ranks import Ranks
from attnlab.mechanism import MechanismConfig
from attnlab.model.feedforward import Dense, MixtureOfExperts
from attnlab.model.language_model import ModelConfig
from attnlab.training.config import TrainConfig
from attnlab.training.step import TrainingStep

CPU = torch.device("cpu")
STEPS, BATCH, LENGTH, VOCAB = 20, 4, 16, 32
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
        name: (model(small(kind), d_model=fitting_width(small(kind))), {})
        for name, kind in sorted(MechanismConfig.kinds.items())
        if name != "fla_layer"  # needs a GPU
    },
    "experts": (model(feedforward=EXPERTS), {}),
    "experts in micro-batches": (model(feedforward=EXPERTS), {"micro_batch_size": 1}),
    "experts again": (model(feedforward=EXPERTS), {"micro_batch_size": 1, **CHECKPOINTED}),
    "dropout": (model(dropout=0.2), {"micro_batch_size": 1, **CHECKPOINTED}),
    "dropout of experts": (model(feedforward=EXPERTS, dropout=0.2), {}),
}


def trained(model: ModelConfig, ranks: Ranks | None = None, **settings) -> list[list[float]]:
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
    for _ in range(STEPS):
        step.advance()
    return step.measured_SC.tolist()


def main(out: Path) -> None:
    torch.set_num_threads(1)
    ranks, found = Ranks.join(CPU), {}
    for name, (config, settings) in CASES.items():
        found[name] = trained(config, ranks, **settings)
    if ranks.writes:
        out.write_text(json.dumps(found))
    ranks.leave()


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory) -> dict[str, list[list[float]]]:
    out = tmp_path_factory.mktemp("two") / "found.json"
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *start, __file__, str(out)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
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
    one = torch.tensor(trained(config))
    torch.testing.assert_close(torch.tensor(trained(config, **settings)), one, rtol=0, atol=1e-5)


def test_settings_without_influence_leave_the_identity_as_it_is():
    train = replace(tiny_study.base.train, micro_batch_size=1, **CHECKPOINTED)
    assert replace(tiny_study.base, train=train).identity("x") == tiny_study.base.identity("x")


def test_a_batch_that_cannot_be_shared_evenly_is_an_error():
    ranks = Ranks(rank=1, count=3, device=CPU)
    assert ranks.rows(6) == slice(2, 4)
    with pytest.raises(ValueError, match="4 sequences per step cannot be shared evenly by 3 GPUs"):
        ranks.rows(4)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
