"""Parts that give positions: scaled RoPE, and the short convolution.

Every setting of rotary heads has its stated effect, in each mechanism that has them.
"""

import random

import pytest
import torch
from support import agreement
from torch.nn.functional import conv1d, silu
from torch.testing import assert_close

from attnlab.checks import assert_correct, check_properties
from attnlab.config import ConfigError
from attnlab.inference.decoder import Decoder
from attnlab.mechanism import MechanismConfig, state_bytes
from attnlab.mechanisms.deepseek_sparse import DeepseekSparse
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.mla import MLA
from attnlab.mechanisms.moba import MOBA
from attnlab.mechanisms.sliding_window import SlidingWindow
from attnlab.model.feedforward import Dense
from attnlab.model.language_model import ModelConfig
from attnlab.modules.rope_scaling import Dynamic, Linear, Llama3, RopeScaling, Yarn
from attnlab.modules.rotary import FAR, LOW, Rope, looked_up, rotate, rotation
from attnlab.modules.short_convolution import ShortConvolution

ORIGINAL = 16
LENGTH = {"original_max_position_embeddings": ORIGINAL}
DYNAMIC = Dynamic(factor=2.0, **LENGTH)
YARN = Yarn(factor=4.0, mscale=1.0, mscale_all_dim=0.8, **LENGTH)
SCALINGS = [
    None,
    Linear(factor=2.0),
    DYNAMIC,
    YARN,
    Llama3(factor=4.0, **LENGTH),
]
MECHANISMS = [
    GroupedQuery,
    MLA,
    lambda **settings: SlidingWindow(window=8, **settings),
    lambda **settings: DeepseekSparse(top_k=8, **settings),
]
NAMES = ["grouped_query", "mla", "sliding_window", "deepseek_sparse"]


def x_of(tokens, d_model=32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, tokens, d_model, generator=generator, dtype=torch.float64)


@torch.no_grad()
def decoded(mechanism, x_BTD, prompt=3):
    y_BTD, state = mechanism.prefill(x_BTD[:, :prompt], x_BTD.shape[1])
    outputs = list(y_BTD.unbind(1))
    for x_BD in x_BTD[:, prompt:].unbind(1):
        y_BD, state = mechanism.step(x_BD, state)
        outputs.append(y_BD)
    return torch.stack(outputs, 1)


def built(config):
    torch.manual_seed(0)
    return config.build(32).double().eval()


def test_a_mechanism_scaled_by_the_length_keeps_its_promises():
    assert_correct(GroupedQuery(rope_scaling=DYNAMIC), d_model=32, quick=True)


@pytest.mark.parametrize("make", MECHANISMS, ids=NAMES)
def test_scaling_by_the_length_is_exact_up_to_the_original_length_and_no_further(make):
    mechanism, x_BTD = built(make(rope_scaling=DYNAMIC)), x_of(ORIGINAL + 1)
    y_BTD, steps_BTD = mechanism(x_BTD), decoded(mechanism, x_BTD)
    assert_close(decoded(mechanism, x_BTD[:, :-1]), mechanism(x_BTD[:, :-1]))
    assert (steps_BTD - y_BTD).abs().max() > 1e-6
    assert make(rope_scaling=DYNAMIC).exact_length == ORIGINAL
    assert make(rope_scaling=Linear(factor=2.0)).exact_length is None


def test_a_mechanism_that_hides_where_it_is_exact_is_found_out(monkeypatch):
    monkeypatch.setattr(GroupedQuery, "exact_length", None)
    results = check_properties(GroupedQuery(rope_scaling=DYNAMIC), d_model=32, quick=True)
    assert {result.name for result in results if not result.holds} == {
        "a prefix alone gives the same outputs",
        "step by step equals all at once",
        "decoding continues after a prompt",
        "decoding in float32 and bfloat16 equals the forward pass",
    }


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
@pytest.mark.parametrize("tokens", [1, ORIGINAL, ORIGINAL + 1, 100])
def test_a_place_that_only_the_device_knows_is_turned_the_same(scaling, tokens):
    rope, like = Rope(10_000.0, 8, scaling), torch.zeros((), dtype=torch.float64)
    for start in (0, 1, 7, ORIGINAL, 500):
        known = rotation(rope, start, tokens, like)
        unknown = rotation(rope, torch.tensor(start), tokens, like)
        assert_close(unknown, known, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-9), (torch.float32, 3e-7)])
@pytest.mark.parametrize("start", [0, 1, LOW - 1, LOW, 1_000_003, FAR - 2])
def test_tables_that_a_compiled_step_reads_turn_the_same(start, dtype, atol):
    rope, position_T = Rope(10_000.0, 8), start + torch.arange(2)
    known = rotation(rope, torch.tensor(start), 2, torch.zeros((), dtype=dtype))
    assert_close(looked_up(rope, position_T, dtype), known, rtol=0, atol=atol)


@pytest.mark.parametrize("scaling", [Linear(factor=1.0), DYNAMIC], ids=str)
def test_a_scaling_that_has_nothing_to_do_changes_no_bit(scaling):
    like = torch.zeros((), dtype=torch.float64)
    plain, scaled = (rotation(Rope(10_000.0, 8, s), 0, ORIGINAL, like) for s in (None, scaling))
    assert all(torch.equal(a, b) for a, b in zip(plain, scaled, strict=True))


def test_scores_grow_by_both_scales_of_yarn():
    theirs = Yarn(factor=40.0, mscale=0.7, mscale_all_dim=0.7, **LENGTH)
    assert (theirs.amplitude, theirs.softmax_factor) == (1.0, pytest.approx(1.2582**2, rel=1e-4))
    alone = Yarn(factor=40.0, **LENGTH)
    assert (alone.amplitude, alone.softmax_factor) == (pytest.approx(1.36889, rel=1e-5), 1.0)
    x_TK = x_of(5, 8)[0]
    rope = Rope(10_000.0, 8, alone)
    assert_close(rotate(x_TK, rotation(rope, 0, 5, x_TK)).norm(), alone.amplitude * x_TK.norm())


def test_the_only_pair_of_a_width_of_two_turns_alike_at_every_length():
    rope = Rope(10_000.0, 2, DYNAMIC)
    assert [rope.frequency(torch.tensor(n)).tolist() for n in (1, 1000)] == [[1.0], [1.0]]


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (Linear, {"factor": 0.5}, "factor: must be at least 1, got 0.5"),
        (Dynamic, {"factor": 2.0, "original_max_position_embeddings": 0}, "must be at least 1"),
        (Yarn, {"factor": 2.0, "beta_slow": 40.0} | LENGTH, "beta_slow: .* beta_fast 32.0"),
        (Yarn, {"factor": 2.0, "mscale": 0.0} | LENGTH, "mscale: must be positive"),
        (Llama3, {"factor": 2.0, "low_freq_factor": 4.0} | LENGTH, "less than high_freq_factor"),
    ],
)
def test_impossible_settings_are_named(kind, settings, message):
    with pytest.raises(ConfigError, match=message):
        kind(**settings)


@pytest.mark.parametrize("make", [GroupedQuery, MLA])
def test_yarn_needs_a_theta_above_one(make):
    make(rope_theta=1.0)
    with pytest.raises(ConfigError, match="rope_theta: must be more than 1 for yarn"):
        make(rope_theta=1.0, rope_scaling=Yarn(factor=2.0, **LENGTH))


def test_scalings_are_settings_like_any_other():
    assert sorted(RopeScaling.kinds) == ["dynamic", "linear", "llama3", "yarn"]
    config = GroupedQuery(rope_scaling=SCALINGS[3])
    assert MechanismConfig.from_dict(config.to_dict()) == config


@pytest.mark.gpu
@pytest.mark.parametrize("make", MECHANISMS, ids=NAMES)
@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_a_recorded_step_decodes_past_the_original_length(make, scaling):
    model = ModelConfig(mechanisms=(make(rope_scaling=scaling),), n_layers=2, d_model=32)
    model = model.build(vocab_size=50).cuda().eval()
    tokens_BT = torch.arange(3 * 40).view(3, 40).cuda() % 50
    eager, recorded = (
        Decoder(model, model.prefill(tokens_BT[:, :5], 40)[1], graph=graph)
        for graph in (False, True)
    )
    for tokens_B in tokens_BT[:, 5:].unbind(1):
        assert_close(recorded.step(tokens_B), eager.step(tokens_B), atol=2e-5, rtol=2e-4)
    assert recorded._graph is not None


CHANNELS = 6


@pytest.fixture(params=[1, 2, 4])
def convolution(request):
    torch.manual_seed(0)
    return ShortConvolution(CHANNELS, request.param)


@pytest.fixture
def x_BTC():
    return torch.randn(2, 11, CHANNELS, generator=torch.Generator().manual_seed(1))


def test_it_is_the_causal_depthwise_conv1d_with_silu(convolution, x_BTC):
    width = convolution.width
    padded_BCS = torch.nn.functional.pad(x_BTC.mT, (width - 1, 0))
    expected = silu(conv1d(padded_BCS, convolution.weight[:, None], groups=CHANNELS)).mT
    torch.testing.assert_close(convolution(x_BTC), expected)


@torch.no_grad()
def test_token_by_token_equals_all_at_once(convolution, x_BTC):
    past_BPC, outputs = convolution.init_state(2), []
    for x_BC in x_BTC.unbind(1):
        y_BC, past_BPC = convolution.step(x_BC, past_BPC)
        outputs.append(y_BC)
    # not torch.equal: a CPU's vector lanes and its remainder differ in silu's last bit
    torch.testing.assert_close(torch.stack(outputs, 1), convolution(x_BTC), rtol=1e-6, atol=1e-7)


@torch.no_grad()
@pytest.mark.parametrize("prompt", [1, 2, 3, 4, 10])
def test_a_prompt_of_any_length_hands_on_its_last_inputs(convolution, x_BTC, prompt):
    y_BTC, past_BPC = convolution.prefill(x_BTC[:, :prompt])
    assert past_BPC.shape == convolution.init_state(2).shape
    next_BC, _ = convolution.step(x_BTC[:, prompt], past_BPC)
    expected = convolution(x_BTC)[:, : prompt + 1]
    actual = torch.cat([y_BTC, next_BC[:, None]], 1)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7)


@torch.no_grad()
def test_the_state_does_not_change_with_the_prompt_it_came_from(convolution, x_BTC):
    _, past_BPC = convolution.prefill(x_BTC)
    before = past_BPC.clone()
    x_BTC.zero_()
    assert torch.equal(past_BPC, before)


def test_the_sum_is_float32_inside_bfloat16(convolution, x_BTC):
    convolution.bfloat16()
    x_BTC = x_BTC.bfloat16()
    exact = ShortConvolution(CHANNELS, convolution.width)
    exact.load_state_dict(convolution.state_dict())
    assert convolution(x_BTC).dtype == torch.bfloat16
    assert torch.equal(convolution(x_BTC), exact(x_BTC.float()).bfloat16())


def test_initial_weights_are_uniform_and_seeded():
    first = ShortConvolution.initial_weight(1000, 4, torch.Generator().manual_seed(3))
    again = ShortConvolution.initial_weight(1000, 4, torch.Generator().manual_seed(3))
    assert torch.equal(first, again)
    assert 0.49 < first.abs().max() <= 0.5
    assert first.std().item() == pytest.approx(3**-0.5 / 2, rel=0.05)


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
        return torch.cat(
            [agreement.rotate(x_BHTK[..., :turning], c.rope_theta), x_BHTK[..., turning:]], -1
        )

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
    mechanism = agreement.drawn(GroupedQuery(n_kv_heads=n_kv_heads, **settings))
    x_BTD = torch.randn(2, 9, D, dtype=torch.float64)
    agreement.assert_is_definition(mechanism, by_hand, x_BTD)


@pytest.mark.parametrize("settings", [{}, *KNOBS, ALL], ids=str)
def test_windows_and_selections_that_reach_everything_are_full_attention(settings):
    full = agreement.drawn(GroupedQuery(n_kv_heads=2, **settings))
    x_BTD = torch.randn(2, 9, D, dtype=torch.float64)
    for config in (
        SlidingWindow(n_kv_heads=2, window=9, **settings),
        DeepseekSparse(n_kv_heads=2, top_k=9, index_head_dim=8, **settings),
        MOBA(n_kv_heads=2, block_size=4, top_k=3, **settings),
    ):
        mechanism = agreement.drawn(config)
        mechanism.load_state_dict(full.state_dict(), strict=False)
        assert_close(mechanism(x_BTD), full(x_BTD))


def test_every_mixture_of_settings_keeps_the_promises():
    draw = random.Random(0)
    for kind, bound in [
        (DeepseekSparse, {"top_k": 8, "index_n_heads": 2, "index_head_dim": 16}),
        (MOBA, {"block_size": 4, "top_k": 2}),
    ]:
        some = {name: value for name, value in ALL.items() if draw.random() < 0.7}
        config = kind(n_kv_heads=2, rope_scaling=YARN, **bound, **some)
        assert_correct(config, d_model=D, quick=True)


def test_decoding_keeps_keys_and_values_and_not_the_latent():
    config = GroupedQuery(n_kv_heads=2, kv_lora_rank=6, head_dim=10, v_head_dim=14)
    state = agreement.drawn(config).init_state(1, 50)
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


@pytest.mark.parametrize("kind", [GroupedQuery, SlidingWindow, DeepseekSparse, MOBA])
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
def test_impossible_settings_of_heads_are_named(kind, settings, message):
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
