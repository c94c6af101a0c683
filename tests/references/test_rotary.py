"""RoPE equals Llama's in transformers, and DeepSeek's up to the order of the columns.

The reference computes angles in float32: at position t an angle, and so the result, has an error of
up to t * 2^-22 (from rounding the frequency, its power and the product). attnlab computes them in
float64 also for float32 inputs. When the reference is made to do the same, the difference is at
most t * 2^-51.

Scalings equal those of transformers in frequencies, amplitude, and Llama's attention. Settings have
the same names, with two exceptions. The original length of the dynamic scaling is
`max_position_embeddings` in transformers; and DeepSeek's factor on the scale of the softmax is part
of its attention, so `test_softmax_attention` compares it. When a length grows and then shrinks,
transformers keeps the frequencies of the longest one; attnlab uses those of the current length.
"""

import math

import pytest
import torch
from support.agreement import (
    DTYPES,
    assert_agree,
    assert_close,
    computing_in,
    randomize,
    rotate,
    tokens,
)
from transformers import modeling_rope_utils
from transformers.masking_utils import create_causal_mask
from transformers.models.deepseek_v3.modeling_deepseek_v3 import apply_rotary_pos_emb_interleave
from transformers.models.llama import modeling_llama
from transformers.models.llama.configuration_llama import LlamaConfig

from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.modules.rope_scaling import Dynamic, Linear, Llama3, RopeScaling, Yarn
from attnlab.modules.rotary import Rope

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
@pytest.mark.parametrize("width", [4, 64, 128])
@pytest.mark.parametrize("theta", [500.0, 10_000.0, 500_000.0])
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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", [1, 75, 200])
@pytest.mark.parametrize(
    "scaling",
    [s for s in SCALINGS if not isinstance(s, Dynamic) and s.softmax_factor == 1],
    ids=str,
)
def test_it_is_llamas_attention_decoding_past_the_original_length_too(scaling, number, dtype):
    assert_same(scaling, tokens(2, number, 48, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", [1, 40, L])
def test_the_dynamic_one_is_llamas_attention_up_to_the_original_length(number, dtype):
    assert_same(
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


def assert_same(scaling: RopeScaling, x_BTD: torch.Tensor) -> None:
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
