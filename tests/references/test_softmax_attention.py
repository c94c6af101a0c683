"""Softmax attention equals that of nine models in transformers: plain, windowed and latent.

Plain and sliding-window attention: weights are unchanged. Llama's query head h attends to key head
h // (H / G), and RoPE pairs the halves of a head. The mask of Mistral keeps the keys s with
t - window < s <= t, so in both the window includes the token itself. Qwen3 normalises queries and
keys with eps 1e-6 and has heads of any width, with biases. Qwen3-Next gates each element of the
heads' outputs; one projection holds queries and gates, and its norms multiply by 1 + w. StableLM
rotates the first columns of each head alone; it states their number as a fraction of a head, and
does not run with zero. gpt-oss has sinks, Gemma 2 a softcap, MPT ALiBi in place of RoPE.

Multi-head latent attention (DeepSeek-V3's, absorbed decoding included): one convention differs, a
setting of the reference: `rope_interleave`, which released weights need, pairs neighbouring columns
of the rotary part, while attnlab pairs its halves. The rotary rows of `q_proj` or `q_b_proj` and of
`kv_a_proj_with_mqa` are reordered. The norms of the latents have eps 1e-6 in both. The reference
never absorbs a projection, so decoding is compared with its full forward pass."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.agreement import DTYPES, Weights, assert_agree, computing_in, randomize, tokens
from torch import Tensor, nn
from transformers import modeling_rope_utils
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.models.deepseek_v3 import modeling_deepseek_v3
from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
from transformers.models.diffllama import modeling_diffllama
from transformers.models.diffllama.configuration_diffllama import DiffLlamaConfig
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.gemma2.configuration_gemma2 import Gemma2Config
from transformers.models.gpt_oss import modeling_gpt_oss
from transformers.models.gpt_oss.configuration_gpt_oss import GptOssConfig
from transformers.models.llama import modeling_llama
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.mistral import modeling_mistral
from transformers.models.mistral.configuration_mistral import MistralConfig
from transformers.models.mpt import modeling_mpt
from transformers.models.mpt.configuration_mpt import MptConfig
from transformers.models.qwen3 import modeling_qwen3
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
from transformers.models.qwen3_next import modeling_qwen3_next
from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig
from transformers.models.stablelm import modeling_stablelm
from transformers.models.stablelm.configuration_stablelm import StableLmConfig

from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.mla import MLA
from attnlab.mechanisms.sliding_window import SlidingWindow
from attnlab.modules.rope_scaling import Linear, Llama3, Yarn

D = 48
MODELS = {  # the module, its names' prefix, and the class of its settings
    "diffllama": (modeling_diffllama, "DiffLlama", DiffLlamaConfig),
    "gemma2": (modeling_gemma2, "Gemma2", Gemma2Config),
    "gpt_oss": (modeling_gpt_oss, "GptOss", GptOssConfig),
    "llama": (modeling_llama, "Llama", LlamaConfig),
    "mistral": (modeling_mistral, "Mistral", MistralConfig),
    "qwen3": (modeling_qwen3, "Qwen3", Qwen3Config),
    "qwen3_next": (modeling_qwen3_next, "Qwen3Next", Qwen3NextConfig),
    "stablelm": (modeling_stablelm, "StableLm", StableLmConfig),
}


def assert_same(
    ours: GroupedQuery | SlidingWindow,
    name: str,
    x_BTD: torch.Tensor,
    to_ours: Callable[[Weights], Weights] = dict,
    layer: int = 0,
    **settings: Any,
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
    windowed = "sliding_window" in settings
    masked = create_sliding_window_causal_mask if windowed else create_causal_mask
    with computing_in(x_BTD.dtype, modeling):
        theirs = getattr(modeling, f"{prefix}Attention")(config, layer_idx=layer).to(x_BTD.dtype)
        position_1T = torch.arange(x_BTD.shape[1])[None]
        angles = getattr(modeling, f"{prefix}RotaryEmbedding")(config)(x_BTD, position_1T)
        mask = masked(config, x_BTD, attention_mask=None, past_key_values=None)
        randomize(theirs)
        assert_agree(
            ours.build(D),
            theirs,
            run=lambda x_BTD: theirs(x_BTD, attention_mask=mask, position_embeddings=angles)[0],
            to_ours=to_ours,
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


def split_gate(weights: Weights) -> Weights:
    """Return Qwen3-Next's weights: the rows of a head of `q_proj` are its query's, then its gate's.

    Its norms multiply by 1 + w, whose gradient is that of w.
    """
    split = dict(weights)
    for name in ("q_norm.weight", "k_norm.weight"):
        if isinstance(weights[name], nn.Parameter):  # else it is the gradient
            split[name] = 1 + weights[name]
    for part in ("weight", "bias"):
        if f"q_proj.{part}" in weights:
            query, gate = weights[f"q_proj.{part}"].unflatten(0, (6, 2, -1)).unbind(1)
            split[f"q_proj.{part}"], split[f"g_proj.{part}"] = (
                query.flatten(0, 1),
                gate.flatten(0, 1),
            )
    return split


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", [1, 75])
@pytest.mark.parametrize("bias", [True, False])
def test_its_output_gate_is_qwen3_nexts(bias, number, dtype):
    ours = GroupedQuery(
        n_heads=6,
        n_kv_heads=2,
        head_dim=16,
        rope_head_dim=4,
        qk_norm=True,
        bias=bias,
        output_gate="element",
    )
    settings = {"head_dim": 16, "attention_bias": bias}
    part = {"partial_rotary_factor": 0.25}
    x_BTD = tokens(2, number, D, dtype)
    assert_same(ours, "qwen3_next", x_BTD, split_gate, rope_parameters=part, **settings)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", [1, 75])
@pytest.mark.parametrize("window", [None, 7])
def test_its_sinks_are_those_of_gpt_oss(window, number, dtype):
    heads = {"n_heads": 6, "n_kv_heads": 2, "head_dim": 8, "bias": True, "sinks": True}
    ours = GroupedQuery(**heads) if window is None else SlidingWindow(window=window, **heads)
    kind = "full_attention" if window is None else "sliding_attention"
    settings = {"head_dim": 8, "attention_bias": True, "layer_types": [kind]}
    settings |= {} if window is None else {"sliding_window": window}
    assert_same(ours, "gpt_oss", tokens(2, number, D, dtype), num_hidden_layers=1, **settings)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", [1, 75])
@pytest.mark.parametrize("n_kv_heads", [2, 6])
def test_its_difference_of_softmaxes_is_diff_llamas(n_kv_heads, number, dtype):
    """In a late layer, where the reference's initial factor is 0.8."""
    ours = GroupedQuery(n_heads=6, n_kv_heads=n_kv_heads, differential=True)
    settings = {"layer": 10_000, "rms_norm_eps": 1e-6}
    assert_same(ours, "diffllama", tokens(2, number, D, dtype), **settings)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", [1, 75])
@pytest.mark.parametrize("softcap", [0.5, 50.0])
def test_its_softcap_is_gemma_2s(softcap, number, dtype):
    ours = GroupedQuery(
        n_heads=6, n_kv_heads=2, head_dim=8, logit_softcap=softcap, softmax_scale=24**-0.5
    )
    settings = {"head_dim": 8, "query_pre_attn_scalar": 24, "attn_logit_softcapping": softcap}
    assert_same(ours, "gemma2", tokens(2, number, D, dtype), **settings)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", [1, 75])
@pytest.mark.parametrize("n_heads", [1, 2, 4, 8])
def test_its_alibi_is_mpts(n_heads, number, dtype):
    """MPT adds m_h (s - T) for the number T of tokens, which the softmax cannot tell from ours."""
    ours = GroupedQuery(n_heads=n_heads, n_kv_heads=n_heads, rope_head_dim=0, alibi=True)
    x_BTD = tokens(2, number, D, dtype)
    future_TS = torch.ones(number, number, dtype=torch.bool).triu(1)
    with computing_in(dtype, modeling_mpt):
        theirs = modeling_mpt.MptAttention(MptConfig(d_model=D, n_heads=n_heads)).to(dtype)
        bias = modeling_mpt.build_mpt_alibi_tensor(n_heads, number).to(dtype)
        randomize(theirs)
        assert_agree(
            ours.build(D),
            theirs,
            run=lambda x_BTD: theirs(x_BTD, bias, attention_mask=future_TS)[0],
            to_ours=lambda weights: {
                **{
                    f"{name}_proj.weight": part
                    for name, part in zip("qkv", weights["Wqkv.weight"].chunk(3), strict=True)
                },
                "o_proj.weight": weights["out_proj.weight"],
            },
            x_BTD=x_BTD,
        )


LATENT_WIDTH = 40


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


def assert_latent_same(x_BTD: Tensor, interleave: bool = True, **settings) -> None:
    ours = MLA(**settings)
    config = DeepseekV3Config(
        hidden_size=LATENT_WIDTH,
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
    with (
        computing_in(x_BTD.dtype, modeling_deepseek_v3),
        computing_in(x_BTD.dtype, modeling_rope_utils),
    ):
        theirs = modeling_deepseek_v3.DeepseekV3Attention(config, layer_idx=0).to(x_BTD.dtype)
        angles = modeling_deepseek_v3.DeepseekV3RotaryEmbedding(config)(
            x_BTD, torch.arange(x_BTD.shape[1])[None]
        )
        mask = create_causal_mask(config, x_BTD, attention_mask=None, past_key_values=None)
        randomize(theirs)
        assert_agree(
            ours.build(LATENT_WIDTH),
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
    assert_latent_same(
        tokens(batch, number, LATENT_WIDTH, dtype), n_heads=3, kv_lora_rank=14, **widths
    )


@pytest.mark.parametrize("kernel", ["plain", "sdpa", "blocked"])
@pytest.mark.parametrize("interleave", [True, False])
def test_it_is_deepseeks_in_both_rotary_layouts_with_every_kernel(interleave, kernel):
    x_BTD = tokens(2, 135, LATENT_WIDTH, torch.float64)
    assert_latent_same(x_BTD, interleave, n_heads=2, rope_theta=300.0, kernel=kernel)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 7, 64])
@pytest.mark.parametrize("interleave", [True, False])
def test_its_queries_are_read_out_of_a_latent_of_their_own(interleave, rank, dtype):
    assert_latent_same(tokens(2, 75, LATENT_WIDTH, dtype), interleave, n_heads=3, q_lora_rank=rank)


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
    x_BTD = tokens(2, 75, LATENT_WIDTH, dtype)
    assert_latent_same(x_BTD, n_heads=3, q_lora_rank=7, rope_scaling=rope_scaling)
