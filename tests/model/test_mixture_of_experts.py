"""A mixture of experts sends each token where its router says, drops none, and counts its load."""

import json
import math
from dataclasses import replace

import pytest
import torch
from support import tiny_study
from torch.nn.functional import linear, one_hot, silu
from torch.utils.flop_counter import FlopCounterMode

from attnlab.config import ConfigError
from attnlab.data import Places
from attnlab.data.batches import window_starts
from attnlab.inference.decoder import Decoder
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.model.language_model import ModelConfig
from attnlab.model.mixture_of_experts import MixtureOfExperts
from attnlab.model.routing import combine, dispatch, route
from attnlab.record import RunFolder
from attnlab.runner.events import Progress
from attnlab.runner.execute import execute
from attnlab.training import checkpoint
from attnlab.training.run import Run
from attnlab.training.step import TrainingStep

D_MODEL, D_FF, TOKENS = 16, 24, 37
SETTINGS = [
    {},
    {"top_k": 1},
    {"experts": "swiglu"},
    {"n_shared_experts": 2},
    {"experts": "swiglu", "n_shared_experts": 1, "n_experts": 5, "top_k": 3},
]


def layer_of(dtype=torch.float64, device="cpu", **settings):
    layer = MixtureOfExperts(d_ff=D_FF, **settings).build(D_MODEL)
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.data.normal_(std=0.4, generator=generator)
    return layer.to(device, dtype)


def tokens_like(layer, *shape):
    weight = layer.router.weight
    x = torch.randn(*shape, D_MODEL, generator=torch.Generator().manual_seed(1))
    return x.to(weight.device, weight.dtype).requires_grad_()


def reference(layer, x_ND):
    """Every token through every expert; those that were not chosen weigh nothing."""
    config = layer.config
    p_NE = (x_ND @ layer.router.weight.mT).softmax(-1)
    chosen_NK = (p_NE + layer.bias_E).topk(config.top_k).indices
    weight_NE = p_NE * one_hot(chosen_NK, config.n_experts).sum(1)
    if config.top_k > 1:
        weight_NE = weight_NE / weight_NE.sum(-1, keepdim=True)
    y_ND = torch.zeros_like(x_ND) if layer.shared is None else layer.shared(x_ND)
    for expert in range(config.n_experts):
        up_NF = x_ND @ layer.up_proj[expert].mT
        if config.experts == "swiglu":
            hidden_NF = silu(x_ND @ layer.gate_proj[expert].mT) * up_NF
        else:
            hidden_NF = silu(up_NF)
        y_ND = y_ND + weight_NE[:, expert, None] * (hidden_NF @ layer.down_proj[expert].mT)
    share_E = one_hot(chosen_NK, config.n_experts).double().mean((0, 1))
    return y_ND, config.n_experts * (share_E * p_NE.mean(0)).sum()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_it_is_the_weighted_sum_of_the_chosen_experts(settings, biased):
    layer = layer_of(**settings)
    if biased:  # so much that expert 2 is always chosen
        layer.bias_E[2] = 1.0
    x_ND = tokens_like(layer, TOKENS)
    y_ND, loss = layer.forward_with_loss(x_ND)
    expected_ND, balance = reference(layer, x_ND)
    torch.testing.assert_close(y_ND, expected_ND)
    torch.testing.assert_close(loss, 0.01 * balance)

    slope_ND = torch.linspace(-1, 1, y_ND.numel()).view_as(y_ND)
    into = [x_ND, *layer.parameters()]
    ours = torch.autograd.grad((y_ND * slope_ND).sum() + loss, into)
    theirs = torch.autograd.grad((expected_ND * slope_ND).sum() + 0.01 * balance, into)
    for name, a, b in zip(["x", *dict(layer.named_parameters())], ours, theirs, strict=True):
        torch.testing.assert_close(a, b, msg=lambda message, name=name: f"{name}: {message}")


@pytest.mark.parametrize("kernel", ["plain", "blocked"])
def test_kernels_agree_and_name_themselves(kernel):
    auto = layer_of(torch.float32)
    named = layer_of(torch.float32, kernel=kernel)
    x_ND = tokens_like(auto, TOKENS)
    torch.testing.assert_close(named(x_ND), auto(x_ND))
    cpu = torch.device("cpu")
    assert auto.kernel_on(cpu, torch.float32) == "experts grouped"
    assert named.kernel_on(cpu, torch.float32) == f"experts {kernel}"


def test_no_token_is_dropped_however_uneven_the_load():
    layer = layer_of(top_k=1)
    layer.router.weight.data[1:] = 0.0
    layer.router.weight.data[0] = 5.0
    x_ND = tokens_like(layer, TOKENS).detach().abs()  # all of them to expert 0
    torch.testing.assert_close(layer.train().forward_with_loss(x_ND)[0], reference(layer, x_ND)[0])
    assert layer.drain_statistics()["load"] == [1.0, *[0.0] * 7]


def test_a_sequence_and_its_tokens_one_by_one_are_the_same():
    layer = layer_of()
    x_BTD = tokens_like(layer, 3, 7)
    together = layer(x_BTD)
    for t in range(7):
        torch.testing.assert_close(layer(x_BTD[:, t]), together[:, t])


def test_rows_are_sorted_by_expert_and_come_back_to_their_tokens():
    logits_NE = torch.randn(TOKENS, 8, generator=torch.Generator().manual_seed(2))
    routing = route(logits_NE, torch.zeros(8), 3)
    chosen_NK = logits_NE.topk(3).indices
    expert_M = torch.empty(3 * TOKENS, dtype=torch.int64)
    expert_M[routing.row_NK] = chosen_NK
    assert torch.equal(expert_M, chosen_NK.flatten().sort(stable=True).values)
    assert torch.equal(routing.ends_E, torch.bincount(expert_M, minlength=8).cumsum(0).int())
    assert torch.equal(routing.token_M[routing.row_NK], torch.arange(TOKENS)[:, None].expand(-1, 3))
    torch.testing.assert_close(routing.weight_NK.sum(-1), torch.ones(TOKENS))


def test_the_two_maps_have_the_gradients_of_their_definitions():
    generator = torch.Generator().manual_seed(3)
    logits_NE = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    routing = route(logits_NE, torch.zeros(4), 2)
    x_ND = torch.randn(6, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    y_MD = torch.randn(12, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    weight_NK = routing.weight_NK.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: dispatch(x, routing), x_ND)
    assert torch.autograd.gradcheck(
        lambda y, w: combine(y, routing._replace(weight_NK=w)), (y_MD, weight_NK)
    )


def test_of_equal_scores_the_lower_expert_is_chosen():
    routing = route(torch.zeros(3, 4), torch.zeros(4), 2)
    assert routing.ends_E.tolist() == [3, 6, 6, 6]
    assert routing.balance.item() == pytest.approx(1.0)


def test_the_balance_loss_is_one_where_the_load_is_even_and_more_where_it_is_not():
    even = route(10.0 * torch.eye(4).repeat(5, 1), torch.zeros(4), 1)
    assert even.balance.item() == pytest.approx(1.0)
    assert route(torch.tensor([[9.0, 0, 0, 0]] * 5), torch.zeros(4), 1).balance.item() > 3.9


def test_the_bias_moves_load_from_the_busy_to_the_idle_without_a_gradient():
    layer = layer_of(balance_loss=0.0, bias_rate=0.01).train()
    x_ND = tokens_like(layer, 400) + 0.7  # tokens alike, which prefer the same experts
    loads = []
    for _ in range(60):
        before_E = layer.bias_E.clone()
        y_ND, loss = layer.forward_with_loss(x_ND)
        load_E = torch.tensor(layer.drain_statistics()["load"], dtype=torch.float64)
        loads.append(load_E)
        torch.testing.assert_close(layer.bias_E - before_E, 0.01 * torch.sign(1 / 8 - load_E))
    assert loss is None
    assert loads[-1].max() < 0.16 < 0.3 < loads[0].max()
    assert not layer.bias_E.requires_grad
    before_E = layer.bias_E.clone()
    layer.eval()(x_ND)
    assert torch.equal(layer.bias_E, before_E)
    y_ND.sum().backward()


def test_statistics_are_of_the_training_since_they_were_last_taken():
    layer = layer_of().train()
    x_ND = tokens_like(layer, TOKENS)
    layer.eval()(x_ND)
    assert layer.drain_statistics() == {"load": [0.0] * 8, "entropy": 0.0, "dropped": 0.0}
    for _ in range(2):
        layer.train().forward_with_loss(x_ND)
    found = layer.drain_statistics()
    logits_NE = linear(x_ND, layer.router.weight)
    chosen = logits_NE.topk(2).indices.flatten()
    torch.testing.assert_close(
        torch.tensor(found["load"]), torch.bincount(chosen, minlength=8).float() / len(chosen)
    )
    entropy = torch.distributions.Categorical(logits=logits_NE).entropy().mean().item()
    assert found["entropy"] == pytest.approx(entropy)
    assert 0 < entropy < math.log(8)
    assert found["dropped"] == 0.0
    json.dumps(found, allow_nan=False)


def grouped_mm_flops(a_shape, b_shape, *_, **__):
    return 2 * a_shape[0] * a_shape[1] * b_shape[-1]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_token_costs_its_active_parameters(settings):
    config = MixtureOfExperts(d_ff=D_FF, **settings)
    layer, stated = config.build(D_MODEL), config.cost(D_MODEL)
    assert stated.params == sum(p.numel() for p in layer.parameters())
    counter = FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten._grouped_mm: grouped_mm_flops}
    )
    with counter, torch.no_grad():
        layer(torch.randn(1, D_MODEL))
    assert stated.flops == counter.get_total_flops() == 2 * config.active_params(D_MODEL)


def test_a_model_counts_idle_experts_in_its_size_but_not_in_its_work():
    config = ModelConfig(mechanisms=(GroupedQuery(),), feedforward=MixtureOfExperts(d_ff=64))
    parts = config.parts(1000)
    model = config.build(1000)
    assert parts.total == sum(p.numel() for p in model.parameters())
    assert parts.total - parts.active == 4 * 6 * 2 * 64 * 128  # layers, idle experts, matrices
    wider = replace(config, feedforward=MixtureOfExperts(d_ff=64, n_experts=16))
    more_routing = 2 * 4 * 8 * 128
    assert wider.cost(1000, 9).flops - config.cost(1000, 9).flops == more_routing


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": 9}, "top_k: must be at most n_experts 8, got 9"),
        ({"n_experts": 0}, "n_experts: must be at least 1, got 0"),
        ({"balance_loss": -0.1}, "balance_loss: must not be negative"),
        ({"bias_rate": -0.1}, "bias_rate: must not be negative"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        MixtureOfExperts(**settings)


def model_of(device="cpu", **settings):
    mixture = MixtureOfExperts(n_experts=4, d_ff=32, bias_rate=0.01, **settings)
    config = ModelConfig(
        mechanisms=(GroupedQuery(n_heads=2, n_kv_heads=1),),
        n_layers=2,
        d_model=32,
        feedforward=mixture,
    )
    return config.build(50).to(device)


def test_a_model_with_experts_decodes_what_it_reads():
    model = model_of().eval()
    tokens_BT = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))
    expected = model.logits(tokens_BT)
    with torch.inference_mode():
        _, states = model.prefill(tokens_BT[:, :4], 9)
        decoder = Decoder(model, states)
        for t in range(4, 9):
            torch.testing.assert_close(decoder.step(tokens_BT[:, t]), expected[:, t])


def test_the_models_auxiliary_loss_and_statistics_are_those_of_its_layers():
    model = model_of().train()
    losses = model.losses(torch.randint(50, (2, 17)))
    found = model.drain_statistics()
    assert losses.auxiliary.item() == pytest.approx(0.02, rel=0.2)  # two layers, nearly even
    assert {name: len(per_layer) for name, per_layer in found.items()} == {
        "router_load": 2,
        "router_entropy": 2,
        "router_dropped": 2,
    }
    assert model.kernels_on(torch.device("cpu"), torch.float32) == ["experts grouped", "sdpa"]


def test_under_autocast_experts_compute_in_bfloat16_and_the_router_does_not():
    model, tokens_BT1 = model_of().train(), torch.arange(34).view(2, 17)
    exact = model.losses(tokens_BT1).language_model
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.losses(tokens_BT1)
        layer = next(model.layers()).feedforward
        assert layer._route(torch.randn(3, 32).bfloat16()).weight_NK.dtype == torch.float32
        assert layer(torch.randn(3, 32).bfloat16()).dtype == torch.bfloat16
    (losses.language_model + losses.auxiliary).backward()
    torch.testing.assert_close(losses.language_model, exact, rtol=5e-3, atol=0)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32, name


def tiny(**settings):
    model = replace(
        tiny_study.base.model,
        feedforward=MixtureOfExperts(n_experts=4, d_ff=16, bias_rate=0.01, **settings),
    )
    return replace(tiny_study.base, model=model)


def test_a_run_that_was_cut_off_goes_on_to_the_same_bits(tmp_path):
    places, config = Places(None, tmp_path / "cache"), tiny()

    def run(name):
        where = tmp_path / name
        return execute(Run(variant="moe", config=config), where, "same", places, CPU)

    list(run("whole"))
    cut = run("cut")
    for _ in range(4):
        assert isinstance(next(cut), Progress)
    cut.close()
    list(run("cut"))
    folders = [RunFolder(tmp_path / name, "moe", 0) for name in ("whole", "cut")]
    found = (checkpoint.load_newest(f.checkpoints, "same") for f in folders)
    whole, resumed = (end.checkpoint.model for end in found)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert whole["blocks.0.feedforward.bias_E"].any()
    names = ("auxiliary_loss", "router_load", "router_entropy", "router_dropped")
    first, second = ([[m.get(n) for n in names] for m in f.metrics()] for f in folders)
    assert first == second
    loss, load, entropy, dropped = first[0]
    assert loss > 0
    assert [sum(layer) for layer in load] == pytest.approx([1.0, 1.0])
    assert all(0 < layer < math.log(4) for layer in entropy)
    assert dropped == [0.0, 0.0]
    summary = folders[0].summary()
    assert summary["kernels"] == ["blocked", "experts grouped"]
    idle = 2 * 2 * 2 * 16 * tiny().model.d_model  # layers, idle experts, matrices
    assert summary["parameters"]["total"] - summary["parameters"]["active"] == idle


CPU = torch.device("cpu")
STEPS = 10


def trained(device, **train):
    config = tiny()
    train_config = replace(
        config.train, steps=STEPS, seq_len=64, batch_size=4, warmup_steps=2, **train
    )
    model_config = replace(
        config.model, d_model=128, dropout=0.0, feedforward=MixtureOfExperts(bias_rate=0.01)
    )
    tokens = (torch.arange(20_000) % 97).int().to(device)
    starts = window_starts(20_000, seq_len=64, batch_size=4, steps=STEPS, seed=0)
    model = model_config.build(256).to(device).train()
    compiled = train_config.compile == "on"
    step = TrainingStep(train_config, model, tokens, starts, seed=0, compiled=compiled)
    while step.step < STEPS:
        step.advance()
    return step


@pytest.mark.gpu
@pytest.mark.parametrize(
    "how",
    # compiled, the embedding's gradient is added by atomics: one bit in bfloat16 may route anew
    [{}, {"precision": "float32"}, {"precision": "float32", "compile": "on"}],
    ids=str,
)
def test_a_recorded_step_routes_anew_each_time(how):
    recorded, eager = trained("cuda", **how), trained("cuda", **how, cuda_graph="off")
    assert recorded._graph is not None
    torch.testing.assert_close(
        recorded.measured_SC[:, 0], eager.measured_SC[:, 0], rtol=2e-2, atol=0
    )
    assert recorded.measured_SC[-1, 0] < recorded.measured_SC[0, 0]
    for block in recorded.model.layers():
        assert block.feedforward.tokens.item() == STEPS * 4 * 64
        assert block.feedforward.bias_E.any()
    for layer in recorded.model.drain_statistics()["router_load"]:
        assert sum(layer) == pytest.approx(1.0)


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["grouped", "blocked"])
def test_on_cuda_the_same_input_gives_the_same_bits(kernel):
    def once():
        layer = layer_of(torch.bfloat16, "cuda", kernel=kernel)
        x_ND = tokens_like(layer, 3000)
        y_ND, loss = layer.forward_with_loss(x_ND)
        slope_ND = torch.linspace(-1, 1, y_ND.numel(), device="cuda").view_as(y_ND)
        into = [x_ND, *layer.parameters()]
        return y_ND, *torch.autograd.grad((y_ND * slope_ND).sum() + loss, into)

    assert all(map(torch.equal, once(), once()))


@pytest.mark.gpu
@pytest.mark.parametrize("experts", ["silu", "swiglu"])
def test_on_cuda_the_fused_layer_is_the_reference(experts):
    layer = layer_of(torch.float32, "cuda", experts=experts)
    x_ND = tokens_like(layer, 500)
    y_ND, loss = layer.forward_with_loss(x_ND)
    expected_ND, balance = reference(layer, x_ND)
    torch.testing.assert_close(y_ND, expected_ND, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss.double(), 0.01 * balance.double(), rtol=1e-5, atol=0)
    into = [x_ND, *layer.parameters()]
    ours = torch.autograd.grad(y_ND.square().sum() + loss, into)
    theirs = torch.autograd.grad(expected_ND.square().sum() + 0.01 * balance, into)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * b.abs().max().item())
