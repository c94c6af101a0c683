"""Heads whose first columns alone are rotated equal StableLM's in transformers.

Nothing differs: weights are unchanged. The reference states the rotary part as a fraction of a
head, and does not run with a fraction of zero.
"""

import pytest
import torch
from support.agreement import DTYPES, assert_agree, computing_in, randomize, tokens
from transformers.masking_utils import create_causal_mask
from transformers.models.stablelm import modeling_stablelm as modeling
from transformers.models.stablelm.configuration_stablelm import StableLmConfig

from attnlab.mechanisms.grouped_query import GroupedQuery

D = 48


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", [1, 75])
@pytest.mark.parametrize("rope_head_dim", [2, 4, 12, 16])
def test_it_is_stablelms(rope_head_dim, number, dtype):
    ours = GroupedQuery(n_heads=3, n_kv_heads=1, rope_head_dim=rope_head_dim)
    config = StableLmConfig(
        hidden_size=D,
        num_attention_heads=3,
        num_key_value_heads=1,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": ours.rope_theta,
            "partial_rotary_factor": rope_head_dim / 16,
        },
        attn_implementation="eager",
    )
    x_BTD = tokens(2, number, D, dtype)
    with computing_in(dtype, modeling):
        theirs = modeling.StableLmAttention(config, layer_idx=0).to(dtype)
        angles = modeling.StableLmRotaryEmbedding(config)(x_BTD, torch.arange(number)[None])
        mask = create_causal_mask(config, x_BTD, attention_mask=None, past_key_values=None)
        randomize(theirs)
        assert_agree(
            ours.build(D),
            theirs,
            run=lambda x_BTD: theirs(x_BTD, attention_mask=mask, position_embeddings=angles)[0],
            to_ours=lambda weights: weights,
            x_BTD=x_BTD,
        )
