"""The model is the same for all mechanisms: sizes, costs, first weights, feed-forward layers."""

import math
from dataclasses import replace

import pytest
import torch
from support import tiny_study
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, silu
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import attnlab.mechanisms  # noqa: F401  registers the kinds
from attnlab.config import ConfigError, drop_unset
from attnlab.kernels.norms import rms_norm
from attnlab.mechanism import MechanismConfig
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.identity import Identity, TokenwiseLinear
from attnlab.mechanisms.sliding_window import SlidingWindow
from attnlab.model.feedforward import (
    Dense,
    FeedForward,
    NoFeedForward,
    SwiGLU,
)
from attnlab.model.initialization import stream
from attnlab.model.language_model import ModelConfig
from attnlab.model.mixture_of_experts import MixtureOfExperts
from attnlab.training.quality import predict

VOCAB = 97
WITH_WIDTH = sorted(set(FeedForward.kinds) - {NoFeedForward.kind()})


def tiny(*mechanisms: MechanismConfig, **fields: object) -> ModelConfig:
    settings = {"n_layers": 2, "d_model": 32, "feedforward": Dense(d_ff=48), **fields}
    return ModelConfig(mechanisms=mechanisms or (GroupedQuery(),), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", sorted(MechanismConfig.kinds))
@pytest.mark.parametrize(
    "feedforward", [Dense(d_ff=48), SwiGLU(d_ff=40), MixtureOfExperts(d_ff=16, n_shared_experts=1)]
)
def test_parameters_by_part_add_up_to_the_models(kind, feedforward):
    config = tiny(MechanismConfig.kinds[kind](), feedforward=feedforward)
    model = config.build(VOCAB)
    parts = config.parts(VOCAB)
    assert parts.total == sum(p.numel() for p in model.parameters())
    assert parts.embedding == model.embed.weight.numel()
    assert parts.attention == sum(p.numel() for m in model.mechanisms() for p in m.parameters())


class Passes(TorchDispatchMode):
    """Counts the operations that read or write a tensor of this many elements."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements, self.count = elements, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # pyright: ignore
        out = func(*args, **(kwargs or {}))
        sizes = [each.numel() for each in (*args, out) if isinstance(each, torch.Tensor)]
        self.count += self.elements in sizes and not func.is_view
        return out


@pytest.mark.parametrize("weighted", [True, False])
def test_the_norm_on_a_cpu_equals_torchs_in_at_most_seven_passes_backward(weighted):
    generator = torch.Generator().manual_seed(0)
    x, weight, grad = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((4, 8, 16), (16,), (4, 8, 16))
    )
    inputs = [each.requires_grad_() for each in ([x, weight] if weighted else [x])]
    weight_D = weight if weighted else None
    own, of_torch = rms_norm(x, weight_D, 1e-2), nn.functional.rms_norm(x, (16,), weight_D, 1e-2)
    assert torch.equal(own, of_torch)
    with Passes(x.numel()) as passes:
        gradients = torch.autograd.grad(own, inputs, grad)
    assert passes.count <= 7
    expected = torch.autograd.grad(of_torch, inputs, grad)
    torch.testing.assert_close(gradients, expected, rtol=1e-12, atol=1e-12)


def test_two_variants_share_their_initial_weights_bit_for_bit():
    first = dict(tiny(GroupedQuery(n_kv_heads=4)).build(VOCAB, seed=3).named_parameters())
    second = dict(tiny(GroupedQuery(n_kv_heads=1)).build(VOCAB, seed=3).named_parameters())
    hybrid = tiny(GroupedQuery(), SlidingWindow(window=4)).build(VOCAB, seed=3)
    third = dict(hybrid.named_parameters())
    for other, shared_mix in ((second, ("q_proj", "o_proj")), (third, ("q_proj", "k_proj"))):
        shared = [n for n in first if n in other and first[n].shape == other[n].shape]
        assert {"embed.weight", "norm.weight", "blocks.1.feedforward.up_proj.weight"} < {*shared}
        assert {f"blocks.0.mix.{name}.weight" for name in shared_mix} < {*shared}
        assert all(torch.equal(first[name], other[name]) for name in shared)
    other_seed = dict(tiny().build(VOCAB, seed=4).named_parameters())
    assert not torch.equal(first["embed.weight"], other_seed["embed.weight"])


def test_initial_weights_are_normal_with_deviation_0_02():
    model = tiny(d_model=128).build(1000)
    assert model.embed.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.norm.weight.eq(1).all()


def test_an_untied_head_has_values_of_its_own_and_changes_no_other_part():
    tied, untied = tiny(), tiny(untied_embeddings=True)
    model, same = untied.build(VOCAB, seed=3), tied.build(VOCAB, seed=3)
    own = dict(model.named_parameters())
    assert set(own) - set(dict(same.named_parameters())) == {"head.weight"}
    assert all(torch.equal(own[name], of) for name, of in same.named_parameters())
    assert own["head.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert not torch.equal(own["head.weight"], own["embed.weight"])
    parts, shared = untied.parts(VOCAB), tied.parts(VOCAB)
    assert parts == shared._replace(head=own["head.weight"].numel())
    assert parts.total == parts.active == sum(p.numel() for p in own.values())
    assert untied.forward_flops(VOCAB, 9) == tied.forward_flops(VOCAB, 9)
    tokens = torch.arange(20).reshape(2, 10)
    logits_BTV = model.eval().logits(tokens)
    torch.testing.assert_close(logits_BTV, model.features(tokens) @ own["head.weight"].T)
    first, states = model.prefill(tokens[:, :9], 10)
    last, _ = model.step(tokens[:, 9], states)
    torch.testing.assert_close(torch.stack([first, last], 1), logits_BTV[:, -2:])
    expected = cross_entropy(logits_BTV[:, :-1].mT, tokens[:, 1:])
    torch.testing.assert_close(model.losses(tokens).language_model, expected)
    nats, _ = predict(model, model.features(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(nats.mean(), expected)


def test_a_recorded_model_without_the_field_is_tied_and_has_the_same_identity():
    run = tiny_study.base
    recorded = run.to_dict()
    del recorded["model"]["untied_embeddings"]
    assert type(run).from_dict(recorded) == run
    assert "untied_embeddings" not in drop_unset(run.model.identity_fields())
    untied = replace(run, model=replace(run.model, untied_embeddings=True))
    assert untied.identity("data") != run.identity("data")


def test_building_a_model_leaves_the_global_random_stream_of_initial_weights_unused():
    torch.manual_seed(0)
    first = tiny().build(VOCAB, seed=1).embed.weight
    torch.manual_seed(1)
    assert torch.equal(first, tiny().build(VOCAB, seed=1).embed.weight)


class Own(TokenwiseLinear):
    """Begins with values of many kinds; `extra` adds a draw before all others."""

    extra = False

    def __init__(self):
        super().__init__(8)
        if self.extra:
            self.first = nn.Parameter(torch.randn(8))
            self.gate_proj = nn.Linear(8, 8)
        self.left_alone = nn.Linear(8, 8)
        self.zero_proj = nn.Linear(8, 8, bias=False)
        nn.init.zeros_(self.zero_proj.weight)
        self.scaled_proj = nn.Linear(8, 8, bias=False)
        self.scaled_proj.weight.data *= 0.5
        self.conv = nn.Conv1d(8, 8, 4, groups=8)
        self.gain = nn.Parameter(torch.full((8,), 0.01))
        self.A_log = nn.Parameter(torch.empty(8).uniform_(1, 16).log())
        self.halves = nn.Parameter(torch.cat([torch.randn(4), torch.randn(4)]))
        self.frozen = nn.Parameter(torch.arange(8.0), requires_grad=False)
        self.unset_DD = nn.Parameter(torch.empty(8, 8))
        self.norm = nn.LayerNorm(8)
        self.register_buffer("table", nn.init.orthogonal_(torch.empty(8, 8)))
        self.register_buffer("unit", torch.polar(torch.ones(4), torch.rand(4)), persistent=False)


class OwnWithMore(Own):
    extra = True


def begun(monkeypatch, module, seed=3):
    monkeypatch.setattr(Identity, "build", lambda *_: module())
    model = ModelConfig(mechanisms=(Identity(),), n_layers=2, d_model=8).build(11, seed)
    return model.blocks[1].mix


def test_a_mechanism_begins_with_what_its_constructor_sets(monkeypatch):
    mix, std = begun(monkeypatch, Own), lambda value: value.std().item()
    assert mix.gain.eq(0.01).all()
    assert mix.zero_proj.weight.eq(0).all()
    assert torch.equal(mix.frozen, torch.arange(8.0))
    assert 0 < mix.A_log.min() < mix.A_log.max() < math.log(16)
    assert not torch.equal(*mix.halves.chunk(2))
    assert std(mix.conv.weight) > 0.2  # torch's own initial values: uniform in +-0.5
    torch.testing.assert_close(mix.table @ mix.table.mT, torch.eye(8))
    assert mix.unit.is_complex()
    for projection, expected in ((mix.left_alone, 0.02), (mix.scaled_proj, 0.01)):
        assert std(projection.weight) == pytest.approx(expected, rel=0.25)
    assert std(mix.unset_DD) == pytest.approx(0.02, rel=0.25)
    assert mix.left_alone.bias.eq(0).all()
    assert mix.norm.weight.eq(1).all()


def test_draws_of_a_constructor_are_common_to_variants_and_follow_the_seed(monkeypatch):
    state = torch.random.get_rng_state()
    values, more, other = (
        {**dict(mix.named_parameters()), **dict(mix.named_buffers())}
        for mix in (
            begun(monkeypatch, Own),
            begun(monkeypatch, OwnWithMore),
            begun(monkeypatch, Own, seed=4),
        )
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, more[name]) for name, value in values.items())
    drawn = ("left_alone.weight", "scaled_proj.weight", "conv.weight", "conv.bias", "A_log")
    for name in (*drawn, "halves", "unset_DD", "table", "unit"):
        assert not torch.equal(values[name], other[name])
    alone = torch.Generator().manual_seed(stream(3, "blocks.1.mix.left_alone.weight"))
    expected = torch.empty(8, 8).normal_(0, 0.02, generator=alone)
    assert torch.equal(values["left_alone.weight"], expected)


def test_initial_value_sees_what_the_constructor_set_and_replaces_it(monkeypatch):
    def initial_value(mix, name, generator):
        return 2 * mix.gain.detach() if name == "gain" else None

    monkeypatch.setattr(Own, "initial_value", initial_value)
    assert begun(monkeypatch, Own).gain.eq(0.02).all()


def test_lazy_parameters_are_refused_when_the_model_is_built(monkeypatch):
    class Lazy(TokenwiseLinear):
        def __init__(self):
            super().__init__(8)
            self.gate_proj = nn.LazyLinear(8)

    with pytest.raises(
        ValueError, match=r"parameter blocks.0.mix.gate_proj.weight is lazy: .* give"
    ):
        begun(monkeypatch, Lazy)


def test_casts_keep_complex_buffers(monkeypatch):
    mix = begun(monkeypatch, Own)
    unit = mix.unit.clone()
    assert torch.equal(mix.to(torch.bfloat16).unit, unit)
    assert mix.gain.dtype == torch.bfloat16
    assert mix.double().unit.dtype == torch.complex128
    assert torch.equal(mix.float().unit, unit)


def test_losses_are_those_of_the_logits():
    model = tiny().build(VOCAB).double()
    tokens_BT1 = torch.randint(VOCAB, (3, 12))
    expected = cross_entropy(model.logits(tokens_BT1[:, :-1]).mT, tokens_BT1[:, 1:])
    torch.testing.assert_close(model.losses(tokens_BT1).language_model, expected)


@torch.no_grad()
def test_stated_flops_are_those_of_one_more_token():
    config, context = tiny(GroupedQuery(n_kv_heads=2), Identity()), 9
    model = config.build(VOCAB).eval()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.logits(torch.zeros(1, 1, dtype=torch.long))
    # one layer of attention, whose scores and values alone depend on the context
    attention = 2 * 2 * config.d_model
    stated = config.cost(VOCAB, context).flops - attention * (context - 1)
    assert counter.get_total_flops() == stated


def test_auxiliary_losses_of_all_layers_are_summed_and_kept_apart():
    config = tiny(MechanismConfig.from_dict({"kind": "deepseek_sparse", "top_k": 4}))
    model = config.build(VOCAB).train()
    tokens_BT1 = torch.randint(VOCAB, (2, 9))
    losses = model.losses(tokens_BT1)
    assert losses.auxiliary > 0
    plain = cross_entropy(model.logits(tokens_BT1[:, :-1]).mT, tokens_BT1[:, 1:])
    torch.testing.assert_close(losses.language_model, plain)


def test_a_block_may_have_two_losses_of_its_own():
    sparse = MechanismConfig.from_dict({"kind": "deepseek_sparse", "top_k": 4})
    tokens_BT1 = torch.randint(VOCAB, (2, 9))

    def auxiliary(mechanism, balance_loss):
        experts = MixtureOfExperts(d_ff=8, balance_loss=balance_loss)
        return (
            tiny(mechanism, feedforward=experts).build(VOCAB).train().losses(tokens_BT1).auxiliary
        )

    together, index, balance = auxiliary(sparse, 0.01), auxiliary(sparse, 0.0), 2 * 0.01
    torch.testing.assert_close(together - index, torch.tensor(balance), rtol=0.3, atol=0)
    assert index > 0
    assert auxiliary(GroupedQuery(), 0.0) == 0


D_MODEL, D_FF = 16, 24


def filled(config: FeedForward):
    layer, generator = config.build(D_MODEL).double(), torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.data.normal_(generator=generator)
    return layer


def test_the_formulas():
    x_ND = torch.randn(5, D_MODEL, dtype=torch.float64)
    dense, gated = filled(Dense(d_ff=D_FF)), filled(SwiGLU(d_ff=D_FF))
    expected = silu(x_ND @ dense.up_proj.weight.mT) @ dense.down_proj.weight.mT
    torch.testing.assert_close(dense(x_ND), expected)
    hidden_NF = silu(x_ND @ gated.gate_proj.weight.mT) * (x_ND @ gated.up_proj.weight.mT)
    torch.testing.assert_close(gated(x_ND), hidden_NF @ gated.down_proj.weight.mT)


@pytest.mark.parametrize("kind", WITH_WIDTH)
def test_cost_is_what_a_token_costs(kind):
    config = FeedForward.kinds[kind](d_ff=D_FF)
    layer, stated = config.build(D_MODEL), config.cost(D_MODEL)
    assert stated.params == sum(p.numel() for p in layer.parameters())
    assert stated.state_bytes == 0
    if kind != "mixture_of_experts":  # its own tests count what the counter does not know
        with FlopCounterMode(display=False) as counter:
            layer(torch.randn(1, D_MODEL))
        assert stated.flops == counter.get_total_flops()
        assert config.active_params(D_MODEL) == stated.params


@pytest.mark.parametrize("kind", WITH_WIDTH)
def test_a_width_of_nothing_is_refused(kind):
    with pytest.raises(ConfigError, match="d_ff: must be at least 1, got 0"):
        FeedForward.kinds[kind](d_ff=0)


@pytest.mark.parametrize("kind", WITH_WIDTH)
def test_dropout_applies_to_the_hidden_layer_in_training_alone(kind):
    layer = FeedForward.kinds[kind](d_ff=D_FF).build(D_MODEL, dropout=0.5)
    for parameter in layer.parameters():
        parameter.data.fill_(0.1)
    x_ND = torch.ones(4, D_MODEL)
    assert torch.equal(layer.eval()(x_ND), layer(x_ND))
    assert not torch.equal(layer.train()(x_ND), layer(x_ND))


def test_without_a_feed_forward_layer_a_block_is_its_mechanism_and_one_norm():
    config = tiny(Identity(), feedforward=NoFeedForward())
    model = config.build(VOCAB)
    names = {name for name, _ in model.named_parameters() if name.startswith("blocks.0")}
    assert names == {"blocks.0.mix_norm.weight", "blocks.0.mix.o_proj.weight"}
    parameters = list(model.parameters())
    assert config.parts(VOCAB).total == sum(p.numel() for p in parameters)
    model.losses(torch.arange(6)[None]).language_model.backward()
    assert all(p.grad is not None and p.grad.any() for p in parameters)
    assert NoFeedForward().cost(D_MODEL).flops == 0
