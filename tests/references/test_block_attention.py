"""Attention to selected blocks equals loops over tokens, written from the equations of the papers.

Each loop has one sequence, one head and one query at a time, lists of positions in place of masks,
and no block of queries. Selections are made anew at every token from the keys up to it. Of attnlab
it uses the rotation of queries and keys, which has a reference of its own.

Shapes: B batch, T tokens, D model width, K key width, V value width.
"""

import pytest
import torch
from support.agreement import assert_close, assert_is_definition, decoded, drawn, rotate, tokens

from attnlab.config import ConfigError
from attnlab.kernels import block_attention
from attnlab.mechanisms.moba import MOBA

D = 24


def heads(mechanism, name, x_TD, rotated=True):
    """Return a list of one tensor (T, K) per head."""
    projection = getattr(mechanism, f"{name}_proj")
    width = mechanism.v_head_dim if name == "v" else mechanism.head_dim
    of_heads = projection(x_TD).split(width, -1)
    theta = mechanism.config.rope_theta
    return [rotate(x[None], theta)[0] if rotated else x for x in of_heads]


def read(q_K, k_TK, v_TV, positions):
    """Return what a query reads at a list of positions."""
    scores = torch.stack([q_K @ k_TK[s] for s in positions]) / len(q_K) ** 0.5
    return sum(w * v_TV[s] for w, s in zip(scores.softmax(0), positions, strict=True))


def by_sequence(definition):
    return lambda mechanism, x_BTD: torch.stack([definition(mechanism, x_TD) for x_TD in x_BTD])


@by_sequence
def moba(mechanism, x_TD):
    config, size = mechanism.config, mechanism.config.block_size
    q, k = (heads(mechanism, name, x_TD) for name in "qk")
    v = heads(mechanism, "v", x_TD, rotated=False)
    outputs = []
    for t in range(len(x_TD)):
        row = []
        for h in range(config.n_heads):
            g = h * config.n_kv_heads // config.n_heads
            own = t // size
            past = [(q[h][t] @ k[g][i * size : (i + 1) * size].mean(0), i) for i in range(own)]
            chosen = {i for _, i in sorted(past, reverse=True)[: config.top_k - 1]} | {own}
            positions = [s for s in range(t + 1) if s // size in chosen]
            row.append(read(q[h][t], k[g], v[g], positions))
        outputs.append(mechanism.o_proj(torch.cat(row)))
    return torch.stack(outputs)


MOBAS = [
    MOBA(block_size=4, top_k=2),
    MOBA(block_size=4, top_k=3, n_kv_heads=2),
    MOBA(block_size=5, top_k=1, n_kv_heads=1),
    MOBA(block_size=1, top_k=3),
    MOBA(block_size=3, top_k=4, n_heads=3, n_kv_heads=1, head_dim=6, v_head_dim=5, bias=True),
]


@pytest.mark.parametrize("config", MOBAS, ids=lambda config: f"top {config.top_k}")
@pytest.mark.parametrize("number", [1, 4, 23])
def test_moba_is_its_definition_with_gradients_and_in_decoding(config, number):
    assert_is(config, moba, number)


def assert_is(config, definition, number):
    mechanism, x_BTD = drawn(config, D), tokens(1, number, D, torch.float64)
    assert_is_definition(mechanism, definition, x_BTD)
    for prompt in sorted({0, number // 2}):
        expected = definition(mechanism, x_BTD).detach()
        assert_close(decoded(mechanism, x_BTD, prompt), expected, f"after {prompt} tokens")


@torch.no_grad()
def test_a_later_block_of_queries_reads_what_the_definition_reads(monkeypatch):
    monkeypatch.setattr("attnlab.kernels.sparse_attention.BLOCK", 8)
    monkeypatch.setattr(block_attention, "UNROLLED", 1)
    mechanism, x_BTD = drawn(MOBAS[1], D), tokens(1, 23, D, torch.float64)
    assert_close(mechanism(x_BTD), moba(mechanism, x_BTD), "blocks of 8 queries")


def test_dropout_of_weights_is_the_same_in_the_backward_pass_and_right_on_average():
    torch.manual_seed(0)
    mechanism = MOBAS[0].build(D, dropout=0.3).double()
    x_BTD = tokens(2, 13, D, torch.float64).requires_grad_()

    def seeded(x_BTD):
        torch.manual_seed(3)
        return mechanism(x_BTD)

    torch.autograd.gradcheck(lambda x: seeded(x)[:, ::6, :3], x_BTD[:1].detach().requires_grad_())
    with torch.no_grad():
        mean_BTD = torch.stack([mechanism(x_BTD) for _ in range(400)]).mean(0)
        whole_BTD = mechanism.eval()(x_BTD)
    assert (mean_BTD - whole_BTD).norm() < 0.08 * whole_BTD.norm()


@torch.no_grad()
def test_equal_scores_select_the_most_recent_blocks():
    selection = block_attention.best(
        torch.tensor([1.0, 2.0, 1.0, 1.0, 5.0]), torch.tensor([True, True, True, True, False]), 3
    )
    assert selection.block_Xn[selection.is_found_Xn].tolist() == [1, 3, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_size": 0}, "block_size: must be at least 1, got 0"),
        ({"top_k": 0}, "top_k: must be at least 1, got 0"),
        ({"n_kv_heads": 3}, "n_kv_heads: 3 does not divide n_heads 4"),
    ],
)
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        MOBA(**settings)
