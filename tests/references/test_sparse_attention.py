"""Sparse attention equals loops over tokens, and DeepSeek-V3.2's selection that of transformers.

Attention to selected blocks (MoBA, NSA) is compared with the equations of the papers. Each loop has
one sequence, one head and one query at a time, lists of positions in place of masks, and no block
of queries. Selections are made anew at every token from the keys up to it. Of attnlab it uses the
rotation of queries and keys, which has a reference of its own.

DeepSeek sparse attention selects and attends as DeepSeek-V3.2 does in transformers. The indexer is
the same: the LayerNorm of its key has eps 1e-6, its rotary part comes first and pairs halves,
weights are scaled by (J I)^-0.5. These differ:

- The reference's heads are those of MLA, attnlab's are grouped-query heads. They agree with one
  key-value head: no part without rotary, the rotary key as the key, the latent as the value (an
  up-projection that gives every head the whole latent), and no norms. With more key-value heads the
  comparison is with Llama's heads over the selection of the reference's indexer.
- The reference's queries are low-rank, and its index queries are projected from the same latent.
  attnlab projects both from the token, so the rank is the model width and the first factor 1.
- Rotary pairs of the heads are neighbours in the reference, so rows are reordered as for MLA.
- The indexer's rotary part is as wide as the heads' in the reference; in attnlab it is a setting.
- Among equal scores attnlab selects the most recent position, torch.topk any. With many index heads
  hardly any score is exactly 0, and no query here has such a choice.
- The reference does not train the indexer, and gives only the order of the scores. In both, no
  gradient of the output reaches the indexer.

Shapes: B batch, T tokens, S keys, D model width, K key width, V value width.
"""

import pytest
import torch
from support.agreement import (
    DTYPES,
    TOLERANCE,
    Weights,
    assert_agree,
    assert_close,
    assert_is_definition,
    computing_in,
    decoded,
    drawn,
    randomize,
    rotate,
    tokens,
)
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask
from transformers.models.deepseek_v32 import modeling_deepseek_v32 as modeling
from transformers.models.deepseek_v32.configuration_deepseek_v32 import DeepseekV32Config
from transformers.models.llama import modeling_llama
from transformers.models.llama.configuration_llama import LlamaConfig

from attnlab.config import ConfigError
from attnlab.kernels import block_attention, compressed_attention
from attnlab.kernels.lightning_indexer import index_scores
from attnlab.mechanisms.deepseek_sparse import DeepseekSparse, LightningIndexer
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


WIDTH = 48
INDEX_HEADS = 24
INDEXER = {"wq_b": "q_proj", "wk": "k_proj", "k_norm": "k_norm", "weights_proj": "weights_proj"}
DEEPSEEKS = [(1, 1, 5), (2, 5, 5), (2, 6, 5), (3, 75, 5), (1, 75, 30), (2, 20, 64)]  # B, T, top_k


def reference_config(ours: DeepseekSparse) -> DeepseekV32Config:
    return DeepseekV32Config(
        hidden_size=WIDTH,
        num_attention_heads=ours.n_heads,
        num_key_value_heads=ours.n_heads,
        q_lora_rank=WIDTH,
        kv_lora_rank=WIDTH // ours.n_heads,
        qk_nope_head_dim=0,
        qk_rope_head_dim=ours.index_rope_width,
        v_head_dim=WIDTH // ours.n_heads,
        index_topk=ours.top_k,
        index_head_dim=ours.index_head_dim,
        index_n_heads=ours.index_n_heads,
        rope_parameters={"rope_type": "default", "rope_theta": ours.rope_theta},
        attn_implementation="eager",
    )


def renamed_indexer(weights: Weights) -> Weights:
    """Return the indexer's weights under attnlab's names."""
    paths = [name.split(".") for name in weights if name.startswith("indexer.")]
    return {
        f"indexer.{INDEXER[layer]}.{kind}": weights[f"indexer.{layer}.{kind}"]
        for _, layer, kind in paths
    }


def halves(rows_KD: Tensor) -> Tensor:
    return torch.cat([rows_KD[0::2], rows_KD[1::2]])


def angles_and_mask(config: DeepseekV32Config, x_BTD: Tensor):
    position_1T = torch.arange(x_BTD.shape[1])[None]
    angles = modeling.DeepseekV32RotaryEmbedding(config)(x_BTD, position_1T)
    return angles, create_causal_mask(config, x_BTD, attention_mask=None, past_key_values=None)


@torch.no_grad()
def assert_no_choice_is_open(ours: DeepseekSparse, weights: Weights, x_BTD: Tensor) -> None:
    """Assert that each query's last selected score is clearly above its first rejected one."""
    mechanism = ours.build(WIDTH).to(x_BTD.dtype)
    mechanism.load_state_dict(weights)
    index_BTS = index_scores(mechanism.indexer(x_BTD, start=0))
    for t in range(ours.top_k, x_BTD.shape[1]):
        best_BS = index_BTS[:, t, : t + 1].sort(descending=True).values
        assert (best_BS[:, ours.top_k - 1] - best_BS[:, ours.top_k]).min() > 1e-6, f"query {t}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "number", "top_k"), DEEPSEEKS)
@pytest.mark.parametrize("n_heads", [3, 6])
def test_with_one_key_value_head_it_is_deepseeks(n_heads, batch, number, top_k, dtype):
    head_dim = WIDTH // n_heads
    ours = DeepseekSparse(
        n_heads=n_heads,
        n_kv_heads=1,
        top_k=top_k,
        index_n_heads=INDEX_HEADS,
        index_head_dim=20,
        index_rope_head_dim=head_dim,
    )
    config, x_BTD = reference_config(ours), tokens(batch, number, WIDTH, dtype)

    def to_ours(weights: Weights) -> Weights:
        v_proj, k_proj = weights["kv_a_proj_with_mqa.weight"].split(head_dim)
        q_HKD = weights["q_b_proj.weight"].unflatten(0, (n_heads, head_dim))
        return renamed_indexer(weights) | {
            "q_proj.weight": torch.cat([halves(q_KD) for q_KD in q_HKD]),
            "k_proj.weight": halves(k_proj),
            "v_proj.weight": v_proj,
            "o_proj.weight": weights["o_proj.weight"],
        }

    with computing_in(dtype, modeling):
        theirs = modeling.DeepseekV32Attention(config, layer_idx=0).to(dtype)
        randomize(theirs)
        theirs.q_a_layernorm = theirs.kv_a_layernorm = nn.Identity()
        with torch.no_grad():
            theirs.q_a_proj.weight.copy_(torch.eye(WIDTH))
            theirs.kv_b_proj.weight.copy_(torch.eye(head_dim).repeat(n_heads, 1))
        angles, mask = angles_and_mask(config, x_BTD)
        assert_no_choice_is_open(ours, to_ours(dict(theirs.named_parameters())), x_BTD)
        assert_agree(
            ours.build(WIDTH),
            theirs,
            run=lambda x_BTD: theirs(x_BTD, angles, mask)[0],
            to_ours=to_ours,
            x_BTD=x_BTD,
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "number", "top_k"), DEEPSEEKS)
@pytest.mark.parametrize("n_kv_heads", [2, 4])
def test_grouped_heads_see_what_deepseeks_indexer_chooses(n_kv_heads, batch, number, top_k, dtype):
    ours = DeepseekSparse(
        n_heads=4, n_kv_heads=n_kv_heads, top_k=top_k, index_n_heads=INDEX_HEADS, index_head_dim=12
    )
    config, x_BTD = reference_config(ours), tokens(batch, number, WIDTH, dtype)
    llama_config = LlamaConfig(
        hidden_size=WIDTH,
        num_attention_heads=4,
        num_key_value_heads=n_kv_heads,
        rope_parameters=config.rope_parameters,
        attn_implementation="eager",
    )
    heads = modeling_llama.LlamaAttention(llama_config, layer_idx=0)
    indexer = modeling.DeepseekV32Indexer(config, layer_idx=0)
    theirs = nn.ModuleDict({"heads": heads, "indexer": indexer}).to(dtype)
    randomize(theirs)

    def run(x_BTD: Tensor) -> Tensor:
        index_angles, mask_B1TS = angles_and_mask(config, x_BTD)
        chosen = indexer(x_BTD, x_BTD, index_angles, mask_B1TS[:, 0], position_ids=None)
        is_chosen_BTS = torch.zeros_like(mask_B1TS[:, 0]).scatter(-1, chosen.long(), 1).bool()
        mask_B1TS = mask_B1TS.masked_fill(~is_chosen_BTS[:, None], torch.finfo(dtype).min)
        position_1T = torch.arange(x_BTD.shape[1])[None]
        angles = modeling_llama.LlamaRotaryEmbedding(llama_config)(x_BTD, position_1T)
        return heads(x_BTD, angles, mask_B1TS)[0]

    def to_ours(weights: Weights) -> Weights:
        names = [f"{letter}_proj.weight" for letter in "qkvo"]
        return renamed_indexer(weights) | {name: weights[f"heads.{name}"] for name in names}

    with computing_in(dtype, modeling), computing_in(dtype, modeling_llama):
        assert_no_choice_is_open(ours, to_ours(dict(theirs.named_parameters())), x_BTD)
        assert_agree(ours.build(WIDTH), theirs, run, to_ours, x_BTD)


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", [2, 75])
@pytest.mark.parametrize("index_n_heads", [1, 3])
def test_scores_rank_all_positions_as_deepseeks_do(index_n_heads, number, dtype):
    ours = DeepseekSparse(top_k=number, index_n_heads=index_n_heads, index_head_dim=16)
    config, x_BTD = reference_config(ours), tokens(2, number, WIDTH, dtype)
    with computing_in(dtype, modeling):
        theirs = modeling.DeepseekV32Indexer(config, layer_idx=0).to(dtype)
        randomize(theirs)
        angles, mask_B1TS = angles_and_mask(config, x_BTD)
        best_first_BTS = theirs(x_BTD, x_BTD, angles, mask_B1TS[:, 0], position_ids=None).long()

    indexer = LightningIndexer(ours, WIDTH).to(dtype)
    weights = {f"indexer.{name}": weight for name, weight in theirs.named_parameters()}
    renamed = renamed_indexer(weights).items()
    indexer.load_state_dict({name.removeprefix("indexer."): weight for name, weight in renamed})
    ranked_BTS = index_scores(indexer(x_BTD, start=0)).gather(-1, best_first_BTS)
    for t in range(1, number):
        rises_Bt = ranked_BTS[:, t, : t + 1].diff()
        assert rises_Bt.max() <= TOLERANCE[dtype], f"query {t}"
