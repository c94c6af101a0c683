"""Training is a pure function of settings and step: batches, bits, resumption, divergence."""

import json
import math
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from support import tiny_study
from torch import nn

from attnlab.data.batches import window_starts
from attnlab.device.flops import flop_counter
from attnlab.mechanisms.gated_delta_net import GatedDeltaNet
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.identity import Identity, TokenwiseLinear
from attnlab.model.mixture_of_experts import MixtureOfExperts
from attnlab.record import RunFolder
from attnlab.runner import execution
from attnlab.runner.events import Ended, Progress
from attnlab.runner.execute import execute
from attnlab.training import checkpoint
from attnlab.training.config import TrainConfig
from attnlab.training.loop import measured_steps
from attnlab.training.optimizer import (
    Muon,
    adamw,
    optimizer_of,
    orthogonal_step,
    set_learning_rate,
)
from attnlab.training.run import Run, RunConfig
from attnlab.training.step import TrainingStep

CPU = torch.device("cpu")


def with_train(config: RunConfig, **changes: object) -> RunConfig:
    return replace(config, train=replace(config.train, **changes))


def run(config, folder, places, variant="mha", identity="same"):
    return execute(Run(variant=variant, config=config), folder, identity, places, CPU)


def timeless(metrics):
    return [{k: v for k, v in line.items() if k != "train_seconds"} for line in metrics]


def weights(folder):
    return checkpoint.load_newest(folder.checkpoints, "same").checkpoint.model


def a_step(config: RunConfig, tokens, seed=0) -> TrainingStep:
    train = config.train
    starts = window_starts(
        len(tokens),
        seq_len=train.seq_len,
        batch_size=train.batch_size,
        steps=train.steps,
        seed=seed,
    )
    model = config.model.build(256, seed)
    return TrainingStep(train, model, tokens, starts, seed=seed, compiled=False)


def test_training_does_not_load_the_compiler_which_takes_a_second(tmp_path, places, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)  # an import of it fails
    cut = run(tiny_study.base, tmp_path, places)
    while next(cut).step < 4:
        pass
    cut.close()  # the next call goes on from the checkpoint
    *_, end = run(tiny_study.base, tmp_path, places)
    assert end.status == "finished", end.reason


def test_two_variants_see_the_same_batches(places, monkeypatch):
    tokens = torch.randint(256, (5000,), generator=torch.Generator().manual_seed(0)).int()
    seen = {}
    for name in ("mha", "identity"):
        step = a_step(tiny_study.study.variants[name], tokens)
        batches = seen[name] = []
        losses = step.model.losses
        step.model.losses = lambda batch, losses=losses, batches=batches, **how: (
            batches.append(batch.clone()),
            losses(batch, **how),
        )[1]
        for _ in range(4):
            step.advance()
    assert all(map(torch.equal, seen["mha"], seen["identity"]))
    assert not torch.equal(seen["mha"][0], seen["mha"][1])


VARIANTS = {
    **tiny_study.study.variants,
    "muon": with_train(tiny_study.base, optimizer=Muon(), learning_rate=3e-2),
}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, places):
    """The folder of a variant's run that was not interrupted, trained once for all tests."""

    @cache
    def trained(variant: str) -> RunFolder:
        folder = tmp_path_factory.mktemp("whole")
        *_, ended = run(VARIANTS[variant], folder, places, variant)
        assert ended.status == "finished"
        return RunFolder(folder, variant, 0)

    return trained


@pytest.mark.parametrize(
    ("variant", "events", "checkpoint_step"),
    [
        *(("mha", *at) for at in ((1, 0), (2, 0), (3, 4))),
        *(("sparse", *at) for at in ((3, 4), (5, 8))),
        ("muon", 3, 4),
    ],
)
def test_an_interrupted_run_continues_to_the_same_bits(
    tmp_path, places, whole_run, variant, events, checkpoint_step
):
    config = VARIANTS[variant]
    cut = run(config, tmp_path, places, variant)
    assert all(isinstance(next(cut), Progress) for _ in range(events))
    cut.close()  # as if the process ended here
    first, *_ = run(config, tmp_path, places, variant)
    assert first.step == checkpoint_step

    whole, resumed = whole_run(variant), RunFolder(tmp_path, variant, 0)
    assert timeless(resumed.metrics()) == timeless(whole.metrics())
    first, second = weights(whole), weights(resumed)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


class Sometimes(TokenwiseLinear):
    """Takes no part in about a third of the steps; its projections are one matrix."""

    def __init__(self, d_model):
        super().__init__(d_model)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj.weight = self.o_proj.weight

    def forward(self, x_BTD):
        return self.o_proj(self.v_proj(x_BTD))

    def forward_with_loss(self, x_BTD):
        skips = self.training and torch.rand(()) < 0.3
        return (torch.zeros_like(x_BTD) if skips else self(x_BTD)), None


class Late(TokenwiseLinear):
    def forward(self, x_BTD):
        if not hasattr(self, "gain"):
            self.gain = nn.Parameter(torch.ones(x_BTD.shape[-1]))
        return self.o_proj(x_BTD * self.gain)


@pytest.fixture
def own(monkeypatch):
    """A function that lets the variant `identity` have this module."""

    def use(module):
        monkeypatch.setattr(Identity, "build", lambda _, d_model, dropout=0.0: module(d_model))
        return replace(tiny_study.study.variants["identity"], seed=1)

    return use


def test_tied_parameters_without_a_gradient_in_some_steps_resume_to_the_same_bits(
    tmp_path, places, own
):
    config, folders = own(Sometimes), []
    for name, events in (("whole", 99), ("resumed", 3)):
        cut = run(config, tmp_path / name, places, "identity")
        for _ in zip(range(events), cut, strict=False):
            pass
        cut.close()
        list(run(config, tmp_path / name, places, "identity")) if name == "resumed" else None
        folders.append(RunFolder(tmp_path / name, "identity", 1))
    assert {folder.status() for folder in folders} == {"finished"}
    first, second = map(weights, folders)
    assert all(torch.equal(first[name], second[name]) for name in first)
    steps = checkpoint.load_newest(folders[1].checkpoints, "same").checkpoint.optimizer
    assert 0 < steps["step.blocks.0.mix.o_proj.weight"] < steps["step.embed.weight"] == 12
    assert torch.equal(second["blocks.0.mix.o_proj.weight"], second["blocks.0.mix.v_proj.weight"])


def test_a_parameter_that_is_made_in_a_forward_pass_is_refused_after_one_step(
    tmp_path, places, own
):
    *_, ended = run(own(Late), tmp_path, places, "identity")
    assert ended.status == "failed"
    assert "parameter blocks.0.mix.gain was made or replaced in a forward pass" in ended.reason
    assert not RunFolder(tmp_path, "identity", 1).metrics()


def test_cudnns_attention_is_not_chosen_in_a_mechanism_of_the_users_own(tmp_path, places, own):
    seen = []
    for folder, config in (
        ("shipped", tiny_study.base),
        ("own", own(Sometimes)),
        ("again", replace(tiny_study.base, seed=2)),
    ):
        list(run(config, tmp_path / folder, places))
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
    assert seen == [True, False, True]


def test_a_resumed_run_computes_with_the_threads_of_its_checkpoint(tmp_path, places, whole_run):
    torch.set_num_threads(3)
    try:
        cut = run(tiny_study.base, tmp_path, places)
        assert [next(cut).step for _ in range(3)] == [0, 3, 6]
        cut.close()
    finally:
        torch.set_num_threads(1)
    seen = [torch.get_num_threads() for _ in run(tiny_study.base, tmp_path, places)]
    assert {*seen} == {3}
    assert torch.get_num_threads() == 1
    environment = RunFolder(tmp_path, "mha", 0).environment()
    assert environment["device"]["threads"] == 3


@pytest.mark.parametrize("doubled", [True, False])
def test_metrics_of_doubled_and_damaged_runs_hold_each_step_once(
    tmp_path, places, whole_run, doubled
):
    cut = run(tiny_study.base, tmp_path, places)
    for _ in range(4):
        next(cut)
    cut.close()
    path = RunFolder(tmp_path, "mha", 0).partial / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, *lines] if doubled else lines[1:]))
    first, *_ = run(tiny_study.base, tmp_path, places)
    assert first.step == (8 if doubled else 0)
    assert doubled or "step-000008: metrics.jsonl lacks step 3" in first.note
    whole, resumed = whole_run("mha"), RunFolder(tmp_path, "mha", 0)
    assert timeless(resumed.metrics()) == timeless(whole.metrics())


def test_metrics_are_on_disk_before_the_checkpoint_that_relies_on_them(
    tmp_path, places, monkeypatch
):
    order, write, save = [], RunFolder.write_metrics, checkpoint.save

    def write_metrics(folder, lines):
        lines = list(lines)
        order.append([line["step"] for line in lines])
        write(folder, lines)

    monkeypatch.setattr(RunFolder, "write_metrics", write_metrics)
    monkeypatch.setattr(checkpoint, "save", lambda *args: (order.append("saved"), save(*args)))
    list(run(tiny_study.base, tmp_path, places))
    at = order.index("saved")
    assert order[at - 1] == [3]
    assert order[-2:] == ["saved", [3, 6, 9, 12]]


def test_libraries_are_loaded_before_memory_and_time_are_measured(tmp_path, places, monkeypatch):
    steps_before = []
    advance = TrainingStep.advance
    monkeypatch.setattr(
        TrainingStep,
        "advance",
        lambda step: (steps_before.append(len(step.starts_SB[0])), advance(step)),
    )
    measured = execution.PeakMemory
    monkeypatch.setattr(
        execution,
        "PeakMemory",
        lambda device: (steps_before.append("peak"), measured(device))[1],
    )
    config = with_train(tiny_study.base, steps=13)  # no other test has trained this
    list(run(config, tmp_path, places))
    assert steps_before[:3] == [1, "peak", 2]  # a step of one sequence, then those of the run


def test_a_loss_that_is_not_finite_ends_the_run_and_says_when(tmp_path, places):
    config = with_train(tiny_study.base, learning_rate=1e30, clip_norm=1e30)
    ended = list(run(config, tmp_path, places))[-1]
    assert ended.status == "diverged"
    folder = RunFolder(tmp_path, "mha", 0)
    assert folder.status() == "diverged"
    assert folder.summary()["reason"].startswith(("train loss is nan", "gradient norm is"))
    assert "at step" in folder.summary()["reason"]


def test_an_exception_is_recorded_and_the_run_can_be_tried_again(tmp_path, places, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("no luck today")

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "advance", broken)
        ended = list(run(tiny_study.base, tmp_path, places))[-1]
    assert ended == Ended("failed", "RuntimeError: no luck today", None)
    assert RunFolder(tmp_path, "mha", 0).status() == "failed"
    assert list(run(tiny_study.base, tmp_path, places))[-1].status == "finished"


@pytest.mark.parametrize(
    ("steps", "periods"),
    [(1, (1, 1)), (50, (5, 2)), (300, (30, 15)), (1000, (100, 50)), (9999, (100, 50))],
)
def test_a_short_run_has_ten_evaluations_unless_its_settings_say_otherwise(steps, periods):
    config = TrainConfig(steps=steps, warmup_steps=0)
    assert (config.eval_period, config.log_period) == periods
    assert len([n for n in measured_steps(config, steps) if n % config.eval_period == 0]) >= min(
        steps, 10
    )
    longer = config.extended(2 * steps, "constant")  # the record of the first part stays
    assert (longer.eval_period, longer.log_period) == periods
    assert replace(config, eval_every=7).eval_period == 7


def test_the_record_has_every_measurement(whole_run):
    folder = whole_run("mha")
    summary = folder.summary()
    lines = folder.metrics()
    assert [line["step"] for line in lines if "train_loss" in line] == [3, 6, 9, 12]
    assert [line["step"] for line in lines if "eval_loss" in line] == [6, 12]
    assert summary["final_loss"] == lines[-1]["eval_loss"]
    assert summary["best_loss"] == min(line["eval_loss"] for line in lines if "eval_loss" in line)
    assert summary["test_loss"] > 0
    assert summary["final_perplexity"] == pytest.approx(math.exp(summary["final_loss"]))
    assert summary["final_bits_per_byte"] == pytest.approx(summary["final_loss"] / math.log(2))
    for split in ("final", "test"):
        by_position = summary[f"{split}_loss_by_position"]
        assert by_position["first"] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28]
        assert len(by_position["loss"]) == 16
        recalled = summary[f"{split}_recall_fraction"]
        parts = (summary[f"{split}_recall_loss"], summary[f"{split}_other_loss"])
        assert 0 < recalled < 1
        assert recalled * parts[0] + (1 - recalled) * parts[1] == pytest.approx(
            summary[f"{split}_loss"]
        )
    assert summary["alarms"] == []
    assert summary["tokens"] == 12 * 2 * 32
    assert 0 < summary["step_time"] < summary["train_time"] < summary["total_time"]
    lower, upper = summary["step_time_quartiles"]
    assert lower <= summary["step_time"] <= upper
    assert summary["tokens_per_second"] == pytest.approx(2 * 32 / summary["step_time"])
    assert summary["parameters"]["total"] == sum(w.numel() for w in weights(folder).values())
    assert summary["kernels"] == ["blocked"]
    environment = folder.environment()
    assert {"packages", "device", "data", "kernels", "started"} <= environment.keys()
    json.dumps(environment, allow_nan=False)


def test_training_learns(tmp_path, places):
    config = with_train(tiny_study.base, steps=60, warmup_steps=5, eval_every=60, log_every=10)
    list(run(config, tmp_path, places))
    losses = [m["train_loss"] for m in RunFolder(tmp_path, "mha", 0).metrics() if "train_loss" in m]
    assert losses[0] > 4.5
    assert losses[-1] < losses[0] - 1.5


def test_norms_and_biases_do_not_decay():
    tokens = torch.zeros(5000).int()
    step = a_step(tiny_study.base, tokens)
    decay = {id(p): g["weight_decay"] for g in step.optimizer.param_groups for p in g["params"]}
    for name, parameter in step.model.named_parameters():
        assert decay[id(parameter)] == (0.01 if parameter.ndim >= 2 else 0.0), name


@pytest.mark.parametrize("shape", [(32, 32), (48, 16), (16, 48), (3, 24, 16)])
def test_an_update_of_muon_is_nearly_orthogonal_and_as_large_as_adamws(shape):
    update = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-4
    step = orthogonal_step(update, 5, torch.float32) / (0.2 * max(shape[-2:]) ** 0.5)
    values = torch.linalg.svdvals(step)
    assert 0.6 < values.min() <= values.max() < 1.3
    same_sides = update.flatten() @ step.flatten() / (update.norm() * step.norm())
    assert same_sides > 0.8
    rms = (0.2 * max(shape[-2:]) ** 0.5 * step).square().mean().sqrt()
    assert rms == pytest.approx(0.2, rel=0.2)


def test_every_parameter_is_in_one_group_and_muons_are_the_matrices_of_the_blocks():
    mechanisms = GatedDeltaNet(n_heads=2, head_dim=16), GroupedQuery(n_heads=2, n_kv_heads=1)
    experts = MixtureOfExperts(n_experts=2, d_ff=8, n_shared_experts=1)
    config = with_train(tiny_study.base.with_mechanisms(*mechanisms), optimizer="muon")
    settings = replace(config.with_feedforward(experts).model, untied_embeddings=True)
    model = settings.build(256)
    groups = optimizer_of(config.train, model, dict(model.named_parameters()), CPU).param_groups
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert sorted(map(id, grouped)) == sorted(id(p) for p in model.parameters())
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        hidden = any(parameter is p for p in groups[-1]["params"])
        matrix = name.startswith("blocks") and parameter.ndim > 1 and "conv" not in name
        assert hidden == matrix, name
        assert decay[id(parameter)] == (0.01 if parameter.ndim > 1 else 0), name


@pytest.mark.parametrize("optimizer", ["muon", Muon(ns_steps=2), "adamw"])
def test_the_flops_of_a_run_have_the_matrix_products_of_the_optimizer(optimizer):
    mechanisms = GatedDeltaNet(n_heads=2, head_dim=16), GroupedQuery(n_heads=2, n_kv_heads=1)
    experts = MixtureOfExperts(n_experts=2, d_ff=8, n_shared_experts=1)
    config = with_train(tiny_study.base.with_mechanisms(*mechanisms), optimizer=optimizer)
    config = config.with_feedforward(experts)
    model = config.model.build(256)
    step = optimizer_of(config.train, model, dict(model.named_parameters()), CPU)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with flop_counter() as counter:
        step.step()
    counted = counter.get_total_flops()
    assert (counted > 0) == (optimizer != "adamw")
    tokens = config.train.batch_size * config.train.seq_len
    of_model = 3 * config.forward_flops(256) * tokens
    assert config.petaflops(256) == pytest.approx(
        config.train.steps * (of_model + counted) / 1e15, rel=1e-12
    )


def test_muon_takes_the_steps_of_torchs_and_adamw_those_of_the_others(whole_run):
    config = with_train(tiny_study.base, optimizer=Muon(momentum=0.9), precision="bfloat16")
    model = config.model.build(256)
    theirs = nn.Parameter(model.blocks[0].mix.q_proj.weight.detach().clone())
    ours = optimizer_of(config.train, model, dict(model.named_parameters()), CPU)
    set_learning_rate(ours, torch.tensor(1e-2))
    reference = torch.optim.Muon(
        [theirs], lr=1e-2, weight_decay=0.01, momentum=0.9, adjust_lr_fn="match_rms_adamw"
    )
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        theirs.grad = model.blocks[0].mix.q_proj.weight.grad.clone()
        ours.step()
        reference.step()
    before = config.model.build(256).blocks[0].mix.q_proj.weight
    torch.testing.assert_close(model.blocks[0].mix.q_proj.weight, theirs, atol=6e-4, rtol=0)
    assert (theirs - before).abs().mean() > 3e-3
    assert ours.state[model.blocks[0].mix.q_proj.weight].keys() == {"momentum"}
    assert ours.state[model.embed.weight].keys() == {"step", "exp_avg", "exp_avg_sq"}
    first, *_, last = (line["train_loss"] for line in whole_run("muon").metrics())
    assert last < first - 0.5


def test_the_reference_update_is_adamw_with_clipping():
    config = replace(tiny_study.base, model=replace(tiny_study.base.model, dropout=0.0))
    tokens = torch.randint(256, (5000,), generator=torch.Generator().manual_seed(0)).int()
    step = a_step(config, tokens)
    model = config.model.build(256, 0)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.01},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    starts = window_starts(5000, seq_len=32, batch_size=2, steps=12, seed=0)
    for number in range(3):
        step.advance()
        rate = step.learning_rate(number)
        for group in reference.param_groups:
            group["lr"] = rate
        batch = torch.stack([tokens[s : s + 33] for s in starts[number]]).long()
        reference.zero_grad()
        model.losses(batch).language_model.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        reference.step()
    for ours, theirs in zip(step.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_a_step_does_not_depend_on_how_a_gradient_lies_in_memory(dtype):
    """torch's fused kernel of a CPU ignores strides, and knows no complex numbers."""
    gradient = torch.randn(4, 3, dtype=dtype, generator=torch.Generator().manual_seed(0)).T
    plain, strided = (torch.nn.Parameter(torch.ones(3, 4, dtype=dtype)) for _ in range(2))
    plain.grad, strided.grad = gradient.contiguous(), gradient
    for parameter in (plain, strided):
        options = {"weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}
        optimizer = adamw([parameter], device=torch.device("cpu"), **options)
        set_learning_rate(optimizer, torch.tensor(0.1))
        optimizer.step()
    assert torch.equal(plain, strided)
    assert (plain != 1).all()


@pytest.mark.parametrize("kind", ["mha", "mla", "gqa_2", "sliding_512"])
def test_no_score_or_mask_of_t_by_t_is_made_in_training(kind):
    from torch.utils._python_dispatch import TorchDispatchMode

    from attnlab.study.targets import load_study

    tokens = 1024
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            nonlocal largest
            result = function(*arguments, **(keywords or {}))
            for tensor in result if isinstance(result, tuple | list) else [result]:
                if isinstance(tensor, torch.Tensor) and list(tensor.shape[-2:]) == [tokens] * 2:
                    largest = max(largest, tensor.numel())
            return result

    config = load_study("mechanisms").variants[kind].model.mechanisms[0]
    mechanism = config.build(128, dropout=0.1).train()
    with Watch():
        mechanism(torch.randn(1, tokens, 128)).sum().backward()
    assert largest == 0


def test_compiling_is_decided_by_the_arithmetic_of_the_run():
    auto = TrainConfig()
    assert not auto.compiles_on("cuda", 0.1)
    assert auto.compiles_on("cuda", 100.0)
    assert not auto.compiles_on("cpu", 100.0)
    assert replace(auto, compile="on").compiles_on("cpu", 0.1)
    assert not replace(auto, compile="off").compiles_on("cuda", 100.0)


def test_the_schedule_warms_up_and_ends_at_a_tenth():
    tokens = torch.zeros(5000).int()
    config = with_train(tiny_study.base, steps=100, warmup_steps=10)
    rates = a_step(config, tokens).rates_S.numpy()
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10 * 1e-2, rtol=1e-6)
    assert rates[-1] == pytest.approx(1e-3)
    assert (np.diff(rates[9:]) < 0).all()
