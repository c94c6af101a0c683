"""The model is the same for all mechanisms: its sizes, its costs, its first weights."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

import attnlab.mechanisms  # noqa: F401  registers the kinds
from attnlab.mechanism import MechanismConfig
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.identity import Identity, TokenwiseLinear
from attnlab.mechanisms.sliding_window import SlidingWindow
from attnlab.model.feedforward import Dense, MixtureOfExperts, SwiGLU
from attnlab.model.language_model import ModelConfig

VOCAB = 97


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


def test_building_a_model_leaves_the_global_random_stream_of_initial_weights_unused():
    torch.manual_seed(0)
    first = tiny().build(VOCAB, seed=1).embed.weight
    torch.manual_seed(1)
    assert torch.equal(first, tiny().build(VOCAB, seed=1).embed.weight)


def test_what_a_constructor_fills_itself_is_there_for_its_initial_value(monkeypatch):
    class Own(TokenwiseLinear):
        def __init__(self):
            super().__init__(8)
            torch.nn.init.eye_(self.o_proj.weight)
            self.register_buffer("table", torch.nn.init.orthogonal_(torch.empty(8, 8)))

        def initial_value(self, name, generator):
            return self.o_proj.weight.detach().clone()

    monkeypatch.setattr(Identity, "build", lambda *_: Own())
    mix = ModelConfig(mechanisms=(Identity(),), n_layers=1, d_model=8).build(11).blocks[0].mix
    assert torch.equal(mix.o_proj.weight, torch.eye(8))
    torch.testing.assert_close(mix.table @ mix.table.mT, torch.eye(8))


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
