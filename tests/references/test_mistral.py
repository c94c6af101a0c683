"""Sliding-window attention equals Mistral's in transformers, with unchanged weights.

Nothing differs. In particular transformers' mask keeps the keys s with t - window < s <= t, so in
both the window includes the token itself.
"""

import pytest
import torch
from support.agreement import DTYPES, assert_agree, computing_in, randomize, tokens
from transformers.masking_utils import create_sliding_window_causal_mask
from transformers.models.mistral import modeling_mistral
from transformers.models.mistral.configuration_mistral import MistralConfig

from attnlab.mechanisms.sliding_window import SlidingWindow

D = 48


def assert_same(x_BTD: torch.Tensor, **settings) -> None:
    ours = SlidingWindow(**settings)
    config = MistralConfig(
        hidden_size=D,
        num_attention_heads=ours.n_heads,
        num_key_value_heads=ours.n_kv_heads,
        sliding_window=ours.window,
        rope_parameters={"rope_type": "default", "rope_theta": ours.rope_theta},
        attn_implementation="eager",
    )
    with computing_in(x_BTD.dtype, modeling_mistral):
        theirs = modeling_mistral.MistralAttention(config, layer_idx=0).to(x_BTD.dtype)
        angles = modeling_mistral.MistralRotaryEmbedding(config)(
            x_BTD, torch.arange(x_BTD.shape[1])[None]
        )
        mask = create_sliding_window_causal_mask(
            config, x_BTD, attention_mask=None, past_key_values=None
        )
        randomize(theirs)
        assert_agree(
            ours.build(D),
            theirs,
            run=lambda x_BTD: theirs(x_BTD, angles, mask)[0],
            to_ours=lambda weights: weights,
            x_BTD=x_BTD,
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("window", "number"), [(1, 1), (1, 9), (7, 7), (7, 8), (7, 75), (64, 75), (200, 75)]
)
@pytest.mark.parametrize("n_kv_heads", [6, 2])
def test_it_is_mistrals(n_kv_heads, window, number, dtype):
    x_BTD = tokens(2, number, D, dtype)
    assert_same(x_BTD, n_heads=6, n_kv_heads=n_kv_heads, window=window)


@pytest.mark.parametrize("kernel", ["plain", "banded"])
@pytest.mark.parametrize("window", [5, 64])
def test_it_is_mistrals_with_every_kernel(window, kernel):
    x_BTD = tokens(1, 195, D, torch.float64)
    assert_same(x_BTD, n_heads=4, n_kv_heads=2, window=window, rope_theta=500.0, kernel=kernel)
