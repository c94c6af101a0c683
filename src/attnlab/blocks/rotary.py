"""Rotary position embedding: a query or key at position t is turned by angles that grow with t.

    y_i     = x_i cos(t w_i) - x_{i+K/2} sin(t w_i)          w_i = theta^(-2i/K),  i < K/2
    y_i+K/2 = x_{i+K/2} cos(t w_i) + x_i sin(t w_i)

so that the product of a query and a key depends on their distance alone. The two halves of a head
are paired, as in Llama; DeepSeek's code pairs neighbours, which is the same up to the order of the
columns of the projections. Su et al. 2021 (arXiv:2104.09864).

Shapes: ... any, T tokens, K rotary width (even).
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor


class Turn(NamedTuple):
    """By how much the tokens of a stretch are turned; float32, or float64 for float64."""

    cos_TK: Tensor
    sin_TK: Tensor  # with the sign that each half of a head takes it with


def turn(theta: float, width: int, start: int | Tensor, tokens: int, like: Tensor) -> Turn:
    """Of `tokens` tokens, the first at position `start`, on the device of `like`.

    A start that only the device knows is a tensor (int64, no dimension). Raises ValueError for an
    odd width.
    """
    if width % 2:
        raise ValueError(f"rotary width must be even, got {width}")
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    compiling = torch.compiler.is_compiling()
    if isinstance(start, Tensor):
        frequency_K = (_frequencies if compiling else _kept_frequencies)(theta, width, like.device)
        position_T = start + torch.arange(tokens, device=like.device)
        return _turn_at(position_T, frequency_K, dtype)
    length = 1 << (start + tokens - 1).bit_length()  # few distinct tables, whatever the lengths
    table = (_table if compiling else _kept_table)(theta, width, length, like.device, dtype)
    return Turn(*(each_TK[start : start + tokens] for each_TK in table))


def rotate(x_TK: Tensor, turn: Turn) -> Tensor:
    """Turn `x` of shape (..., T, K), computed in float32 or wider, in the dtype of `x`."""
    half = x_TK.shape[-1] // 2
    return torch.addcmul(x_TK * turn.cos_TK, x_TK.roll(half, -1), turn.sin_TK).to(x_TK.dtype)


def _turn_at(position_T: Tensor, frequency_K: Tensor, dtype: torch.dtype) -> Turn:
    angle_TK = position_T[:, None] * frequency_K
    return Turn(angle_TK.cos().to(dtype), angle_TK.sin().to(dtype))


def _frequencies(theta: float, width: int, device: torch.device) -> Tensor:
    """Radians a position; negative for the first half, whose sine is subtracted. In float64."""
    with torch.inference_mode(False), torch.no_grad():
        pair = torch.arange(0, width, 2, device=device, dtype=torch.float64)
        frequency = theta ** (-pair / width)
        return torch.cat([-frequency, frequency])


def _table(theta: float, width: int, length: int, device: torch.device, dtype: torch.dtype) -> Turn:
    """Of every position before `length`."""
    with torch.inference_mode(False), torch.no_grad():
        position_T = torch.arange(length, device=device)
        return _turn_at(position_T, _frequencies(theta, width, device), dtype)


_kept_frequencies = lru_cache(maxsize=64)(_frequencies)
_kept_table = lru_cache(maxsize=64)(_table)
