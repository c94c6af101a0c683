"""RoPE equals Llama's in transformers, and DeepSeek's up to the order of the columns.

The reference computes angles in float32: at position t an angle, and so the result, has an error of
up to t * 2^-22 (from rounding the frequency, its power and the product). attnlab computes them in
float64 also for float32 inputs. When the reference is made to do the same, the difference is at
most t * 2^-51.
"""

import pytest
import torch
from support.agreement import DTYPES, computing_in, tokens
from support.rotation import rotate
from transformers.models.deepseek_v3.modeling_deepseek_v3 import apply_rotary_pos_emb_interleave
from transformers.models.llama import modeling_llama
from transformers.models.llama.configuration_llama import LlamaConfig

PLACES = [(1, 0), (9, 0), (1, 1), (33, 1000), (5, 30_000)]  # tokens, first position


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
def test_it_is_llamas(width, theta, number, start, dtype):
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
def test_it_is_deepseeks_with_neighbours_moved_to_halves(number, start, dtype):
    q_BHTK = heads(number, 16, dtype).detach()
    expected, _ = apply_rotary_pos_emb_interleave(
        q_BHTK, q_BHTK, *llama_angles(q_BHTK, 10_000.0, start)
    )
    halves_BHTK = torch.cat([q_BHTK[..., 0::2], q_BHTK[..., 1::2]], -1)
    actual = rotate(halves_BHTK, 10_000.0, start)
    torch.testing.assert_close(actual, expected, **tolerance(q_BHTK, start))
