"""Normalised queries and keys, heads of any width and biases equal Qwen3's in transformers.

Nothing differs: weights are unchanged. The norms have eps 1e-6 in both.
"""

import pytest
import torch
from support.agreement import DTYPES, assert_agree, computing_in, randomize, tokens
from transformers.masking_utils import create_causal_mask
from transformers.models.qwen3 import modeling_qwen3 as modeling
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config

from attnlab.mechanisms.grouped_query import GroupedQuery

D = 48


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", [1, 75])
@pytest.mark.parametrize("head_dim", [4, 16, 30])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_qwens(bias, head_dim, number, dtype):
    ours = GroupedQuery(n_heads=6, n_kv_heads=2, head_dim=head_dim, qk_norm=True, bias=bias)
    config = Qwen3Config(
        hidden_size=D,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=head_dim,
        attention_bias=bias,
        rope_parameters={"rope_type": "default", "rope_theta": ours.rope_theta},
        attn_implementation="eager",
    )
    x_BTD = tokens(2, number, D, dtype)
    with computing_in(dtype, modeling):
        theirs = modeling.Qwen3Attention(config, layer_idx=0).to(dtype)
        angles = modeling.Qwen3RotaryEmbedding(config)(x_BTD, torch.arange(number)[None])
        mask = create_causal_mask(config, x_BTD, attention_mask=None, past_key_values=None)
        randomize(theirs)
        assert_agree(
            ours.build(D),
            theirs,
            run=lambda x_BTD: theirs(x_BTD, angles, mask)[0],
            to_ours=lambda weights: weights,
            x_BTD=x_BTD,
        )
