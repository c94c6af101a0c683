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
never absorbs a projection, so decoding is compared with its full forward pass.

RoPE equals Llama's, and DeepSeek's up to the order of the columns. The reference computes angles
in float32: at position t an angle, and so the result, has an error of up to t * 2^-22 (from
rounding the frequency, its power and the product). attnlab computes them in float64 also for
float32 inputs. When the reference is made to do the same, the difference is at most t * 2^-51.
Scalings equal those of transformers in frequencies, amplitude, and Llama's attention, with
settings of the same names but for the original length of the dynamic one,
`max_position_embeddings` there. When a length grows and then shrinks, transformers keeps the
frequencies of the longest one; attnlab uses those of the current one.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.agreement import (
    DTYPES,
    Weights,
    assert_agree,
    assert_close,
    computing_in,
    randomize,
    rotate,
    tokens,
)
from torch import Tensor, nn
from transformers import modeling_rope_utils
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.models.deepseek_v3 import modeling_deepseek_v3
from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import apply_rotary_pos_emb_interleave
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
from attnlab.modules.rope_scaling import Dynamic, Linear, Llama3, RopeScaling, Yarn
from attnlab.modules.rotary import Rope

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


PLACES = [(1, 0), (9, 0), (1, 1), (33, 1000), (5, 30_000)]  # tokens, first position
L, F = 64, torch.float32  # the dtype in which the reference computes theta of a growing length
SCALINGS = [
    Linear(factor=1.0),
    Linear(factor=2.5),
    Dynamic(factor=1.0, original_max_position_embeddings=L),
    Dynamic(factor=1.5, original_max_position_embeddings=L),
    Dynamic(factor=8.0, original_max_position_embeddings=4 * L),
    Yarn(factor=4.0, original_max_position_embeddings=L),
    Yarn(factor=40.0, original_max_position_embeddings=4096, truncate=False),
    Yarn(factor=40.0, original_max_position_embeddings=4096, mscale=1.0, mscale_all_dim=0.7),
    Yarn(factor=1.0, original_max_position_embeddings=4096, mscale=1.0, mscale_all_dim=0.7),
    Yarn(factor=4.0, original_max_position_embeddings=4096, mscale=0.8),
    Yarn(factor=4.0, original_max_position_embeddings=300, beta_fast=9.0, beta_slow=2.0),
    Yarn(factor=4.0, original_max_position_embeddings=300, beta_fast=3.0, beta_slow=3.0),
    Yarn(factor=4.0, original_max_position_embeddings=300, attention_factor=1.7),
    Llama3(factor=8.0, original_max_position_embeddings=8192),
    Llama3(
        factor=4.0, original_max_position_embeddings=L, low_freq_factor=0.5, high_freq_factor=9.0
    ),
]


def llama_angles(x: torch.Tensor, theta: float, start: int):
    number, width = x.shape[-2:]
    config = LlamaConfig(
        hidden_size=width,
        num_attention_heads=1,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
    )
    with computing_in(x.dtype, modeling_llama):
        return modeling_llama.LlamaRotaryEmbedding(config)(
            x, torch.arange(start, start + number)[None]
        )


def heads(number: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    return tokens(2, 3 * number, width, dtype).unflatten(1, (3, number)).requires_grad_()


def tolerance(x: torch.Tensor, start: int) -> dict[str, float]:
    positions = 1 + start + x.shape[-2]
    ulps = 2.0**-51 if x.dtype == torch.float64 else 2.0**-22
    return {"rtol": 0, "atol": x.detach().abs().max().item() * positions * ulps}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("number", "start"), PLACES)
@pytest.mark.parametrize("theta", [500.0, 10_000.0, 1_000_000.0])
@pytest.mark.parametrize("width", [2, 16, 64])
def test_rotation_is_llamas(width, theta, number, start, dtype):
    q_BHTK = heads(number, width, dtype)
    expected, _ = modeling_llama.apply_rotary_pos_emb(
        q_BHTK, q_BHTK, *llama_angles(q_BHTK, theta, start)
    )
    actual = rotate(q_BHTK, theta, start)
    torch.testing.assert_close(actual, expected, **tolerance(q_BHTK, start))

    back_BHTK = q_BHTK.detach().roll(1, 1)
    torch.testing.assert_close(
        torch.autograd.grad(actual, q_BHTK, back_BHTK),
        torch.autograd.grad(expected, q_BHTK, back_BHTK),
        **tolerance(q_BHTK, start),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("number", "start"), PLACES)
def test_rotation_is_deepseeks_with_neighbours_moved_to_halves(number, start, dtype):
    q_BHTK = heads(number, 16, dtype).detach()
    expected, _ = apply_rotary_pos_emb_interleave(
        q_BHTK, q_BHTK, *llama_angles(q_BHTK, 10_000.0, start)
    )
    halves_BHTK = torch.cat([q_BHTK[..., 0::2], q_BHTK[..., 1::2]], -1)
    actual = rotate(halves_BHTK, 10_000.0, start)
    torch.testing.assert_close(actual, expected, **tolerance(q_BHTK, start))


def llama_config(scaling: RopeScaling, theta: float, **settings) -> LlamaConfig:
    given = {name: value for name, value in scaling.to_dict().items() if value is not None}
    original = given.get("original_max_position_embeddings", 2048)
    if isinstance(scaling, Dynamic):
        del given["original_max_position_embeddings"]
    return LlamaConfig(
        max_position_embeddings=original,
        rope_parameters={"rope_type": given.pop("kind"), "rope_theta": theta, **given},
        attn_implementation="eager",
        **settings,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "theta"), [(4, 500.0), (64, 10_000.0), (128, 500_000.0)])
@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_frequencies_and_amplitude_are_theirs_at_every_length(scaling, theta, width, dtype):
    config = llama_config(scaling, theta, hidden_size=width, num_attention_heads=1)
    ours = Rope(theta, width, scaling)
    for length in (1, L - 1, L, L + 1, 4 * L, 4 * L + 1, 5000, 100_000):
        with computing_in(dtype, modeling_rope_utils):
            expected, amplitude = modeling_rope_utils.ROPE_INIT_FUNCTIONS[scaling.kind()](
                config, torch.device("cpu"), seq_len=length
            )
        tolerance = 1e-12 if dtype == torch.float64 else 1e-6
        torch.testing.assert_close(
            ours.frequency(torch.tensor(length)), expected.double(), rtol=0, atol=tolerance
        )
        assert math.isclose(ours.amplitude, amplitude, rel_tol=1e-12)


@pytest.mark.parametrize(("number", "dtype"), [(75, torch.float32), (200, torch.float64)])
@pytest.mark.parametrize(
    "scaling",
    [s for s in SCALINGS if not isinstance(s, Dynamic) and s.softmax_factor == 1],
    ids=str,
)
def test_it_is_llamas_attention_decoding_past_the_original_length_too(scaling, number, dtype):
    assert_scaled_same(scaling, tokens(2, number, 48, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", [1, 40, L])
def test_the_dynamic_one_is_llamas_attention_up_to_the_original_length(number, dtype):
    assert_scaled_same(
        Dynamic(factor=2.0, original_max_position_embeddings=L), tokens(2, number, 48, dtype)
    )


@torch.no_grad()
@pytest.mark.parametrize("number", [L + 1, 150, 300])
def test_the_dynamic_one_is_llamas_attention_beyond_it_all_at_once(number):
    scaling, x_BTD = (
        Dynamic(factor=2.0, original_max_position_embeddings=L),
        tokens(2, number, 48, F),
    )
    ours, theirs, run = both(scaling, x_BTD)
    ours.load_state_dict(theirs.state_dict())
    assert_close(ours(x_BTD), run(x_BTD), "the output")


def assert_scaled_same(scaling: RopeScaling, x_BTD: torch.Tensor) -> None:
    ours, theirs, run = both(scaling, x_BTD)
    assert_agree(ours, theirs, run, to_ours=lambda weights: weights, x_BTD=x_BTD)


def both(scaling: RopeScaling, x_BTD: torch.Tensor):
    """Return attnlab's attention, Llama's, and the forward pass of Llama's."""
    config = llama_config(
        scaling, 10_000.0, hidden_size=48, num_attention_heads=3, num_key_value_heads=3
    )
    dtype, position_1T = x_BTD.dtype, torch.arange(x_BTD.shape[1])[None]
    with computing_in(dtype, modeling_llama), computing_in(dtype, modeling_rope_utils):
        theirs = modeling_llama.LlamaAttention(config, layer_idx=0).to(dtype)
        angles = modeling_llama.LlamaRotaryEmbedding(config)(x_BTD, position_1T)
    randomize(theirs)
    mask = create_causal_mask(config, x_BTD, attention_mask=None, past_key_values=None)

    def run(x_BTD: torch.Tensor) -> torch.Tensor:
        with computing_in(dtype, modeling_llama):
            return theirs(x_BTD, angles, mask)[0]

    ours = GroupedQuery(n_heads=3, n_kv_heads=3, rope_scaling=scaling)
    return ours.build(48).eval(), theirs, run
