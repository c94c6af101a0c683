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
from attnlab.kernels import block_attention, compressed_attention
from attnlab.mechanisms.moba import MOBA
from attnlab.mechanisms.nsa import NSA

D = 24


def heads(mechanism, name, x_TD, rotated=True):
    """Return a list of one tensor (T, K) per head."""
    projection = getattr(mechanism, f"{name}_proj")
    width = getattr(mechanism, "v_head_dim" if name == "v" else "head_dim", mechanism.head_dim)
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


def compress(mlp, x_TK, first, size):
    """Return one compressed token, of the tokens from `first` on."""
    words = [x_TK[first + place] + mlp.encoding[place] for place in range(size)]
    inner = mlp.in_proj.weight @ torch.cat(words)
    return mlp.out_proj.weight @ (inner * torch.sigmoid(inner))


@by_sequence
def nsa(mechanism, x_TD):
    config, groups = mechanism.config, mechanism.config.n_kv_heads
    size, stride, length = config.compression_size, config.compression_stride, config.block_size
    q, rotated = (heads(mechanism, "q", x_TD, rotated=turn) for turn in (False, True))
    k, turned = (heads(mechanism, "k", x_TD, rotated=turn) for turn in (False, True))
    v = heads(mechanism, "v", x_TD, rotated=False)
    outputs = []
    for t in range(len(x_TD)):
        row, gates = [], torch.sigmoid(mechanism.g_proj(x_TD[t]))
        starts = range(0, t + 2 - size, stride)
        for g in range(groups):
            small_k = [compress(mechanism.k_compression, k[g], first, size) for first in starts]
            small_v = [compress(mechanism.v_compression, v[g], first, size) for first in starts]
            members = range(g * config.n_heads // groups, (g + 1) * config.n_heads // groups)
            score = dict.fromkeys(range(t // length + 1), 0.0)
            coarse = {h: torch.zeros_like(q[h][t]) for h in members}
            for h in members if starts else ():
                products = torch.stack([q[h][t] @ key for key in small_k]) / len(q[h][t]) ** 0.5
                weights = products.softmax(0)
                coarse[h] = sum(w * value for w, value in zip(weights, small_v, strict=True))
                for weight, first in zip(weights.tolist(), starts, strict=True):
                    for token in range(first, first + size):
                        score[token // length] += weight / stride
            for fixed in {0, t // length, max(0, t // length - 1)}:
                score[fixed] = float("inf")
            chosen = sorted(score, key=lambda j: (round(score[j], 9), j))[-config.top_k :]
            near = range(max(0, t - config.window + 1), t + 1)
            blocks = [s for s in range(t + 1) if s // length in chosen]
            for h in members:
                fine = read(rotated[h][t], turned[groups + g], v[groups + g], blocks)
                local = read(rotated[h][t], turned[2 * groups + g], v[2 * groups + g], near)
                branches = coarse[h], fine, local
                row.append(sum(gates[b * config.n_heads + h] * y for b, y in enumerate(branches)))
        outputs.append(mechanism.o_proj(torch.cat(row)))
    return torch.stack(outputs)


SMALL = {"compression_stride": 2, "window": 3}
NSAS = [
    NSA(compression_size=4, block_size=4, top_k=4, n_kv_heads=2, **SMALL),
    NSA(compression_size=2, block_size=2, top_k=5, n_kv_heads=1, **SMALL),
    NSA(compression_size=6, block_size=2, top_k=2, **SMALL),
    NSA(compression_size=2, block_size=6, top_k=1, n_heads=2, n_kv_heads=1, head_dim=6, **SMALL),
]


@pytest.mark.parametrize("config", NSAS, ids=lambda config: f"top {config.top_k}")
@pytest.mark.parametrize("number", [7, 24])
def test_nsa_is_its_definition_with_gradients_and_in_decoding(config, number):
    assert_is(config, nsa, number)


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
    monkeypatch.setattr(compressed_attention, "UNROLLED", 1)
    for config, definition in ((MOBAS[1], moba), (NSAS[0], nsa)):
        mechanism, x_BTD = drawn(config, D), tokens(1, 23, D, torch.float64)
        assert_close(mechanism(x_BTD), definition(mechanism, x_BTD), "blocks of 8 queries")


@pytest.mark.parametrize("config", [MOBAS[0], NSAS[0]], ids=["moba", "nsa"])
def test_dropout_of_weights_is_the_same_in_the_backward_pass_and_right_on_average(config):
    torch.manual_seed(0)
    mechanism = config.build(D, dropout=0.3).double()
    x_BTD = tokens(2, 13, D, torch.float64).requires_grad_()

    def seeded(x_BTD):
        torch.manual_seed(3)
        return mechanism(x_BTD)

    direction_BTD = tokens(2, 13, D, torch.float64).roll(1, 0)
    (slope_BTD,) = torch.autograd.grad((seeded(x_BTD) * direction_BTD).sum(), x_BTD)
    with torch.no_grad():
        step_BTD = 1e-6 * tokens(2, 13, D, torch.float64).roll(1, -1)
        ends = (seeded(x_BTD + sign * step_BTD) for sign in (1, -1))
        after, before = ((y_BTD * direction_BTD).sum() for y_BTD in ends)
        torch.testing.assert_close((after - before) / 2, (slope_BTD * step_BTD).sum())
        mean_BTD = torch.stack([mechanism(x_BTD) for _ in range(200)]).mean(0)
        whole_BTD = mechanism.eval()(x_BTD)
    assert (mean_BTD - whole_BTD).norm() < 0.12 * whole_BTD.norm()


@torch.no_grad()
def test_equal_scores_select_the_most_recent_blocks():
    selection = block_attention.best(
        torch.tensor([1.0, 2.0, 1.0, 1.0, 5.0]), torch.tensor([True, True, True, True, False]), 3
    )
    assert selection.block_Xn[selection.is_found_Xn].tolist() == [1, 3, 2]


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (MOBA, {"block_size": 0}, "block_size: must be at least 1, got 0"),
        (MOBA, {"top_k": 0}, "top_k: must be at least 1, got 0"),
        (MOBA, {"n_kv_heads": 3}, "n_kv_heads: 3 does not divide n_heads 4"),
        (NSA, {"window": 0}, "window: must be at least 1, got 0"),
        (NSA, {"n_kv_heads": 3}, "n_kv_heads: 3 does not divide n_heads 4"),
        (NSA, {"head_dim": 5}, "head_dim: must be even and positive, got 5"),
        (
            NSA,
            {"block_size": 40},
            "block_size: must be a multiple of compression_stride 16, got 40",
        ),
        (
            NSA,
            {"compression_size": 0},
            "compression_size: must be a multiple of compression_stride",
        ),
        (NSA, {"compression_stride": 0}, "compression_stride: must be at least 1, got 0"),
    ],
)
def test_impossible_settings_are_named(kind, settings, message):
    with pytest.raises(ConfigError, match=message):
        kind(**settings)


def test_a_width_that_does_not_fit_is_named():
    (problem,) = NSA(n_heads=5, n_kv_heads=5).problems_at(32)
    assert str(problem) == "n_heads: 5 does not divide d_model 32"
    (problem,) = NSA(n_heads=4).problems_at(12)
    assert str(problem) == "n_heads: a head of 3 is odd: RoPE rotates pairs of columns"
