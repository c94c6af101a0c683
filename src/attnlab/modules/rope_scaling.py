"""Scalings of RoPE: other frequencies, so that a model reads further than it was trained to.

Of the K / 2 pairs of a head pair i turns by w_i = theta^(-2i/K) radians a position. With L the
length of the training, s a factor and l the length that is being read:

    linear    w_i / s
    dynamic   w_i of theta (s l / L - s + 1)^(K / (K - 2)) once l exceeds L
    yarn      (1 - r_i) w_i + r_i w_i / s       r_i rises from 0 at `beta_fast` turns in L to 1 at
              `beta_slow`, linearly in i; scores grow with ln s
    llama3    (1 - r_i) w_i + r_i w_i / s       r_i rises from 0 at `high_freq_factor` turns in L to
              1 at `low_freq_factor`, linearly in the number of turns

so that what turns often, and tells near from far, is left alone by the last two.

Chen et al. 2023 (arXiv:2306.15595); Peng et al. 2023 (arXiv:2309.00071), also of the dynamic one;
Llama team 2024 (arXiv:2407.21783). Names are those of the transformers library.
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
    """`frequency_P`: radians a position, in float64."""
    pair_P = torch.arange(0, width, 2, device=device, dtype=torch.float64)
    return theta ** (-pair_P / width)


@dataclass(frozen=True, kw_only=True)
class RopeScaling(Choice, ABC):
    factor: float  # s: how many times further than the training

    def problems(self) -> Iterator[Problem]:
        if self.factor < 1:
            yield Problem("factor", f"must be at least 1, got {self.factor}")

    @abstractmethod
    def frequency(self, theta: float, width: int, length: Tensor) -> Tensor:
        """`frequency_P` in float64, where `length` tokens are read: int64, no dimension.

        They lie on the device of `length`.
        """

    @property
    def amplitude(self) -> float:
        """By how much a query and a key are stretched as they turn."""
        return 1.0

    @property
    def softmax_factor(self) -> float:
        """What the scale of the softmax is multiplied by."""
        return 1.0

    @property
    def exact_length(self) -> int | None:
        """Frequencies are the same for all lengths up to this one; None: for all lengths."""
        return None


@dataclass(frozen=True, kw_only=True)
class Linear(RopeScaling):
    """Position interpolation: every position counts `factor` times less."""

    def frequency(self, theta: float, width: int, length: Tensor) -> Tensor:
        return unscaled(theta, width, length.device) / self.factor


@dataclass(frozen=True, kw_only=True)
class Dynamic(RopeScaling):
    """NTK-aware by the current length: nothing changes up to the original length, then all does.

    Beyond it decoding is not what `forward` gives: a cached key keeps the turn of the length at
    which it came, and in `forward` all have that of the whole sequence.
    """

    original_max_position_embeddings: int

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from _length_problems(self.original_max_position_embeddings)

    def frequency(self, theta: float, width: int, length: Tensor) -> Tensor:
        original = self.original_max_position_embeddings
        stretch = self.factor * length.double().clamp(min=original) / original - self.factor + 1
        exponent = width / max(width - 2, 1)  # the only pair of a width of 2 turns by 1 anyway
        return unscaled(theta * stretch**exponent, width, length.device)

    @property
    def exact_length(self) -> int:
        return self.original_max_position_embeddings


@dataclass(frozen=True, kw_only=True)
class Yarn(RopeScaling):
    """By parts: pairs that turn often stay, those that turn seldom are interpolated.

    With `mscale` and `mscale_all_dim`, as DeepSeek has them, what scores grow by is split between
    the turning columns and the scale of the softmax.
    """

    original_max_position_embeddings: int
    beta_fast: float = 32.0  # turns in the original length above which a pair stays
    beta_slow: float = 1.0  # and below which it is interpolated
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: float | None = None  # the amplitude; None: by the factor and the mscales
    truncate: bool = True  # the range of pairs in between begins and ends at whole ones

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
            self._pair_of(turns, theta, width) for turns in (self.beta_fast, self.beta_slow)
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

    def _pair_of(self, turns: float, theta: float, width: int) -> float:
        """The pair, whole or not, that turns so often in the original length."""
        period = self.original_max_position_embeddings / (2 * math.pi * turns)
        return width * math.log(period) / (2 * math.log(theta))

    def _growth(self, mscale: float) -> float:
        return 0.1 * mscale * math.log(self.factor) + 1


@dataclass(frozen=True, kw_only=True)
class Llama3(RopeScaling):
    """By wavelength: short ones stay, those longer than the original length are interpolated."""

    original_max_position_embeddings: int
    low_freq_factor: float = 1.0  # turns in the original length below which a pair is interpolated
    high_freq_factor: float = 4.0  # and above which it stays

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
        turns_P = self.original_max_position_embeddings * frequency_P / (2 * math.pi)
        ramp_P = (self.high_freq_factor - turns_P) / (self.high_freq_factor - self.low_freq_factor)
        return _interpolated(frequency_P, ramp_P.clamp(0, 1), self.factor)


def _interpolated(frequency_P: Tensor, ramp_P: Tensor, factor: float) -> Tensor:
    return (1 - ramp_P) * frequency_P + ramp_P * frequency_P / factor


def _length_problems(length: int) -> Iterator[Problem]:
    if length < 1:
        yield Problem("original_max_position_embeddings", f"must be at least 1, got {length}")
