"""Multi-head latent attention: its definition, its cache, and its settings."""

import pytest
import torch
from support.agreement import assert_is_definition, rotate
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from attnlab.checks import assert_correct
from attnlab.config import ConfigError, drop_unset
from attnlab.mechanisms.mla import MLA

SMALL = {"kv_lora_rank": 12, "qk_nope_head_dim": 5, "qk_rope_head_dim": 4, "v_head_dim": 7}
SHAPES = [
    SMALL,
    SMALL | {"n_heads": 1},
    SMALL | {"n_heads": 3, "v_head_dim": 20},  # wider than the keys
    SMALL | {"kv_lora_rank": 1},
    SMALL | {"output_gate": "head"},
    SMALL | {"output_gate": "element", "n_heads": 3},
    SMALL | {"sinks": True},
    SMALL | {"logit_softcap": 0.7},
]
ALL = SMALL | {"output_gate": "element", "sinks": True, "logit_softcap": 0.7}


def made(dropout=0.0, **settings):
    torch.manual_seed(0)
    mechanism = MLA(**settings).build(32, dropout).double()
    torch.nn.init.normal_(mechanism.kv_a_layernorm.weight)
    if mechanism.sinks is not None:
        torch.nn.init.normal_(mechanism.sinks)
    return mechanism


def by_hand(mechanism, x_BTD):
    """Return y by a loop over heads and queries, with all keys and values computed."""
    c = mechanism.config
    nope, rope, rank = c.qk_nope_head_dim, c.qk_rope_head_dim, c.kv_lora_rank
    down = x_BTD @ mechanism.kv_a_proj_with_mqa.weight.T
    latent, shared_key = down[..., :rank], rotate(down[..., rank:], c.rope_theta)
    rms = (latent.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    latent = latent / rms * mechanism.kv_a_layernorm.weight
    up = mechanism.kv_b_proj.weight.view(c.n_heads, nope + c.v_head_dim, rank)
    queries = (x_BTD @ mechanism.q_proj.weight.T).unflatten(-1, (c.n_heads, nope + rope))
    heads = []
    for h in range(c.n_heads):
        q = torch.cat([queries[:, :, h, :nope], rotate(queries[:, :, h, nope:], c.rope_theta)], -1)
        k = torch.cat([latent @ up[h, :nope].T, shared_key], -1)
        v = latent @ up[h, nope:].T
        rows = []
        for t in range(x_BTD.shape[1]):
            scores = torch.einsum("bk,bsk->bs", q[:, t], k[:, : t + 1]) / (nope + rope) ** 0.5
            if c.logit_softcap is not None:
                scores = c.logit_softcap * torch.tanh(scores / c.logit_softcap)
            weights = scores.exp()
            total = weights.sum(-1, keepdim=True) + (mechanism.sinks[h].exp() if c.sinks else 0)
            rows.append(torch.einsum("bs,bsv->bv", weights / total, v[:, : t + 1]))
        heads.append(torch.stack(rows, 1))
        if c.output_gate:
            gates = mechanism.g_proj.weight.chunk(c.n_heads)[h]
            heads[-1] = heads[-1] / (1 + (-x_BTD @ gates.T).exp())
    return torch.cat(heads, -1) @ mechanism.o_proj.weight.T


@pytest.mark.parametrize("settings", [*SHAPES, ALL])
@pytest.mark.parametrize("tokens", [1, 2, 13])
@pytest.mark.parametrize("kernel", ["plain", "auto", "blocked"])
def test_it_is_its_definition_with_gradients(settings, tokens, kernel):
    mechanism = made(**settings, kernel=kernel)
    x_BTD = torch.randn(2, tokens, 32, dtype=torch.float64)
    assert_is_definition(mechanism, by_hand, x_BTD)


@torch.no_grad()
@pytest.mark.parametrize("settings", [*SHAPES, ALL])
def test_the_absorbed_step_equals_the_definition(settings):
    mechanism = made(**settings)
    x_BTD = torch.randn(2, 13, 32, dtype=torch.float64)
    _, state = mechanism.prefill(x_BTD[:, :12], capacity=13)
    y_BD, state = mechanism.step(x_BTD[:, 12], state)
    assert_close(y_BD, by_hand(mechanism, x_BTD)[:, 12])
    assert state.seen == 13


def test_all_settings_together_keep_the_promises():
    assert_correct(MLA(**ALL), d_model=32, quick=True)


def test_settings_that_are_off_do_not_count_in_the_identity_of_a_run():
    assert drop_unset(MLA().to_dict()).keys() == {
        *("kind", "n_heads", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim"),
        *("v_head_dim", "rope_theta", "kernel"),
    }


@torch.no_grad()
def test_the_cache_holds_the_normalised_latent_and_the_rotary_key_alone():
    mechanism, x_BTD = made(**SMALL), torch.randn(2, 6, 32, dtype=torch.float64)
    _, state = mechanism.prefill(x_BTD, capacity=6)
    latent_BTR, k_BTP = mechanism.kv_a_proj_with_mqa(x_BTD).split([12, 4], -1)
    assert state.latent_BSC.shape == (2, 6, 12 + 4)
    assert_close(state.latent_BSC[..., :12], mechanism.kv_a_layernorm(latent_BTR))
    assert_close(state.latent_BSC[..., 12:], rotate(k_BTP, 10_000.0))


@torch.no_grad()
def test_the_softmax_is_scaled_by_the_whole_width_of_a_key():
    mechanism = made(**SMALL)
    wide = made(**SMALL | {"qk_nope_head_dim": 14})  # 18 in all: twice SMALL's 9
    for module in (mechanism, wide):
        module.q_proj.weight.fill_(0.1)
        module.kv_b_proj.weight.fill_(0.1)
    x_BTD = torch.randn(1, 8, 32, dtype=torch.float64)
    assert_close(mechanism(x_BTD), by_hand(mechanism, x_BTD))
    assert_close(wide(x_BTD), by_hand(wide, x_BTD))


def test_dropout_changes_training_alone():
    mechanism, x_BTD = made(dropout=0.5, **SMALL), torch.randn(2, 9, 32, dtype=torch.float64)
    assert not torch.equal(mechanism(x_BTD), mechanism(x_BTD))
    mechanism.eval()
    assert_close(mechanism(x_BTD), by_hand(mechanism, x_BTD))


def test_parameters_bear_deepseeks_names():
    assert {name: tuple(p.shape) for name, p in MLA().build(128).named_parameters()} == {
        "q_proj.weight": (4 * 64, 128),
        "kv_a_proj_with_mqa.weight": (64 + 32, 128),
        "kv_a_layernorm.weight": (64,),
        "kv_b_proj.weight": (4 * 64, 64),
        "o_proj.weight": (128, 4 * 32),
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_heads": 0}, "n_heads: must be at least 1"),
        ({"kv_lora_rank": 0}, "kv_lora_rank: must be at least 1"),
        ({"qk_nope_head_dim": 0}, "qk_nope_head_dim: must be at least 1"),
        ({"qk_rope_head_dim": 3}, "qk_rope_head_dim: must be even .* got 3"),
        ({"qk_rope_head_dim": 0}, "qk_rope_head_dim: must be even and at least 2, got 0"),
        ({"v_head_dim": 0}, "v_head_dim: must be at least 1"),
        ({"rope_theta": -1.0}, "rope_theta: must be positive"),
    ],
)
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        MLA(**settings)


@pytest.mark.parametrize("width", [1, 30, 33])
def test_any_model_width_fits(width):
    assert not list(MLA().problems_at(width))
    assert MLA().build(width)(torch.zeros(1, 3, width)).shape == (1, 3, width)


@pytest.mark.parametrize("settings", [*SHAPES, SMALL | {"q_lora_rank": 6}])
def test_a_sequence_read_at_once_costs_its_keys_and_values_and_not_its_latents(settings):
    mechanism, tokens = made(**settings, kernel="plain"), 13
    with FlopCounterMode(display=False) as counter:
        mechanism(torch.zeros(1, tokens, 32, dtype=torch.float64))
    # the counter counts all pairs of tokens
    stated = tokens * mechanism.config.forward_flops(32, tokens)
    assert stated == counter.get_total_flops()
    assert mechanism.config.forward_flops(32, 9) != mechanism.config.cost(32, 9).flops
