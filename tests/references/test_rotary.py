"""RoPE is that of Llama in transformers, and that of DeepSeek up to the order of the columns.

The reference takes its angles in float32: at position t an angle may be off by t * 2^-22 (the
rounding of the frequency, of its power and of the product), and with it the result. Ours takes
them in float64.
"""

import pytest
import torch
from references.agreement import tokens
from transformers.models.deepseek_v3.modeling_deepseek_v3 import apply_rotary_pos_emb_interleave
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from attnlab.blocks.rotary import rotate

PLACES = [(1, 0), (9, 0), (1, 1), (33, 1000), (5, 30_000)]  # tokens, first position


def llama_angles(width: int, theta: float, number: int, start: int):
    config = LlamaConfig(
        hidden_size=width,
        num_attention_heads=1,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
    )
    position_1T = torch.arange(start, start + number)[None]
    return LlamaRotaryEmbedding(config)(torch.zeros(1, dtype=torch.float64), position_1T)


def both(x_BTK: torch.Tensor):
    """Four heads, and the gradient that comes back to their rotation."""
    x_BHTK = torch.stack([x_BTK, -2 * x_BTK, x_BTK.flip(1), x_BTK.flip(2)], 1).requires_grad_()
    return x_BHTK, x_BHTK.detach().roll(1, 2).flip(-1)


@pytest.mark.parametrize(("number", "start"), PLACES)
@pytest.mark.parametrize("theta", [500.0, 10_000.0, 1_000_000.0])
@pytest.mark.parametrize("width", [2, 16, 64])
def test_it_is_llamas(width, theta, number, start):
    x_BHTK, dy_BHTK = both(tokens(2, number, width, torch.float64))
    expected, _ = apply_rotary_pos_emb(x_BHTK, x_BHTK, *llama_angles(width, theta, number, start))
    actual = rotate(x_BHTK, theta, start)
    tolerance = {"rtol": 0, "atol": 8 * (2**-24 + (start + number) * 2**-22)}
    torch.testing.assert_close(actual, expected, **tolerance)
    torch.testing.assert_close(
        torch.autograd.grad(actual, x_BHTK, dy_BHTK),
        torch.autograd.grad(expected, x_BHTK, dy_BHTK),
        **tolerance,
    )


@pytest.mark.parametrize(("number", "start"), PLACES)
def test_it_is_deepseeks_with_neighbours_moved_to_halves(number, start, width=16):
    x_BHTK, _ = both(tokens(2, number, width, torch.float64))
    angles = llama_angles(width, 10_000.0, number, start)
    expected, _ = apply_rotary_pos_emb_interleave(x_BHTK, x_BHTK, *angles)
    halves_BHTK = torch.cat([x_BHTK[..., 0::2], x_BHTK[..., 1::2]], -1)
    atol = 8 * (2**-24 + (start + number) * 2**-22)
    torch.testing.assert_close(rotate(halves_BHTK, 10_000.0, start), expected, rtol=0, atol=atol)
