"""Parts that give positions: scaled RoPE, and the short convolution."""

import pytest
import torch
from torch.nn.functional import conv1d, silu
from torch.testing import assert_close

from attnlab.checks import assert_correct, check_properties
from attnlab.config import ConfigError
from attnlab.inference.decoder import Decoder
from attnlab.mechanism import MechanismConfig
from attnlab.mechanisms.deepseek_sparse import DeepseekSparse
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.mla import MLA
from attnlab.mechanisms.sliding_window import SlidingWindow
from attnlab.model.language_model import ModelConfig
from attnlab.modules.rope_scaling import Dynamic, Linear, Llama3, RopeScaling, Yarn
from attnlab.modules.rotary import Rope, rotate, rotation
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


SCALED = [(GroupedQuery, scaling) for scaling in SCALINGS[1:]]
SCALED += [(make, YARN) for make in MECHANISMS[1:]]


@pytest.mark.parametrize(("make", "scaling"), SCALED)
def test_a_scaled_mechanism_keeps_its_promises(make, scaling):
    assert_correct(make(rope_scaling=scaling), d_model=32, quick=True)


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
        "decoding in bfloat16 equals the forward pass in bfloat16",
    }


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
@pytest.mark.parametrize("tokens", [1, ORIGINAL, ORIGINAL + 1, 100])
def test_a_place_that_only_the_device_knows_is_turned_the_same(scaling, tokens):
    rope, like = Rope(10_000.0, 8, scaling), torch.zeros((), dtype=torch.float64)
    for start in (0, 1, 7, ORIGINAL, 500):
        known = rotation(rope, start, tokens, like)
        unknown = rotation(rope, torch.tensor(start), tokens, like)
        assert_close(unknown, known, rtol=0, atol=1e-9)


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
