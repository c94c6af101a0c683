"""Every setting of softmax heads is its equation, in full and in windowed attention."""

from dataclasses import replace

import pytest
import torch
from support import agreement, tiny_study

from attnlab.checks import assert_correct
from attnlab.config import ConfigError, drop_unset
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.sliding_window import SlidingWindow

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


@pytest.mark.parametrize("settings", [{"sinks": True, "exclusive": True}, ALL], ids=["two", "all"])
def test_settings_keep_the_promises(settings):
    assert_correct(GroupedQuery(n_kv_heads=2, **settings), d_model=D, quick=True)


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
