"""DeepSeek sparse attention selects and attends as DeepSeek-V3.2 does in transformers.

The indexer is the same: the LayerNorm of its key has eps 1e-6, its rotary part comes first and
pairs halves, weights are scaled by (J I)^-0.5. These differ:

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

Shapes: B batch, T tokens, S keys, D model width, K head width.
"""

import pytest
import torch
from support.agreement import (
    DTYPES,
    TOLERANCE,
    Weights,
    assert_agree,
    computing_in,
    randomize,
    tokens,
)
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask
from transformers.models.deepseek_v32 import modeling_deepseek_v32 as modeling
from transformers.models.deepseek_v32.configuration_deepseek_v32 import DeepseekV32Config
from transformers.models.llama import modeling_llama
from transformers.models.llama.configuration_llama import LlamaConfig

from attnlab.kernels.lightning_indexer import index_scores
from attnlab.mechanisms.deepseek_sparse import DeepseekSparse, LightningIndexer

D = 48
INDEX_HEADS = 24
INDEXER = {"wq_b": "q_proj", "wk": "k_proj", "k_norm": "k_norm", "weights_proj": "weights_proj"}
SIZES = [(1, 1, 5), (2, 5, 5), (2, 6, 5), (3, 75, 5), (1, 75, 30), (2, 20, 64)]  # B, T, top_k


def reference_config(ours: DeepseekSparse) -> DeepseekV32Config:
    return DeepseekV32Config(
        hidden_size=D,
        num_attention_heads=ours.n_heads,
        num_key_value_heads=ours.n_heads,
        q_lora_rank=D,
        kv_lora_rank=D // ours.n_heads,
        qk_nope_head_dim=0,
        qk_rope_head_dim=ours.index_rope_width,
        v_head_dim=D // ours.n_heads,
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
    mechanism = ours.build(D).to(x_BTD.dtype)
    mechanism.load_state_dict(weights)
    index_BTS = index_scores(mechanism.indexer(x_BTD, start=0))
    for t in range(ours.top_k, x_BTD.shape[1]):
        best_BS = index_BTS[:, t, : t + 1].sort(descending=True).values
        assert (best_BS[:, ours.top_k - 1] - best_BS[:, ours.top_k]).min() > 1e-6, f"query {t}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "number", "top_k"), SIZES)
@pytest.mark.parametrize("n_heads", [3, 6])
def test_with_one_key_value_head_it_is_deepseeks(n_heads, batch, number, top_k, dtype):
    head_dim = D // n_heads
    ours = DeepseekSparse(
        n_heads=n_heads,
        n_kv_heads=1,
        top_k=top_k,
        index_n_heads=INDEX_HEADS,
        index_head_dim=20,
        index_rope_head_dim=head_dim,
    )
    config, x_BTD = reference_config(ours), tokens(batch, number, D, dtype)

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
            theirs.q_a_proj.weight.copy_(torch.eye(D))
            theirs.kv_b_proj.weight.copy_(torch.eye(head_dim).repeat(n_heads, 1))
        angles, mask = angles_and_mask(config, x_BTD)
        assert_no_choice_is_open(ours, to_ours(dict(theirs.named_parameters())), x_BTD)
        assert_agree(
            ours.build(D),
            theirs,
            run=lambda x_BTD: theirs(x_BTD, angles, mask)[0],
            to_ours=to_ours,
            x_BTD=x_BTD,
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "number", "top_k"), SIZES)
@pytest.mark.parametrize("n_kv_heads", [2, 4])
def test_grouped_heads_see_what_deepseeks_indexer_chooses(n_kv_heads, batch, number, top_k, dtype):
    ours = DeepseekSparse(
        n_heads=4, n_kv_heads=n_kv_heads, top_k=top_k, index_n_heads=INDEX_HEADS, index_head_dim=12
    )
    config, x_BTD = reference_config(ours), tokens(batch, number, D, dtype)
    llama_config = LlamaConfig(
        hidden_size=D,
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
        assert_agree(ours.build(D), theirs, run, to_ours, x_BTD)


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", [2, 75])
@pytest.mark.parametrize("index_n_heads", [1, 3])
def test_scores_rank_all_positions_as_deepseeks_do(index_n_heads, number, dtype):
    ours = DeepseekSparse(top_k=number, index_n_heads=index_n_heads, index_head_dim=16)
    config, x_BTD = reference_config(ours), tokens(2, number, D, dtype)
    with computing_in(dtype, modeling):
        theirs = modeling.DeepseekV32Indexer(config, layer_idx=0).to(dtype)
        randomize(theirs)
        angles, mask_B1TS = angles_and_mask(config, x_BTD)
        best_first_BTS = theirs(x_BTD, x_BTD, angles, mask_B1TS[:, 0], position_ids=None).long()

    indexer = LightningIndexer(ours, D).to(dtype)
    weights = {f"indexer.{name}": weight for name, weight in theirs.named_parameters()}
    renamed = renamed_indexer(weights).items()
    indexer.load_state_dict({name.removeprefix("indexer."): weight for name, weight in renamed})
    ranked_BTS = index_scores(indexer(x_BTD, start=0)).gather(-1, best_first_BTS)
    for t in range(1, number):
        rises_Bt = ranked_BTS[:, t, : t + 1].diff()
        assert rises_Bt.max() <= TOLERANCE[dtype], f"query {t}"
