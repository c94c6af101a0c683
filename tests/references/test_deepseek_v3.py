"""Multi-head latent attention equals DeepSeek-V3's in transformers, absorbed decoding included.

One convention differs, a setting of the reference: `rope_interleave`, which released weights need,
pairs neighbouring columns of the rotary part, while attnlab pairs its halves. The rotary rows of
`q_proj` or `q_b_proj` and of `kv_a_proj_with_mqa` are reordered.

The norms of the latents have eps 1e-6 in both. The reference never absorbs a projection: it
computes all keys and values, so decoding is compared with its full forward pass.
"""

import pytest
import torch
from support.agreement import DTYPES, Weights, assert_agree, computing_in, randomize, tokens
from torch import Tensor
from transformers import modeling_rope_utils
from transformers.masking_utils import create_causal_mask
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as modeling
from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config

from attnlab.mechanisms.mla import MLA
from attnlab.modules.rope_scaling import Linear, Llama3, Yarn

D = 40


def halves(rows_PD: Tensor) -> Tensor:
    """Return rows of neighbouring pairs reordered: all first ones, then all second ones."""
    return torch.cat([rows_PD[0::2], rows_PD[1::2]])


def de_interleaved(weights: Weights, ours: MLA) -> Weights:
    heads, nope = ours.n_heads, ours.qk_nope_head_dim
    q_name = "q_proj.weight" if ours.q_lora_rank is None else "q_b_proj.weight"
    q_HKD = weights[q_name].unflatten(0, (heads, -1))
    q_proj = torch.cat([torch.cat([q_KD[:nope], halves(q_KD[nope:])]) for q_KD in q_HKD])
    latent, rotary = weights["kv_a_proj_with_mqa.weight"].tensor_split([ours.kv_lora_rank])
    kv_a_proj = torch.cat([latent, halves(rotary)])
    return weights | {q_name: q_proj, "kv_a_proj_with_mqa.weight": kv_a_proj}


def scaling(ours: MLA) -> dict[str, object]:
    if ours.rope_scaling is None:
        return {"rope_type": "default"}
    given = {
        name: value for name, value in ours.rope_scaling.to_dict().items() if value is not None
    }
    return {"rope_type": given.pop("kind"), **given}


def assert_same(x_BTD: Tensor, interleave: bool = True, **settings) -> None:
    ours = MLA(**settings)
    config = DeepseekV3Config(
        hidden_size=D,
        num_attention_heads=ours.n_heads,
        num_key_value_heads=ours.n_heads,
        q_lora_rank=ours.q_lora_rank,
        kv_lora_rank=ours.kv_lora_rank,
        qk_nope_head_dim=ours.qk_nope_head_dim,
        qk_rope_head_dim=ours.qk_rope_head_dim,
        v_head_dim=ours.v_head_dim,
        rope_interleave=interleave,
        rope_parameters={"rope_theta": ours.rope_theta, **scaling(ours)},
        attn_implementation="eager",
    )
    with computing_in(x_BTD.dtype, modeling), computing_in(x_BTD.dtype, modeling_rope_utils):
        theirs = modeling.DeepseekV3Attention(config, layer_idx=0).to(x_BTD.dtype)
        angles = modeling.DeepseekV3RotaryEmbedding(config)(
            x_BTD, torch.arange(x_BTD.shape[1])[None]
        )
        mask = create_causal_mask(config, x_BTD, attention_mask=None, past_key_values=None)
        randomize(theirs)
        assert_agree(
            ours.build(D),
            theirs,
            run=lambda x_BTD: theirs(x_BTD, angles, mask)[0],
            to_ours=lambda weights: de_interleaved(weights, ours) if interleave else weights,
            x_BTD=x_BTD,
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "number"), [(1, 1), (3, 2), (2, 75)])
@pytest.mark.parametrize(
    "widths",
    [
        {"qk_nope_head_dim": 12, "qk_rope_head_dim": 6, "v_head_dim": 10},
        {"qk_nope_head_dim": 4, "qk_rope_head_dim": 8, "v_head_dim": 16},  # values are the widest
    ],
    ids=["narrow values", "wide values"],
)
def test_it_is_deepseeks(widths, batch, number, dtype):
    assert_same(tokens(batch, number, D, dtype), n_heads=3, kv_lora_rank=14, **widths)


@pytest.mark.parametrize("kernel", ["plain", "sdpa", "blocked"])
@pytest.mark.parametrize("interleave", [True, False])
def test_it_is_deepseeks_in_both_rotary_layouts_with_every_kernel(interleave, kernel):
    x_BTD = tokens(2, 135, D, torch.float64)
    assert_same(x_BTD, interleave, n_heads=2, rope_theta=300.0, kernel=kernel)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 7, 64])
@pytest.mark.parametrize("interleave", [True, False])
def test_its_queries_are_read_out_of_a_latent_of_their_own(interleave, rank, dtype):
    assert_same(tokens(2, 75, D, dtype), interleave, n_heads=3, q_lora_rank=rank)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "rope_scaling",
    [
        Yarn(factor=40.0, original_max_position_embeddings=40, mscale=1.0, mscale_all_dim=1.0),
        Yarn(factor=4.0, original_max_position_embeddings=40, mscale=0.7, mscale_all_dim=1.2),
        Yarn(factor=4.0, original_max_position_embeddings=40, mscale_all_dim=0.5),
        Yarn(factor=4.0, original_max_position_embeddings=40),
        Linear(factor=3.0),
        Llama3(factor=4.0, original_max_position_embeddings=40),
    ],
    ids=str,
)
def test_its_rope_is_scaled_and_with_it_the_softmax(rope_scaling, dtype):
    x_BTD = tokens(2, 75, D, dtype)
    assert_same(x_BTD, n_heads=3, q_lora_rank=7, rope_scaling=rope_scaling)
