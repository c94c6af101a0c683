"""On CUDA, every mechanism trains inside a recorded graph, to what the eager step gives.

A few tests run on a CPU, too, with the same helpers.
"""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from support import tiny_study

import attnlab.mechanisms  # noqa: F401  registers the kinds
from attnlab.data.batches import window_starts
from attnlab.kernels.cross_entropy import linear_cross_entropy
from attnlab.mechanism import MechanismConfig
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.sliding_window import SlidingWindow
from attnlab.model.language_model import ModelConfig
from attnlab.training.run import RunConfig
from attnlab.training.step import TrainingStep

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
on_cuda = pytest.mark.gpu
STEPS = 12
SHORTENED = {"window": 40, "top_k": 40, "dense_warmup_steps": 6}


HANDING = (
    GroupedQuery(),
    GroupedQuery(value_residual=True),
    GroupedQuery(shared_kv=True),
    SlidingWindow(window=40, n_sink_tokens=2),
)
KINDS = [*sorted(MechanismConfig.kinds), "handing"]


def trained(kind: str, dropout: float, kernel: str = "auto", **changes: object) -> TrainingStep:
    mechanisms: tuple[MechanismConfig, ...] = HANDING
    if kind != "handing":
        cls = MechanismConfig.kinds[kind]
        given = SHORTENED | {"kernel": kernel}
        fields = {k: v for k, v in given.items() if k in cls.__dataclass_fields__}
        mechanisms = (cls(**fields),) * 2
    n_layers = len(mechanisms)
    config = RunConfig(
        data=tiny_study.base.data,
        model=ModelConfig(mechanisms=mechanisms, n_layers=n_layers, d_model=128, dropout=dropout),
        train=replace(tiny_study.base.train, steps=STEPS, seq_len=200, batch_size=4, **changes),
    )
    tokens = (torch.arange(50_000) % 97).int().to(DEVICE)  # something that can be learnt
    starts = window_starts(50_000, seq_len=200, batch_size=4, steps=STEPS, seed=0)
    model = config.model.build(256).to(DEVICE).train()
    compiled = config.train.compile == "on"
    return TrainingStep(config.train, model, tokens, starts, seed=0, compiled=compiled)


def losses(step: TrainingStep) -> torch.Tensor:
    while step.step < STEPS:
        step.advance()
    return step.measured_SC[:, 0].cpu()


@on_cuda
@pytest.mark.parametrize("kind", KINDS)
def test_a_recorded_step_trains_as_the_eager_one(kind):
    recorded = trained(kind, 0.0)
    recorded_S = losses(recorded)
    assert recorded._graph is not None
    torch.testing.assert_close(
        recorded_S, losses(trained(kind, 0.0, cuda_graph="off")), rtol=1e-2, atol=0
    )
    assert recorded_S[-1] < recorded_S[0]


@on_cuda
def test_muon_in_a_recorded_step_takes_the_eager_steps_and_goes_on():
    changes = {"optimizer": "muon", "precision": "float32"}
    recorded = trained("grouped_query", 0.0, **changes)
    recorded_S = losses(recorded)
    assert recorded._graph is not None
    eager_S = losses(trained("grouped_query", 0.0, cuda_graph="off", **changes))
    torch.testing.assert_close(recorded_S, eager_S, rtol=1e-3, atol=0)
    again_S = stopped_and_gone_on("grouped_query", 0.0, **changes)
    torch.testing.assert_close(again_S, recorded_S, rtol=1e-3, atol=0)


@on_cuda
@pytest.mark.parametrize("kind", sorted(MechanismConfig.kinds))
def test_dropout_in_a_recorded_step_differs_from_step_to_step_and_repeats_by_seed(kind):
    first_S, second_S = losses(trained(kind, 0.3)), losses(trained(kind, 0.3))
    torch.testing.assert_close(first_S, second_S, rtol=1e-2, atol=0)
    assert not torch.equal(first_S, losses(trained(kind, 0.0)))


def stopped_and_gone_on(*of: Any, **changes: object) -> torch.Tensor:
    """The losses of a run that another process took over in the middle."""
    first, second = trained(*of, **changes), trained(*of, **changes)
    for _ in range(6):
        first.advance()
    weights, state = (
        {name: tensor.clone() for name, tensor in of.items()}
        for of in (first.weights(), first.state())
    )
    second.restore(first.step, first.whole(weights), first.whole(state))
    return losses(second)


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=on_cuda) for kind in ("grouped_query", "sliding_window", "mla")],
)
def test_a_run_goes_on_from_a_checkpoint_in_the_middle(kind):
    whole_S = losses(trained(kind, 0.1))
    torch.testing.assert_close(stopped_and_gone_on(kind, 0.1), whole_S, rtol=1e-2, atol=0)


@pytest.mark.parametrize("compile", ["off", pytest.param("on", marks=on_cuda)])
@pytest.mark.parametrize(
    ("kind", "kernel"),
    [
        ("grouped_query", "math"),
        *(
            pytest.param(kind, kernel, marks=on_cuda)
            for kind, kernel in (
                ("identity", "auto"),
                ("mla", "math"),
                ("gated_delta_net", "chunked"),
                ("gla", "chunked"),
                ("kda", "chunked"),
                ("mamba2", "chunked"),
            )
        ),
    ],
)
def test_with_deterministic_kernels_it_goes_on_to_the_same_bits(kind, kernel, compile):
    whole_S = losses(trained(kind, 0.0, kernel, compile=compile))
    assert torch.equal(stopped_and_gone_on(kind, 0.0, kernel, compile=compile), whole_S)


@on_cuda
@pytest.mark.parametrize("kind", ["grouped_query", "handing"])
def test_a_compiled_step_trains_as_the_eager_one(kind):
    """In float32: what bfloat16 rounds differently, a few steps of AdamW make large."""
    compiled_S = losses(trained(kind, 0.0, precision="float32", compile="on"))
    eager_S = losses(trained(kind, 0.0, precision="float32"))
    torch.testing.assert_close(compiled_S, eager_S, rtol=1e-3, atol=0)


@on_cuda
def test_the_fused_loss_equals_float32_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.randn(512, 64, generator=generator).cuda().requires_grad_()
    w_VD = torch.randn(1000, 64, generator=generator).cuda().requires_grad_()
    target_N = torch.randint(1000, (512,), generator=generator).cuda()
    loss = linear_cross_entropy(x_ND, w_VD, target_N, 200)
    loss.backward()
    ours = loss.detach(), x_ND.grad, w_VD.grad
    x_ND.grad = w_VD.grad = None
    expected = torch.nn.functional.cross_entropy(x_ND @ w_VD.mT, target_N)
    expected.backward()
    for a, b in zip(ours, (expected.detach(), x_ND.grad, w_VD.grad), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@on_cuda
def test_the_first_run_of_a_process_measures_the_memory_that_a_later_one_does():
    code = """
import torch
from attnlab.device.measuring import PeakMemory, side_stream

device = torch.device("cuda", 0)
for _ in range(2):
    memory = PeakMemory(device)
    with memory.measuring(), torch.cuda.stream(side_stream(device)):
        x = torch.ones(512, 512, device=device)
        y = x @ x
    print(memory.peak_bytes)
    del x, y
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, later = map(int, done.stdout.split())
    assert first == later == 2 * 4 * 512**2
