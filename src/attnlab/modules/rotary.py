"""Rotary position embedding: a query or key at position t is turned by angles that grow with t.

    y_i     = x_i cos(t w_i) - x_{i+K/2} sin(t w_i)          w_i = theta^(-2i/K),  i < K/2
    y_i+K/2 = x_{i+K/2} cos(t w_i) + x_i sin(t w_i)

so that the product of a query and a key depends on their distance alone. The two halves of a head
are paired, as in Llama; DeepSeek's code pairs neighbours, which is the same up to the order of the
columns of the projections. Su et al. 2021 (arXiv:2104.09864). Other w_i are in `rope_scaling`.

Shapes: ... any, T tokens, K rotary width (even), N width of a head.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from attnlab.config import Problem
from attnlab.kernels.compiled import constant
from attnlab.modules.rope_scaling import RopeScaling, Yarn, unscaled


class Rope(NamedTuple):
    theta: float
    width: int  # how many columns turn
    scaling: RopeScaling | None = None

    @property
    def amplitude(self) -> float:
        return 1.0 if self.scaling is None else self.scaling.amplitude

    @property
    def softmax_factor(self) -> float:
        return 1.0 if self.scaling is None else self.scaling.softmax_factor

    @property
    def exact_length(self) -> int | None:
        return None if self.scaling is None else self.scaling.exact_length

    def frequency(self, length: Tensor) -> Tensor:
        """`frequency_P`, P = K / 2, radians a position in float64, where `length` are read."""
        if self.scaling is None:
            return unscaled(self.theta, self.width, length.device)
        return self.scaling.frequency(self.theta, self.width, length)


class Turn(NamedTuple):
    """By how much the tokens of a stretch are turned; float32, or float64 for float64."""

    cos_TK: Tensor
    sin_TK: Tensor  # with the sign that each half of a head takes it with


def turn(rope: Rope, start: int | Tensor, tokens: int, like: Tensor) -> Turn:
    """Of `tokens` tokens, the first at position `start`, on the device of `like`.

    A start that only the device knows is a tensor (int64, no dimension). Raises ValueError for an
    odd width.
    """
    if rope.width % 2:
        raise ValueError(f"rotary width must be even, got {rope.width}")
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    compiling = torch.compiler.is_compiling()
    exact_length = rope.exact_length
    if isinstance(start, Tensor):
        if compiling or exact_length is not None:
            frequency_K = _frequencies(rope, start + tokens)
        else:
            frequency_K = _kept_frequencies(rope, like.device)
        position_T = start + torch.arange(tokens, device=like.device)
        return _turn_at(rope, position_T, frequency_K, dtype)
    end = start + tokens
    rows = 1 << (end - 1).bit_length()  # few distinct tables, whatever the lengths
    length = 0 if exact_length is None else max(end, exact_length)
    if not compiling:
        table = _kept_table(rope, rows, length, like.device, dtype)
    elif rope.scaling is not None:
        table = _table(rope, rows, length, like.device, dtype)
    else:  # computed in the graph they would be, in float64, for each number that is turned
        table = (_part(i, rope.theta, rope.width, rows, like.device, dtype) for i in (0, 1))
    return Turn(*(each_TK[start:end] for each_TK in table))


def rotate(x_TN: Tensor, turn: Turn) -> Tensor:
    """Turn `x` of shape (..., T, N), computed in float32 or wider, in the dtype of `x`.

    Of a head wider than the turn the first columns are turned, and the others stay.
    """
    width = turn.cos_TK.shape[-1]
    if not width:
        return x_TN
    if width < x_TN.shape[-1]:
        return torch.cat([rotate(x_TN[..., :width], turn), x_TN[..., width:]], -1)
    rolled_TN = x_TN.roll(width // 2, -1)
    return torch.addcmul(x_TN * turn.cos_TK, rolled_TN, turn.sin_TK).to(x_TN.dtype)


def rope_problems(theta: float, scaling: RopeScaling | None) -> Iterator[Problem]:
    """What is wrong with a mechanism's `rope_theta`."""
    if theta <= 0:
        yield Problem("rope_theta", f"must be positive, got {theta}")
    elif theta <= 1 and isinstance(scaling, Yarn):
        yield Problem("rope_theta", f"must be more than 1 for yarn, got {theta}")


def _turn_at(rope: Rope, position_T: Tensor, frequency_K: Tensor, dtype: torch.dtype) -> Turn:
    angle_TK = position_T[:, None] * frequency_K
    turns = angle_TK.cos(), angle_TK.sin()
    if rope.amplitude != 1:
        turns = (each_TK * rope.amplitude for each_TK in turns)
    return Turn(*(each_TK.to(dtype) for each_TK in turns))


def _frequencies(rope: Rope, length: Tensor) -> Tensor:
    """Radians a position; negative for the first half, whose sine is subtracted. In float64."""
    with torch.inference_mode(False), torch.no_grad():
        frequency_P = rope.frequency(length)
        return torch.cat([-frequency_P, frequency_P])


def _table(rope: Rope, rows: int, length: int, device: torch.device, dtype: torch.dtype) -> Turn:
    """Of every position before `rows`, where `length` tokens are read."""
    with torch.inference_mode(False), torch.no_grad():
        position_T = torch.arange(rows, device=device)
        frequency_K = _frequencies(rope, torch.full((), length, device=device))
        return _turn_at(rope, position_T, frequency_K, dtype)


@lru_cache(maxsize=64)
def _kept_frequencies(rope: Rope, device: torch.device) -> Tensor:
    """Where they do not depend on the length."""
    return _frequencies(rope, torch.zeros((), dtype=torch.int64, device=device))


_kept_table = lru_cache(maxsize=64)(_table)


@constant
def _part(
    which: int, theta: float, width: int, rows: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """One of a kept table's two tensors, of frequencies that are not scaled."""
    return _kept_table(Rope(theta, width), rows, 0, device, dtype)[which]
