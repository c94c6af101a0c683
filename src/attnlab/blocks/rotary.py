"""Rotary position embedding: a query or key at position t is turned by angles that grow with t.

    y_i     = x_i cos(t w_i) - x_{i+K/2} sin(t w_i)          w_i = theta^(-2i/K),  i < K/2
    y_i+K/2 = x_{i+K/2} cos(t w_i) + x_i sin(t w_i)

so that the product of a query and a key depends on their distance alone. The two halves of a head
are paired, as in Llama; DeepSeek's code pairs neighbours, which is the same up to the order of the
columns of the projections. Su et al. 2021 (arXiv:2104.09864).

Shapes: ... any, T tokens, K rotary width (even).
"""

from functools import lru_cache

import torch
from torch import Tensor


def rotate(x_TK: Tensor, theta: float, start: int = 0) -> Tensor:
    """Turn `x` of shape (..., T, K), whose first token is at position `start`.

    The turn is computed in float32 or wider and returned in the dtype of `x`. Raises ValueError
    for an odd K.
    """
    tokens, width = x_TK.shape[-2:]
    if width % 2:
        raise ValueError(f"rotary width must be even, got {width}")
    length = 1 << (start + tokens - 1).bit_length()  # few distinct tables, whatever the lengths
    double = x_TK.dtype == torch.float64
    table = _table if torch.compiler.is_compiling() else _kept_table
    cos_TK, sin_TK = table(theta, width, length, x_TK.device, double)
    cos_TK, sin_TK = cos_TK[start : start + tokens], sin_TK[start : start + tokens]
    return torch.addcmul(x_TK * cos_TK, x_TK.roll(width // 2, -1), sin_TK).to(x_TK.dtype)


def _table(
    theta: float, width: int, length: int, device: torch.device, double: bool
) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines of every position, (T, K) each."""
    with torch.inference_mode(False), torch.no_grad():
        pair = torch.arange(0, width, 2, device=device, dtype=torch.float64)
        position = torch.arange(length, device=device, dtype=torch.float64)
        angle_TK = position[:, None] * theta ** (-pair / width)
        cos_TK, sin_TK = angle_TK.cos().repeat(1, 2), angle_TK.sin()
        dtype = torch.float64 if double else torch.float32
        return cos_TK.to(dtype), torch.cat([-sin_TK, sin_TK], -1).to(dtype)


_kept_table = lru_cache(maxsize=64)(_table)
