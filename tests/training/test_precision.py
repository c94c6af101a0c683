"""A kernel with wrong gradients raises the alarm of a run; rounding, and choices, do not."""

import math
from dataclasses import replace

import pytest
import torch
from support import tiny_study
from torch import Tensor

from attnlab.mechanism import MechanismConfig
from attnlab.model.mixture_of_experts import MixtureOfExperts
from attnlab.record import RunFolder
from attnlab.runner.events import Progress
from attnlab.runner.execute import execute
from attnlab.training import plausibility
from attnlab.training.assemble import step_of_run
from attnlab.training.precision import ALLOWED, GradientError, gradient_error
from attnlab.training.run import Run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny_corpus(places):
    return tiny_study.base.data.load(places)


KINDS = [kind for kind in MechanismConfig.kinds if not kind.startswith("fla:")]
QUERIES = "blocks.1.mix.q_proj.weight"


def in_bfloat16(kind="grouped_query", dropout=0.0, **train):
    config = tiny_study.base
    mechanism = MechanismConfig.from_dict({"kind": kind, **fields(kind)})
    config = config.in_every_layer(mechanism)
    model = replace(config.model, dropout=dropout)
    return replace(config, model=model, train=replace(config.train, precision="bfloat16", **train))


def fields(kind):
    if kind == "nsa":
        return {"n_heads": 2, "n_kv_heads": 1, "compression_size": 4, "compression_stride": 2} | {
            "block_size": 4,
            "top_k": 2,
            "window": 3,
        }
    of_kind = MechanismConfig.kinds[kind].__dataclass_fields__
    small = {"n_heads": 2, "n_kv_heads": 2, "top_k": 8, "window": 8, "block_size": 4}
    small |= {"index_head_dim": 8, "head_dim": 8, "kv_lora_rank": 8}
    return {name: value for name, value in small.items() if name in of_kind}


def step_of(config, corpus):
    return step_of_run(config, corpus, CPU)


def with_gradient(step, change):
    """Change the gradient of a layer's output in bfloat16, as a wrong kernel does."""
    mix = step.model.blocks[1].mix
    attend = mix.forward_with_loss

    def forward(x_BTD: Tensor) -> tuple[Tensor, Tensor | None]:
        y_BTD, loss = attend(x_BTD)
        if torch.is_autocast_enabled("cpu"):
            y_BTD.register_hook(change)
        return y_BTD, loss

    mix.forward_with_loss = forward


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_is_no_error(tiny_corpus, kind):
    found = gradient_error(step_of(in_bfloat16(kind), tiny_corpus))
    assert 0 < found.share < 0.5
    assert 0 < found.rounded < 0.1


def test_choices_that_rounding_changes_are_no_error(tiny_corpus):
    config = in_bfloat16()
    experts = MixtureOfExperts(d_ff=16, n_experts=8, top_k=2)
    step = step_of(config.with_feedforward(experts), tiny_corpus)
    assert not gradient_error(step).is_wrong


@pytest.mark.parametrize(
    "change",
    [torch.zeros_like, torch.neg, lambda g: 1.5 * g, lambda g: g.flip(1), lambda g: g * torch.nan],
)
def test_a_kernel_with_wrong_gradients_is_found(tiny_corpus, change):
    step = step_of(in_bfloat16(), tiny_corpus)
    with_gradient(step, change)
    found = gradient_error(step)
    assert found.is_wrong
    assert "a kernel computes wrong gradients on this device" in str(found)


def test_the_allowance_grows_with_what_rounding_does():
    assert not GradientError(QUERIES, ALLOWED, 0.0).is_wrong
    assert GradientError(QUERIES, 2 * ALLOWED, 0.01).is_wrong
    assert not GradientError(QUERIES, 2 * ALLOWED, 0.1).is_wrong
    assert GradientError(QUERIES, math.nan, 0.1).is_wrong
    assert QUERIES in str(GradientError(QUERIES, 1.0, 0.1))


def test_a_run_says_so_at_once_and_has_no_part_in_the_verdict(tmp_path, places, monkeypatch):
    wrong = GradientError(QUERIES, 1.2, 0.004)
    monkeypatch.setattr(plausibility, "gradient_error", lambda step: wrong)
    run = Run(variant="x", config=in_bfloat16(steps=2, warmup_steps=1))
    events = list(execute(run, tmp_path, "id", places, CPU))
    alarms = [event.alarm for event in events if isinstance(event, Progress) and event.alarm]
    summary = RunFolder(tmp_path, "x", 0).summary()
    assert alarms == summary["alarms"] == [f"at step 0 {wrong}"]
    assert summary["gradient_error"] == {
        "parameter": QUERIES,
        "error": 1.2,
        "allowed": wrong.allowed,
    }
    assert summary["status"] == "finished"


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["grouped_query", "deepseek_sparse"])
def test_it_changes_nothing_of_the_run(tiny_corpus, kind, dropout):
    trained = []
    for compares in (False, True):
        step = step_of(in_bfloat16(kind, dropout), tiny_corpus)
        step.model.train()
        if compares:
            assert gradient_error(step) is not None
            assert all(p.grad is None for p in step.model.parameters())
            assert step.model.training
        for _ in range(3):
            step.advance()
        trained.append(step.weights())
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


def test_where_there_is_nothing_to_compare_there_is_no_error(tiny_corpus):
    assert gradient_error(step_of(tiny_study.base, tiny_corpus)) is None  # in float32
    assert gradient_error(step_of(in_bfloat16(micro_batch_size=1), tiny_corpus)) is None
    done = step_of(in_bfloat16(steps=2, warmup_steps=1), tiny_corpus)
    done.advance(), done.advance()
    assert gradient_error(done) is None
    only_low = step_of(in_bfloat16(), tiny_corpus)
    attend = only_low.model.blocks[0].mix.forward_with_loss

    def forward(x_BTD):
        if not torch.is_autocast_enabled("cpu"):
            raise ValueError("kernel 'flash' computes in bfloat16")
        return attend(x_BTD)

    only_low.model.blocks[0].mix.forward_with_loss = forward
    before = {name: p.clone() for name, p in only_low.model.named_parameters()}
    assert gradient_error(only_low) is None
    assert all(torch.equal(before[n], p) for n, p in only_low.model.named_parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_kernels_of_a_gpu_have_right_gradients(tiny_corpus, kind):
    step = step_of_run(in_bfloat16(kind), tiny_corpus, torch.device("cuda"))
    assert gradient_error(step).share < 0.5
