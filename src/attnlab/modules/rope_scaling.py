"""Scalings of RoPE: other frequencies, for texts longer than those of training.

Pair i of the K / 2 pairs of columns of a head rotates by w_i = theta^(-2i/K) radians per position.
With L the training length, s a factor and l the current length:

    linear    w_i / s
    dynamic   w_i of theta (s l / L - s + 1)^(K / (K - 2)) once l exceeds L
    yarn      (1 - r_i) w_i + r_i w_i / s       r_i rises from 0 at `beta_fast` rotations within L
              to 1 at `beta_slow`, linearly in i; scores grow with ln s
    llama3    (1 - r_i) w_i + r_i w_i / s       r_i rises from 0 at `high_freq_factor` rotations
              within L to 1 at `low_freq_factor`, linearly in the number of rotations

The last two leave the high frequencies, which distinguish nearby positions, unchanged.

Chen et al. 2023 (arXiv:2306.15595) for linear; Peng et al. 2023 (arXiv:2309.00071) for dynamic and
yarn; Llama team 2024 (arXiv:2407.21783). Names are those of the transformers library.
Shapes: P = K / 2 pairs.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attnlab.config import Choice, Problem


def unscaled(theta: float | Tensor, width: int, device: torch.device) -> Tensor:
    """Return `frequency_P`: radians per position in float64."""
    pair_P = torch.arange(0, width, 2, device=device, dtype=torch.float64)
    return theta ** (-pair_P / width)


@dataclass(frozen=True, kw_only=True)
class RopeScaling(Choice, ABC):
    """Change of the frequencies of RoPE by a factor s."""

    factor: float  # s: intended length as a multiple of the training length; at least 1

    def problems(self) -> Iterator[Problem]:
        if self.factor < 1:
            yield Problem("factor", f"must be at least 1, got {self.factor}")

    @abstractmethod
    def frequency(self, theta: float, width: int, length: Tensor) -> Tensor:
        """Return `frequency_P` in float64 on the device of `length`, for a text of `length` tokens.

        `length` is an int64 tensor without dimension.
        """

    @property
    def amplitude(self) -> float:
        """Factor on the rotated columns of a query and of a key."""
        return 1.0

    @property
    def softmax_factor(self) -> float:
        """Factor on the scale of the softmax."""
        return 1.0

    @property
    def exact_length(self) -> int | None:
        """Length up to which frequencies do not depend on the length; None: they never do."""
        return None


@dataclass(frozen=True, kw_only=True)
class Linear(RopeScaling):
    """Position interpolation: all frequencies divided by `factor`."""

    def frequency(self, theta: float, width: int, length: Tensor) -> Tensor:
        return unscaled(theta, width, length.device) / self.factor


@dataclass(frozen=True, kw_only=True)
class Dynamic(RopeScaling):
    """NTK-aware scaling by the current length; it begins beyond the original length.

    Beyond it decoding does not equal `forward`: a cached key keeps the rotation for the length at
    which it was written, while `forward` rotates all keys for the length of the whole sequence.
    """

    original_max_position_embeddings: int  # training length in tokens

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from _length_problems(self.original_max_position_embeddings)

    def frequency(self, theta: float, width: int, length: Tensor) -> Tensor:
        original = self.original_max_position_embeddings
        stretch = self.factor * length.double().clamp(min=original) / original - self.factor + 1
        exponent = width / max(width - 2, 1)  # with a width of 2, w_0 is 1 whatever theta
        return unscaled(theta * stretch**exponent, width, length.device)

    @property
    def exact_length(self) -> int:
        return self.original_max_position_embeddings


@dataclass(frozen=True, kw_only=True)
class Yarn(RopeScaling):
    """By frequency: high frequencies stay, low ones are interpolated.

    With `mscale` and `mscale_all_dim`, as in DeepSeek, the growth of the scores is split between
    the rotated columns and the scale of the softmax.
    """

    original_max_position_embeddings: int  # training length in tokens
    beta_fast: float = 32.0  # rotations within the training length above which a pair stays
    beta_slow: float = 1.0  # rotations within the training length below which it is interpolated
    mscale: float | None = None  # weight of ln(factor) in the factor on rotated columns
    mscale_all_dim: float | None = None  # weight of ln(factor) in the scale of the softmax
    attention_factor: float | None = None  # factor on rotated columns; None: from factor and mscale
    truncate: bool = True  # round the range of partly interpolated pairs outwards to whole pairs

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from _length_problems(self.original_max_position_embeddings)
        if not self.beta_fast >= self.beta_slow > 0:
            yield Problem(
                "beta_slow",
                f"must be positive, and no more than beta_fast {self.beta_fast}: "
                f"got {self.beta_slow}",
            )
        for name in ("mscale", "mscale_all_dim", "attention_factor"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                yield Problem(name, f"must be positive, got {value}")

    def frequency(self, theta: float, width: int, length: Tensor) -> Tensor:
        first, last = (
            self._pair_of(rotations, theta, width) for rotations in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, width - 1)
        pair_P = torch.arange(width // 2, device=length.device, dtype=torch.float64)
        ramp_P = ((pair_P - first) / (last - first or 0.001)).clamp(0, 1)
        return _interpolated(unscaled(theta, width, length.device), ramp_P, self.factor)

    @property
    def amplitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale is None or self.mscale_all_dim is None:
            return self._growth(1.0)
        return self._growth(self.mscale) / self._growth(self.mscale_all_dim)

    @property
    def softmax_factor(self) -> float:
        return 1.0 if self.mscale_all_dim is None else self._growth(self.mscale_all_dim) ** 2

    def _pair_of(self, rotations: float, theta: float, width: int) -> float:
        """Return the pair, as a real number, that rotates so often within the training length."""
        period = self.original_max_position_embeddings / (2 * math.pi * rotations)
        return width * math.log(period) / (2 * math.log(theta))

    def _growth(self, mscale: float) -> float:
        return 0.1 * mscale * math.log(self.factor) + 1


@dataclass(frozen=True, kw_only=True)
class Llama3(RopeScaling):
    """By wavelength: short ones stay, those longer than the training length are interpolated."""

    original_max_position_embeddings: int  # training length in tokens
    low_freq_factor: float = 1.0  # rotations within it below which a pair is interpolated
    high_freq_factor: float = 4.0  # rotations within it above which a pair stays

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from _length_problems(self.original_max_position_embeddings)
        if not self.high_freq_factor > self.low_freq_factor > 0:
            yield Problem(
                "low_freq_factor",
                f"must be positive, and less than high_freq_factor {self.high_freq_factor}: "
                f"got {self.low_freq_factor}",
            )

    def frequency(self, theta: float, width: int, length: Tensor) -> Tensor:
        frequency_P = unscaled(theta, width, length.device)
        rotations_P = self.original_max_position_embeddings * frequency_P / (2 * math.pi)
        ramp_P = (self.high_freq_factor - rotations_P) / (
            self.high_freq_factor - self.low_freq_factor
        )
        return _interpolated(frequency_P, ramp_P.clamp(0, 1), self.factor)


def _interpolated(frequency_P: Tensor, ramp_P: Tensor, factor: float) -> Tensor:
    return (1 - ramp_P) * frequency_P + ramp_P * frequency_P / factor


def _length_problems(length: int) -> Iterator[Problem]:
    if length < 1:
        yield Problem("original_max_position_embeddings", f"must be at least 1, got {length}")
