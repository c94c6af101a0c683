"""Grouped-query, sliding-window and latent attention: every setting, and the window."""

from dataclasses import replace

import pytest
import torch
from support import agreement, tiny_study
from support.agreement import assert_is_definition, rotate
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from attnlab.checks import assert_correct
from attnlab.config import ConfigError, drop_unset
from attnlab.mechanism import state_bytes
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.mla import MLA
from attnlab.mechanisms.sliding_window import SlidingWindow
from attnlab.modules.rope_scaling import Yarn

W = 7


def sliding(window=W, n_heads=4, n_kv_heads=2, kernel="auto", dropout=0.0):
    torch.manual_seed(0)
    config = SlidingWindow(window=window, n_heads=n_heads, n_kv_heads=n_kv_heads, kernel=kernel)
    return config.build(32, dropout).double()


def window_by_hand(mechanism, x_BTD):
    config = mechanism.config
    q, k, v = (
        proj(x_BTD).unflatten(-1, (-1, mechanism.head_dim)).transpose(1, 2)
        for proj in (mechanism.q_proj, mechanism.k_proj, mechanism.v_proj)
    )
    q, k = rotate(q, config.rope_theta), rotate(k, config.rope_theta)
    columns = []
    for t in range(x_BTD.shape[1]):
        heads = []
        for head in range(config.n_heads):
            shared = head * config.n_kv_heads // config.n_heads
            seen = slice(max(0, t - config.window + 1), t + 1)
            scores = (k[:, shared, seen] @ q[:, head, t, :, None])[..., 0]
            weights = (scores * mechanism.head_dim**-0.5).softmax(-1)
            heads.append((weights[..., None] * v[:, shared, seen]).sum(1))
        columns.append(torch.cat(heads, -1))
    return mechanism.o_proj(torch.stack(columns, 1))


@pytest.mark.parametrize("tokens", [1, W - 1, W, W + 1, 3 * W + 5])
@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("kernel", ["plain", "banded"])
def test_a_window_is_its_definition_with_gradients(tokens, n_kv_heads, kernel):
    mechanism = sliding(n_kv_heads=n_kv_heads, kernel=kernel)
    x_BTD = torch.randn(2, tokens, 32, dtype=torch.float64)
    assert_is_definition(mechanism, window_by_hand, x_BTD)


def test_a_token_reaches_exactly_the_next_window_tokens():
    mechanism, x_BTD = sliding(), torch.randn(1, 4 * W, 32, dtype=torch.float64)
    changed_BTD = x_BTD.clone()
    changed_BTD[:, 3] += 1
    moved_T = (mechanism(changed_BTD) - mechanism(x_BTD)).abs().amax((0, 2)) > 1e-12
    assert moved_T.nonzero()[:, 0].tolist() == list(range(3, 3 + W))


def test_kept_tokens_reach_every_later_one_and_stay_in_the_state():
    config = SlidingWindow(window=W, n_sink_tokens=2)
    mechanism, x_BTD = config.build(32).double(), torch.randn(1, 4 * W, 32, dtype=torch.float64)
    for token, last in ((1, 4 * W), (2, 2 + W)):
        changed_BTD = x_BTD.clone()
        changed_BTD[:, token] += 1
        moved_T = (mechanism(changed_BTD) - mechanism(x_BTD)).abs().amax((0, 2)) > 1e-12
        assert moved_T.nonzero()[:, 0].tolist() == list(range(token, last))
    _, state = mechanism.prefill(x_BTD, capacity=5 * W)
    held = state_bytes(state)
    assert held == config.cost(32, 5 * W, itemsize=8).state_bytes
    assert held == 8 * 2 * 32 * (W + 2)
    keys_TK = mechanism._qkv(x_BTD, start=0)[1][0, 0]
    assert_close(state.k_BGSK[0, 0, :2], keys_TK[:2])


@pytest.mark.parametrize("tokens", [1, W, 20])
def test_a_window_over_everything_is_full_attention(tokens):
    windowed = sliding(window=20)
    full = GroupedQuery(n_heads=4, n_kv_heads=2).build(32).double()
    full.load_state_dict(windowed.state_dict())
    x_BTD = torch.randn(2, tokens, 32, dtype=torch.float64)
    assert_close(windowed(x_BTD), full(x_BTD))


def test_decoding_keeps_no_more_than_the_window():
    mechanism, x_BTD = sliding(), torch.randn(1, 5 * W, 32, dtype=torch.float64)
    _, state = mechanism.prefill(x_BTD, capacity=10_000)
    assert state_bytes(state) == 8 * 2 * 16 * W  # 2 key-value heads of 8, keys and values
    assert mechanism.config.cost(32, 10_000, itemsize=8).state_bytes == state_bytes(state)


def test_dropout_changes_training_alone():
    mechanism, x_BTD = sliding(dropout=0.5), torch.randn(2, 3 * W, 32, dtype=torch.float64)
    assert not torch.equal(mechanism(x_BTD), mechanism(x_BTD))
    mechanism.eval()
    assert_close(mechanism(x_BTD), window_by_hand(mechanism, x_BTD))


@pytest.mark.parametrize("training", [True, False])
def test_one_run_uses_one_kernel(training):
    mechanism = sliding(dropout=0.1).train(training)
    assert mechanism.kernel_on(torch.device("cuda"), torch.bfloat16) == "banded"
    assert sliding().train(training).kernel_on(torch.device("cuda"), torch.bfloat16) == "flex"
    assert mechanism.kernel_on(torch.device("cpu"), torch.float32) == "banded"


def test_flex_with_dropout_is_refused_before_anything_is_built():
    with pytest.raises(ConfigError, match=r"^kernel: .*not support dropout of attention weights"):
        sliding(kernel="flex", dropout=0.1)


def test_flex_on_a_cpu_is_refused():
    with pytest.raises(ValueError, match="needs CUDA, and the device is cpu"):
        sliding(kernel="flex")(torch.zeros(1, 2, 32, dtype=torch.float64))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 0}, "window: must be at least 1"),
        ({"n_sink_tokens": 0}, "n_sink_tokens: must be at least 1, or none, got 0"),
        ({"n_heads": 0}, "n_heads: must be at least 1"),
        ({"n_heads": 4, "n_kv_heads": 3}, "n_kv_heads: 3 does not divide n_heads 4"),
        ({"rope_theta": 0.0}, "rope_theta: must be positive"),
        ({"kernel": "flux"}, "kernel: expected one of auto, plain, banded, flex"),
    ],
)
def test_impossible_settings_of_a_window_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        SlidingWindow(**settings)


@pytest.mark.parametrize(("width", "message"), [(30, "4 does not divide"), (12, "3 is odd")])
def test_a_width_that_does_not_fit_is_named(width, message):
    (problem,) = SlidingWindow().problems_at(width)
    assert problem.path == "n_heads"
    assert message in problem.message
    assert not list(SlidingWindow().problems_at(32))


D = 32
SETTINGS = [
    {"output_gate": "head"},
    {"output_gate": "element"},
    {"output_gate": "element", "bias": True, "v_head_dim": 5},
    {"sinks": True},
    {"sinks": True, "head_dim": 7, "rope_head_dim": 4, "v_head_dim": 12},
    {"alibi": True, "rope_head_dim": 0},
    {"logit_softcap": 1.5},
    {"exclusive": True},
    {"exclusive": True, "output_gate": "head", "v_head_dim": 3},
    {"differential": True},
    {"differential": True, "output_gate": "head", "v_head_dim": 3, "exclusive": True},
    {"logit_softcap": 0.7, "softmax_scale": 0.9, "alibi": True},
]
ALL = {
    "output_gate": "element",
    "sinks": True,
    "alibi": True,
    "logit_softcap": 2.0,
    "exclusive": True,
    "differential": True,
}
NEW = frozenset(ALL)
BOUNDS = {GroupedQuery: [{}], SlidingWindow: [{"window": 4}, {"window": 3, "n_sink_tokens": 2}]}
KERNELS = {GroupedQuery: ("plain", "blocked", "auto"), SlidingWindow: ("plain", "banded")}


def difference(m, y_BTHV, v_BGTV):
    """Return the normed difference of the first and the second half of the heads."""
    first, second = y_BTHV.chunk(2, 2)
    factor = (m.lambda_q1 @ m.lambda_k1).exp() - (m.lambda_q2 @ m.lambda_k2).exp() + 0.8
    y_BTHV = first - factor * second
    y_BTHV = 0.2 * y_BTHV / (y_BTHV.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    if m.config.exclusive:
        v_BT1V = v_BGTV[:, 0, :, None]
        share = (y_BTHV * v_BT1V).sum(-1, keepdim=True) / v_BT1V.square().sum(-1, keepdim=True)
        y_BTHV = y_BTHV - share * v_BT1V
    return y_BTHV


def by_hand(mechanism, x_BTD):
    """Return y by a loop over heads and queries, from queries, keys and values of the module."""
    c = mechanism.config
    q, k, v = mechanism._qkv(x_BTD, start=0)
    if c.differential:  # of two key-value heads, each has the values of both
        v = torch.cat([v, v.flip(1)], -1)
        v = torch.stack([v[:, 0], v[:, 0]], 1)
    heads = []
    for h in range(c.n_heads):
        g, rows = h * c.n_kv_heads // c.n_heads, []
        for t in range(x_BTD.shape[1]):
            first, kept = t - getattr(c, "window", t + 1), c.kept_tokens
            seen = [s for s in range(t + 1) if s > first or s < kept]
            scores = (k[:, g, seen] @ q[:, h, t, :, None])[..., 0] * q.shape[-1] ** -0.5
            if c.logit_softcap is not None:
                scores = c.logit_softcap * torch.tanh(scores / c.logit_softcap)
            if c.alibi:
                scores = scores - (1 / 4 ** (h + 1)) * (t - torch.tensor(seen))
            weights = scores.exp()
            total = weights.sum(-1, keepdim=True)
            if c.sinks:
                total = total + mechanism.sinks[h].exp()
            y_BV, v_BV = ((weights / total)[:, None] @ v[:, g, seen])[:, 0], v[:, g, t]
            if c.exclusive and not c.differential:
                share_B = (y_BV * v_BV).sum(-1) / v_BV.square().sum(-1)
                y_BV = y_BV - share_B[:, None] * v_BV
            rows.append(y_BV)
        heads.append(torch.stack(rows, 1))
    y_BTHV = torch.stack(heads, 2)
    n_outputs = c.n_heads
    if c.differential:
        n_outputs, y_BTHV = c.n_heads // 2, difference(mechanism, y_BTHV, v)
    if c.output_gate:
        gate = mechanism.g_proj(x_BTD)
        width = {"head": 1, "element": v.shape[-1]}[c.output_gate]
        y_BTHV = y_BTHV / (1 + (-gate.reshape(*x_BTD.shape[:2], n_outputs, width)).exp())
    return mechanism.o_proj(y_BTHV.flatten(2))


@pytest.mark.parametrize("settings", [*SETTINGS, ALL], ids=str)
@pytest.mark.parametrize(
    ("kind", "kernel", "bound"),
    [
        (kind, kernel, bound)
        for kind, names in KERNELS.items()
        for kernel in names
        for bound in BOUNDS[kind]
    ],
)
def test_each_setting_is_its_definition_with_gradients(kind, kernel, bound, settings):
    mechanism = agreement.drawn(kind(n_kv_heads=2, kernel=kernel, **bound, **settings))
    x_BTD = torch.randn(2, 9, D, dtype=torch.float64)
    agreement.assert_is_definition(mechanism, by_hand, x_BTD)


def test_all_settings_together_keep_the_promises():
    assert_correct(GroupedQuery(n_kv_heads=2, **ALL), d_model=D, quick=True)


def test_all_settings_together_keep_the_promises_in_a_window():
    more = {"window": 7, "n_sink_tokens": 2, "qk_norm": True, "rope_head_dim": 4}
    config = SlidingWindow(n_kv_heads=2, **more, **ALL)
    assert_correct(config, d_model=D, quick=True)


@pytest.mark.parametrize(
    ("settings", "params"),
    [
        ({"output_gate": "head"}, D * 4),
        ({"output_gate": "element"}, D * D),
        ({"output_gate": "element", "head_dim": 6, "v_head_dim": 5}, D * 4 * 5),
        ({"sinks": True}, 4),
        ({"differential": True}, 4 * 8),
        ({"alibi": True, "logit_softcap": 5.0, "exclusive": True}, 0),
    ],
    ids=str,
)
def test_a_setting_adds_these_parameters_to_plain_attention(settings, params):
    config, added = GroupedQuery(**settings), settings.keys() & NEW
    plain = replace(config, **{name: getattr(GroupedQuery(), name) for name in added})
    assert config.cost(D, 10).params - plain.cost(D, 10).params == params
    assert config.cost(D, 10).state_bytes == plain.cost(D, 10).state_bytes


def test_a_setting_that_is_off_does_not_count_in_the_identity_of_a_run():
    def identity(**settings):
        return tiny_study.base.with_mechanisms(GroupedQuery(**settings)).identity("data")

    assert not NEW & drop_unset(GroupedQuery().to_dict()).keys()
    plain = {"kind", "n_heads", "n_kv_heads", "rope_theta", "kernel"}  # in records of all versions
    assert drop_unset(GroupedQuery().to_dict()).keys() == plain
    assert drop_unset(SlidingWindow().to_dict()).keys() == plain | {"window"}
    assert len({identity(), *(identity(**settings) for settings in SETTINGS)}) == 1 + len(SETTINGS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output_gate": "heads"}, "output_gate: .*'heads'"),
        ({"logit_softcap": 0.0}, "logit_softcap: must be positive and finite, got 0.0"),
        ({"logit_softcap": -5.0}, "logit_softcap: must be positive and finite, got -5.0"),
        ({"sinks": 1}, "sinks: "),
        (
            {"differential": True, "n_kv_heads": 1},
            "n_kv_heads: must be even for pairs of heads, got 1",
        ),
    ],
)
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        GroupedQuery.from_dict({"kind": "grouped_query", **settings})


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
ALL_OF_LATENTS = SMALL | {"output_gate": "element", "sinks": True, "logit_softcap": 0.7}


def made(dropout=0.0, **settings):
    torch.manual_seed(0)
    mechanism = MLA(**settings).build(32, dropout).double()
    torch.nn.init.normal_(mechanism.kv_a_layernorm.weight)
    if mechanism.sinks is not None:
        torch.nn.init.normal_(mechanism.sinks)
    return mechanism


def latents_by_hand(mechanism, x_BTD):
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


@pytest.mark.parametrize("settings", [*SHAPES, ALL_OF_LATENTS])
@pytest.mark.parametrize("tokens", [1, 2, 13])
@pytest.mark.parametrize("kernel", ["plain", "auto", "blocked"])
def test_it_is_its_definition_with_gradients(settings, tokens, kernel):
    mechanism = made(**settings, kernel=kernel)
    x_BTD = torch.randn(2, tokens, 32, dtype=torch.float64)
    assert_is_definition(mechanism, latents_by_hand, x_BTD)


@torch.no_grad()
@pytest.mark.parametrize("settings", [*SHAPES, ALL_OF_LATENTS])
def test_the_absorbed_step_equals_the_definition(settings):
    mechanism = made(**settings)
    x_BTD = torch.randn(2, 13, 32, dtype=torch.float64)
    _, state = mechanism.prefill(x_BTD[:, :12], capacity=13)
    y_BD, state = mechanism.step(x_BTD[:, 12], state)
    assert_close(y_BD, latents_by_hand(mechanism, x_BTD)[:, 12])
    assert state.seen == 13


def test_all_settings_of_latents_together_keep_the_promises():
    yarn = Yarn(factor=4.0, mscale=1.0, mscale_all_dim=0.8, original_max_position_embeddings=16)
    assert_correct(MLA(**ALL_OF_LATENTS, rope_scaling=yarn), d_model=32, quick=True)


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
    assert_close(mechanism(x_BTD), latents_by_hand(mechanism, x_BTD))
    assert_close(wide(x_BTD), latents_by_hand(wide, x_BTD))


def test_dropout_of_latents_changes_training_alone():
    mechanism, x_BTD = made(dropout=0.5, **SMALL), torch.randn(2, 9, 32, dtype=torch.float64)
    assert not torch.equal(mechanism(x_BTD), mechanism(x_BTD))
    mechanism.eval()
    assert_close(mechanism(x_BTD), latents_by_hand(mechanism, x_BTD))


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
def test_impossible_settings_of_latents_are_named(settings, message):
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
