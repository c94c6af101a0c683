"""Plain and sliding-window attention equal that of four models in transformers.

Nothing differs: weights are unchanged. Llama's query head h attends to key head h // (H / G), and
RoPE pairs the halves of a head. The mask of Mistral keeps the keys s with t - window < s <= t, so
in both the window includes the token itself. Qwen3 normalises queries and keys with eps 1e-6 and
has heads of any width, with biases. StableLM rotates the first columns of each head alone; it
states their number as a fraction of a head, and does not run with a fraction of zero.
"""

from typing import Any

import pytest
import torch
from support.agreement import DTYPES, assert_agree, computing_in, randomize, tokens
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.models.llama import modeling_llama
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.mistral import modeling_mistral
from transformers.models.mistral.configuration_mistral import MistralConfig
from transformers.models.qwen3 import modeling_qwen3
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
from transformers.models.stablelm import modeling_stablelm
from transformers.models.stablelm.configuration_stablelm import StableLmConfig

from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.sliding_window import SlidingWindow

D = 48
MODELS = {  # the module, its names' prefix, and the class of its settings
    "llama": (modeling_llama, "Llama", LlamaConfig),
    "mistral": (modeling_mistral, "Mistral", MistralConfig),
    "qwen3": (modeling_qwen3, "Qwen3", Qwen3Config),
    "stablelm": (modeling_stablelm, "StableLm", StableLmConfig),
}


def assert_same(
    ours: GroupedQuery | SlidingWindow, name: str, x_BTD: torch.Tensor, **settings: Any
) -> None:
    """Compare with the attention of a model; `settings` are those of the reference alone."""
    modeling, prefix, config_class = MODELS[name]
    rotary = settings.pop("rope_parameters", {})
    config = config_class(
        hidden_size=D,
        num_attention_heads=ours.n_heads,
        num_key_value_heads=ours.n_kv_heads,
        rope_parameters={"rope_type": "default", "rope_theta": ours.rope_theta, **rotary},
        attn_implementation="eager",
        **settings,
    )
    masked = create_sliding_window_causal_mask if name == "mistral" else create_causal_mask
    with computing_in(x_BTD.dtype, modeling):
        theirs = getattr(modeling, f"{prefix}Attention")(config, layer_idx=0).to(x_BTD.dtype)
        position_1T = torch.arange(x_BTD.shape[1])[None]
        angles = getattr(modeling, f"{prefix}RotaryEmbedding")(config)(x_BTD, position_1T)
        mask = masked(config, x_BTD, attention_mask=None, past_key_values=None)
        randomize(theirs)
        assert_agree(
            ours.build(D),
            theirs,
            run=lambda x_BTD: theirs(x_BTD, attention_mask=mask, position_embeddings=angles)[0],
            to_ours=lambda weights: weights,
            x_BTD=x_BTD,
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "number"), [(1, 1), (3, 2), (2, 75), (1, 130)])
@pytest.mark.parametrize("n_kv_heads", [6, 3, 2, 1], ids=["MHA", "GQA of 2", "GQA of 3", "MQA"])
def test_it_is_llamas(n_kv_heads, batch, number, dtype):
    ours = GroupedQuery(n_heads=6, n_kv_heads=n_kv_heads)
    assert_same(ours, "llama", tokens(batch, number, D, dtype))


@pytest.mark.parametrize("kernel", ["plain", "sdpa", "blocked"])
@pytest.mark.parametrize("theta", [100.0, 500_000.0])
def test_it_is_llamas_with_every_kernel_and_theta(kernel, theta):
    ours = GroupedQuery(n_heads=4, n_kv_heads=2, rope_theta=theta, kernel=kernel)
    assert_same(ours, "llama", tokens(2, 135, D, torch.float64))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("window", "number"), [(1, 1), (1, 9), (7, 7), (7, 8), (7, 75), (64, 75), (200, 75)]
)
@pytest.mark.parametrize("n_kv_heads", [6, 2])
def test_it_is_mistrals(n_kv_heads, window, number, dtype):
    ours = SlidingWindow(n_heads=6, n_kv_heads=n_kv_heads, window=window)
    assert_same(ours, "mistral", tokens(2, number, D, dtype), sliding_window=window)


@pytest.mark.parametrize("kernel", ["plain", "banded"])
@pytest.mark.parametrize("window", [5, 64])
def test_it_is_mistrals_with_every_kernel(window, kernel):
    ours = SlidingWindow(n_heads=4, n_kv_heads=2, window=window, rope_theta=500.0, kernel=kernel)
    assert_same(ours, "mistral", tokens(1, 195, D, torch.float64), sliding_window=window)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", [1, 75])
@pytest.mark.parametrize("head_dim", [4, 16, 30])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_qwens(bias, head_dim, number, dtype):
    ours = GroupedQuery(n_heads=6, n_kv_heads=2, head_dim=head_dim, qk_norm=True, bias=bias)
    x_BTD = tokens(2, number, D, dtype)
    assert_same(ours, "qwen3", x_BTD, head_dim=head_dim, attention_bias=bias)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", [1, 75])
@pytest.mark.parametrize("rope_head_dim", [2, 4, 12, 16])
def test_it_is_stablelms(rope_head_dim, number, dtype):
    ours = GroupedQuery(n_heads=3, n_kv_heads=1, rope_head_dim=rope_head_dim)
    part = {"partial_rotary_factor": rope_head_dim / 16}
    assert_same(ours, "stablelm", tokens(2, number, D, dtype), rope_parameters=part)
