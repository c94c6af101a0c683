"""Every setting of rotary heads has its stated effect, in each mechanism that has them."""

import random

import pytest
import torch
from support.agreement import rotate
from torch.testing import assert_close

from attnlab.checks import assert_correct
from attnlab.config import ConfigError
from attnlab.mechanism import MechanismConfig, state_bytes
from attnlab.mechanisms.deepseek_sparse import DeepseekSparse
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.sliding_window import SlidingWindow
from attnlab.model.feedforward import Dense
from attnlab.model.language_model import ModelConfig

D = 32
KNOBS = [
    {"head_dim": 12},
    {"head_dim": 7, "rope_head_dim": 4},
    {"v_head_dim": 5},
    {"head_dim": 4, "v_head_dim": 11},
    {"q_lora_rank": 6},
    {"kv_lora_rank": 6},
    {"q_lora_rank": 3, "kv_lora_rank": 40},
    {"rope_head_dim": 0},
    {"qk_norm": True},
    {"bias": True},
    {"softmax_scale": 0.9},
]
ALL = {
    "head_dim": 10,
    "v_head_dim": 14,
    "q_lora_rank": 6,
    "kv_lora_rank": 9,
    "rope_head_dim": 4,
    "qk_norm": True,
    "bias": True,
    "softmax_scale": 0.4,
}


def made(config):
    torch.manual_seed(0)
    mechanism = config.build(D).double().eval()
    for parameter in mechanism.parameters():
        torch.nn.init.normal_(parameter, mean=0.1, std=0.5)
    return mechanism


def rms_norm(x, norm):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight


def by_hand(mechanism, x_BTD):
    """Return y by a loop over heads and queries."""
    c = mechanism.config
    key = c.head_dim or D // c.n_heads
    value = c.v_head_dim or key
    turning = key if c.rope_head_dim is None else c.rope_head_dim

    def projected(layer, x):
        y = x @ layer.weight.T
        return y + layer.bias if c.bias else y

    def latent(rank, layer):
        return x_BTD if rank is None else rms_norm(projected(layer.proj, x_BTD), layer.norm)

    def turned(x_BTHK, norm):
        x_BHTK = (rms_norm(x_BTHK, norm) if c.qk_norm else x_BTHK).transpose(1, 2)
        return torch.cat([rotate(x_BHTK[..., :turning], c.rope_theta), x_BHTK[..., turning:]], -1)

    of_kv = latent(c.kv_lora_rank, mechanism.kv_latent)
    q_BTM = projected(mechanism.q_proj, latent(c.q_lora_rank, mechanism.q_latent))
    q = turned(q_BTM.unflatten(-1, (c.n_heads, key)), mechanism.q_norm)
    k = turned(projected(mechanism.k_proj, of_kv).unflatten(-1, (-1, key)), mechanism.k_norm)
    v = projected(mechanism.v_proj, of_kv).unflatten(-1, (-1, value)).transpose(1, 2)
    scale = key**-0.5 if c.softmax_scale is None else c.softmax_scale
    heads = []
    for h in range(c.n_heads):
        g, rows = h * c.n_kv_heads // c.n_heads, []
        for t in range(x_BTD.shape[1]):
            scores = torch.einsum("bk,bsk->bs", q[:, h, t], k[:, g, : t + 1]) * scale
            rows.append(torch.einsum("bs,bsv->bv", scores.softmax(-1), v[:, g, : t + 1]))
        heads.append(torch.stack(rows, 1))
    return projected(mechanism.o_proj, torch.cat(heads, -1))


@pytest.mark.parametrize("settings", [*KNOBS, ALL], ids=str)
@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_each_setting_is_its_definition_with_gradients(n_kv_heads, settings):
    mechanism = made(GroupedQuery(n_kv_heads=n_kv_heads, **settings))
    x_BTD = torch.randn(2, 9, D, dtype=torch.float64, requires_grad=True)
    inputs = [x_BTD, *mechanism.parameters()]
    got, expected = mechanism(x_BTD), by_hand(mechanism, x_BTD)
    assert_close(got, expected)
    assert_close(
        torch.autograd.grad(got.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
    )


@pytest.mark.parametrize("settings", [{}, *KNOBS, ALL], ids=str)
def test_windows_and_selections_that_reach_everything_are_full_attention(settings):
    full = made(GroupedQuery(n_kv_heads=2, **settings))
    x_BTD = torch.randn(2, 9, D, dtype=torch.float64)
    for config in (
        SlidingWindow(n_kv_heads=2, window=9, **settings),
        DeepseekSparse(n_kv_heads=2, top_k=9, index_head_dim=8, **settings),
    ):
        mechanism = made(config)
        mechanism.load_state_dict(full.state_dict(), strict=False)
        assert_close(mechanism(x_BTD), full(x_BTD))


def test_every_mixture_of_settings_keeps_the_promises():
    draw = random.Random(0)
    for kind, bound in [
        (GroupedQuery, {}),
        (SlidingWindow, {"window": 8}),
        (DeepseekSparse, {"top_k": 8}),
    ]:
        some = {name: value for name, value in ALL.items() if draw.random() < 0.7}
        assert_correct(kind(n_kv_heads=2, **bound, **some), d_model=D, quick=True)


def test_decoding_keeps_keys_and_values_and_not_the_latent():
    config = GroupedQuery(n_kv_heads=2, kv_lora_rank=6, head_dim=10, v_head_dim=14)
    state = made(config).init_state(1, 50)
    assert state_bytes(state) == 8 * 50 * 2 * (10 + 14)
    assert config.cost(D, 50, itemsize=8).state_bytes == state_bytes(state)


def test_a_variant_with_latents_starts_its_other_parameters_from_the_same_bits():
    plain, lora = (
        ModelConfig(mechanisms=(config,), n_layers=1, d_model=D).build(50, seed=3).state_dict()
        for config in (GroupedQuery(), GroupedQuery(q_lora_rank=4, kv_lora_rank=4))
    )
    shared = [name for name in plain if name in lora and plain[name].shape == lora[name].shape]
    assert "blocks.0.mix.o_proj.weight" in shared
    assert "blocks.0.mix.q_proj.weight" not in shared
    assert all(torch.equal(plain[name], lora[name]) for name in shared)


def test_defaults_have_the_parameters_of_plain_attention_and_no_others():
    names = [name for name, _ in GroupedQuery().build(D).named_parameters()]
    assert names == [f"{letter}_proj.weight" for letter in "qkvo"]


@pytest.mark.parametrize(
    ("settings", "params"),
    [
        # 512 wide, 8 heads: projections, then norms of the latents, then biases
        ({}, 4 * 512 * 512),
        ({"bias": True}, 4 * 512 * 512 + 4 * 512),
        (
            {"q_lora_rank": 32, "kv_lora_rank": 64},
            (2 * 512 * 32 + 512 * 64 + 64 * 1024 + 512 * 512) + (32 + 64),
        ),
        (
            {
                "q_lora_rank": 256,
                "kv_lora_rank": 512,
                "head_dim": 128,
                "v_head_dim": 192,
                "bias": True,
            },
            (512 * 256 + 256 * 1024 + 512 * 512 + 512 * 1024 + 512 * 1536 + 1536 * 512)
            + (256 + 512)
            + (256 + 1024 + 512 + 1024 + 1536 + 512),
        ),
    ],
    ids=["plain", "bias", "lora_small", "enhanced_xl"],
)
def test_the_sizes_of_the_published_variants(settings, params):
    config = GroupedQuery(n_heads=8, n_kv_heads=8, **settings)
    assert config.cost(512, 1).params == params
    model = ModelConfig(mechanisms=(config,), n_layers=8, d_model=512, feedforward=Dense(d_ff=8))
    assert model.parts(49_152).attention == 8 * params


@pytest.mark.parametrize("kind", [GroupedQuery, SlidingWindow, DeepseekSparse])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head_dim": 0}, "head_dim: must be at least 1, got 0"),
        ({"v_head_dim": -1}, "v_head_dim: must be at least 1, got -1"),
        ({"q_lora_rank": 0}, "q_lora_rank: must be at least 1, got 0"),
        ({"kv_lora_rank": 0}, "kv_lora_rank: must be at least 1, got 0"),
        ({"rope_head_dim": 3}, "rope_head_dim: must be even, or 0 for no RoPE, got 3"),
        ({"rope_head_dim": -2}, "rope_head_dim: must be even, or 0 for no RoPE, got -2"),
        ({"softmax_scale": 0.0}, "softmax_scale: must be positive, got 0.0"),
    ],
)
def test_impossible_settings_are_named(kind, settings, message):
    with pytest.raises(ConfigError, match=message):
        kind(**settings)


@pytest.mark.parametrize(
    ("settings", "problems"),
    [
        ({"n_heads": 3, "n_kv_heads": 3}, ["n_heads: 3 does not divide d_model 32"]),
        ({"n_heads": 3, "n_kv_heads": 3, "head_dim": 8}, []),
        (
            {"n_heads": 32, "n_kv_heads": 32},
            ["n_heads: a head of 1 is odd: RoPE rotates pairs of columns"],
        ),
        ({"n_heads": 32, "n_kv_heads": 32, "rope_head_dim": 0}, []),
        ({"head_dim": 7}, ["head_dim: a head of 7 is odd: RoPE rotates pairs of columns"]),
        ({"head_dim": 7, "rope_head_dim": 6}, []),
        ({"rope_head_dim": 10}, ["rope_head_dim: 10 is more than a head of 8"]),
    ],
)
def test_what_does_not_fit_the_model_is_named(settings, problems):
    config: MechanismConfig = GroupedQuery(**settings)
    assert [str(problem) for problem in config.problems_at(D)] == problems
