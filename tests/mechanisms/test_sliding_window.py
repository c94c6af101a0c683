"""Sliding-window attention: the window, the ring buffer of decoding, and its settings."""

import pytest
import torch
from support.agreement import assert_is_definition, rotate
from torch.testing import assert_close

from attnlab.config import ConfigError
from attnlab.mechanism import state_bytes
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.sliding_window import SlidingWindow

W = 7


def made(window=W, n_heads=4, n_kv_heads=2, kernel="auto", dropout=0.0):
    torch.manual_seed(0)
    config = SlidingWindow(window=window, n_heads=n_heads, n_kv_heads=n_kv_heads, kernel=kernel)
    return config.build(32, dropout).double()


def by_hand(mechanism, x_BTD):
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
def test_it_is_its_definition_with_gradients(tokens, n_kv_heads, kernel):
    mechanism = made(n_kv_heads=n_kv_heads, kernel=kernel)
    x_BTD = torch.randn(2, tokens, 32, dtype=torch.float64)
    assert_is_definition(mechanism, by_hand, x_BTD)


def test_a_token_reaches_exactly_the_next_window_tokens():
    mechanism, x_BTD = made(), torch.randn(1, 4 * W, 32, dtype=torch.float64)
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
    sliding = made(window=20)
    full = GroupedQuery(n_heads=4, n_kv_heads=2).build(32).double()
    full.load_state_dict(sliding.state_dict())
    x_BTD = torch.randn(2, tokens, 32, dtype=torch.float64)
    assert_close(sliding(x_BTD), full(x_BTD))


def test_decoding_keeps_no_more_than_the_window():
    mechanism, x_BTD = made(), torch.randn(1, 5 * W, 32, dtype=torch.float64)
    _, state = mechanism.prefill(x_BTD, capacity=10_000)
    assert state_bytes(state) == 8 * 2 * 16 * W  # 2 key-value heads of 8, keys and values
    assert mechanism.config.cost(32, 10_000, itemsize=8).state_bytes == state_bytes(state)


def test_dropout_changes_training_alone():
    mechanism, x_BTD = made(dropout=0.5), torch.randn(2, 3 * W, 32, dtype=torch.float64)
    assert not torch.equal(mechanism(x_BTD), mechanism(x_BTD))
    mechanism.eval()
    assert_close(mechanism(x_BTD), by_hand(mechanism, x_BTD))


@pytest.mark.parametrize("training", [True, False])
def test_one_run_uses_one_kernel(training):
    mechanism = made(dropout=0.1).train(training)
    assert mechanism.kernel_on(torch.device("cuda"), torch.bfloat16) == "banded"
    assert made().train(training).kernel_on(torch.device("cuda"), torch.bfloat16) == "flex"
    assert mechanism.kernel_on(torch.device("cpu"), torch.float32) == "banded"


def test_flex_with_dropout_is_refused_before_anything_is_built():
    with pytest.raises(ConfigError, match=r"^kernel: .*not support dropout of attention weights"):
        made(kernel="flex", dropout=0.1)


def test_flex_on_a_cpu_is_refused():
    with pytest.raises(ValueError, match="needs CUDA, and the device is cpu"):
        made(kernel="flex")(torch.zeros(1, 2, 32, dtype=torch.float64))


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
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        SlidingWindow(**settings)


@pytest.mark.parametrize(("width", "message"), [(30, "4 does not divide"), (12, "3 is odd")])
def test_a_width_that_does_not_fit_is_named(width, message):
    (problem,) = SlidingWindow().problems_at(width)
    assert problem.path == "n_heads"
    assert message in problem.message
    assert not list(SlidingWindow().problems_at(32))
