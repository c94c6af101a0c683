"""Rotary position embedding (RoPE): a query or key at position t is rotated by angles t w_i.

    y_i     = x_i cos(t w_i) - x_{i+K/2} sin(t w_i)          w_i = theta^(-2i/K),  i < K/2
    y_i+K/2 = x_{i+K/2} cos(t w_i) + x_i sin(t w_i)

so that the product of a query and a key depends on their distance alone. Columns i and i + K/2 of a
head are a pair, as in Llama; DeepSeek's code pairs neighbours, which is the same up to the order of
the columns of the projections. `rope_scaling` has other w_i.

Su et al. 2021 (arXiv:2104.09864).

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

LOW = 8192  # rows of a table of cosines and sines
FAR = LOW * LOW  # positions in a compiled decode step are below this


class Rope(NamedTuple):
    """Rotary embedding of a head: its frequencies and the number of columns that it rotates."""

    theta: float
    width: int  # columns that are rotated
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
        """Return `frequency_P`, P = K / 2: radians per position in float64, for `length` tokens."""
        if self.scaling is None:
            return unscaled(self.theta, self.width, length.device)
        return self.scaling.frequency(self.theta, self.width, length)


class Rotation(NamedTuple):
    """Cosines and sines of consecutive positions, in float32, or float64 for float64 inputs."""

    cos_TK: Tensor
    sin_TK: Tensor  # negative for the first half of a head


def rotation(rope: Rope, start: int | Tensor, tokens: int, like: Tensor) -> Rotation:
    """Return the rotation of `tokens` tokens whose first is at position `start`.

    Args:
        rope: the frequencies and the rotary width.
        start: a Python int, or an int64 tensor without dimension that lies on the device.
        tokens: number of tokens.
        like: a tensor on the device, and of the dtype, of what will be rotated.

    Raises:
        ValueError: the rotary width is odd.
    """
    if rope.width % 2:
        raise ValueError(f"rotary width must be even, got {rope.width}")
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    compiling = torch.compiler.is_compiling()
    exact_length = rope.exact_length
    if isinstance(start, Tensor):
        if compiling and rope.scaling is None:
            return looked_up(rope, start + torch.arange(tokens, device=like.device), dtype)
        if compiling or exact_length is not None:
            frequency_K = _frequencies(rope, start + tokens)
        else:
            frequency_K = _cached_frequencies(rope, like.device)
        position_T = start + torch.arange(tokens, device=like.device)
        return _rotation_at(rope, position_T, frequency_K, dtype)
    end = start + tokens
    rows = 1 << (end - 1).bit_length()  # few distinct tables, whatever the lengths
    length = 0 if exact_length is None else max(end, exact_length)
    if not compiling:
        table = _cached_table(rope, rows, length, like.device, dtype)
    elif rope.scaling is not None:
        table = _table(rope, rows, length, like.device, dtype)
    else:  # a compiled graph would compute them in float64 again for each element it rotates
        table = (_part(i, rope.theta, rope.width, rows, like.device, dtype) for i in (0, 1))
    return Rotation(*(each_TK[start:end] for each_TK in table))


def looked_up(rope: Rope, position_T: Tensor, dtype: torch.dtype) -> Rotation:
    """Return the rotation of positions below `FAR`, composed from two tables of constants.

    A compiled graph would compute sines in float64 again for every score that it takes from the
    rotated query. A position is a multiple of `LOW` and a rest, and its angle the sum of theirs.
    """
    device, (theta, width, _) = position_T.device, rope
    tables = [  # sliced: torch's compiler names constants by their function, and slices apart
        [_part(i, theta, width, LOW, device, dtype, step)[:LOW][place_T] for i in (0, 1)]
        for step, place_T in ((LOW, position_T // LOW), (1, position_T % LOW))
    ]
    (cos_TK, sin_TK), (of_rest_TK, sin_of_rest_TK) = tables
    return Rotation(
        cos_TK * of_rest_TK - sin_TK * sin_of_rest_TK,
        sin_TK * of_rest_TK + cos_TK * sin_of_rest_TK,
    )


def rotate(x_TN: Tensor, by: Rotation) -> Tensor:
    """Return `x` of shape (..., T, N) rotated, computed in float32 or wider, in the dtype of `x`.

    If a head is wider than the rotation, its first columns are rotated and the others stay.
    """
    width = by.cos_TK.shape[-1]
    if not width:
        return x_TN
    if width < x_TN.shape[-1]:
        return torch.cat([rotate(x_TN[..., :width], by), x_TN[..., width:]], -1)
    rolled_TN = x_TN.roll(width // 2, -1)
    return torch.addcmul(x_TN * by.cos_TK, rolled_TN, by.sin_TK).to(x_TN.dtype)


def rope_problems(theta: float, scaling: RopeScaling | None) -> Iterator[Problem]:
    """Yield a problem if `rope_theta` is too small."""
    if theta <= 0:
        yield Problem("rope_theta", f"must be positive, got {theta}")
    elif theta <= 1 and isinstance(scaling, Yarn):
        yield Problem("rope_theta", f"must be more than 1 for yarn, got {theta}")


def _rotation_at(
    rope: Rope, position_T: Tensor, frequency_K: Tensor, dtype: torch.dtype
) -> Rotation:
    angle_TK = position_T[:, None] * frequency_K
    parts = angle_TK.cos(), angle_TK.sin()
    if rope.amplitude != 1:
        parts = (each_TK * rope.amplitude for each_TK in parts)
    return Rotation(*(each_TK.to(dtype) for each_TK in parts))


def _frequencies(rope: Rope, length: Tensor) -> Tensor:
    """Return radians per position in float64, negative for the first half of a head."""
    with torch.inference_mode(False), torch.no_grad():
        frequency_P = rope.frequency(length)
        return torch.cat([-frequency_P, frequency_P])


def _table(
    rope: Rope, rows: int, length: int, device: torch.device, dtype: torch.dtype, step: int = 1
) -> Rotation:
    """Return the rotation of `rows` positions 0, step, 2 step, ... of a text of `length` tokens."""
    with torch.inference_mode(False), torch.no_grad():
        position_T = torch.arange(rows, device=device) * step
        frequency_K = _frequencies(rope, torch.full((), length, device=device))
        return _rotation_at(rope, position_T, frequency_K, dtype)


@lru_cache(maxsize=64)
def _cached_frequencies(rope: Rope, device: torch.device) -> Tensor:
    """Return the frequencies of a scaling that does not depend on the length."""
    return _frequencies(rope, torch.zeros((), dtype=torch.int64, device=device))


_cached_table = lru_cache(maxsize=64)(_table)


@constant
def _part(
    which: int,
    theta: float,
    width: int,
    rows: int,
    device: torch.device,
    dtype: torch.dtype,
    step: int = 1,
) -> Tensor:
    """Return one of the two tensors of a cached table, for frequencies without scaling."""
    return _cached_table(Rope(theta, width), rows, 0, device, dtype, step)[which]
