"""Grouped-query attention equals Llama's in transformers, with unchanged weights.

Nothing differs: projections have the same names, query head h attends to key head h // (H / G),
RoPE pairs the halves of a head.
"""

import pytest
import torch
from support.agreement import DTYPES, assert_agree, computing_in, randomize, tokens
from transformers.masking_utils import create_causal_mask
from transformers.models.llama import modeling_llama
from transformers.models.llama.configuration_llama import LlamaConfig

from attnlab.mechanisms.grouped_query import GroupedQuery

D = 48


def assert_same(x_BTD: torch.Tensor, **settings) -> None:
    ours = GroupedQuery(**settings)
    config = LlamaConfig(
        hidden_size=D,
        num_attention_heads=ours.n_heads,
        num_key_value_heads=ours.n_kv_heads,
        rope_parameters={"rope_type": "default", "rope_theta": ours.rope_theta},
        attn_implementation="eager",
    )
    with computing_in(x_BTD.dtype, modeling_llama):
        theirs = modeling_llama.LlamaAttention(config, layer_idx=0).to(x_BTD.dtype)
        angles = modeling_llama.LlamaRotaryEmbedding(config)(
            x_BTD, torch.arange(x_BTD.shape[1])[None]
        )
        mask = create_causal_mask(config, x_BTD, attention_mask=None, past_key_values=None)
        randomize(theirs)
        assert_agree(
            ours.build(D),
            theirs,
            run=lambda x_BTD: theirs(x_BTD, angles, mask)[0],
            to_ours=lambda weights: weights,
            x_BTD=x_BTD,
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "number"), [(1, 1), (3, 2), (2, 75), (1, 130)])
@pytest.mark.parametrize("n_kv_heads", [6, 3, 2, 1], ids=["MHA", "GQA of 2", "GQA of 3", "MQA"])
def test_it_is_llamas(n_kv_heads, batch, number, dtype):
    assert_same(tokens(batch, number, D, dtype), n_heads=6, n_kv_heads=n_kv_heads)


@pytest.mark.parametrize("kernel", ["plain", "sdpa", "blocked"])
@pytest.mark.parametrize("theta", [100.0, 500_000.0])
def test_it_is_llamas_with_every_kernel_and_theta(kernel, theta):
    x_BTD = tokens(2, 135, D, torch.float64)
    assert_same(x_BTD, n_heads=4, n_kv_heads=2, rope_theta=theta, kernel=kernel)
