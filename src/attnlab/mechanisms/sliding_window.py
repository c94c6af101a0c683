"""Sliding-window attention: a token sees itself and the `window - 1` tokens before it.

    y_t = W_o [ sum_{t - window < s <= t} softmax_s(q_t . k_s / sqrt(K)) v_s ]_heads

with rotary queries and keys. Training costs O(T W) and decoding keeps `window` tokens, however
long the sequence. Beltagy et al. 2020 (arXiv:2004.05150); Jiang et al. 2023 (arXiv:2310.06825).

Shapes: B batch, T tokens, D model width, H query heads, G key-value heads,
K width of a query and a key head, V width of a value head.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attnlab.config import Problem
from attnlab.kernels import flex, windowed_attention
from attnlab.mechanism import Cost, Mechanism, MechanismConfig
from attnlab.modules.cached_heads import CachedHeads
from attnlab.modules.kv_cache import KVCache
from attnlab.modules.rotary_heads import RotaryHeadsConfig


@dataclass(frozen=True, kw_only=True)
class SlidingWindow(RotaryHeadsConfig, MechanismConfig):
    window: int = 256
    kernel: windowed_attention.Kernel = "auto"

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if self.window < 1:
            yield Problem("window", f"must be at least 1, the token itself, got {self.window}")

    def cost(self, d_model: int, context: int, itemsize: int = 2) -> Cost:
        seen, projections = min(context, self.window), self.projection_flops(d_model)
        return Cost(
            params=self.projection_params(d_model),
            flops=projections + self.look_flops(d_model, seen),
            state_bytes=itemsize * self.kv_width(d_model) * seen,
        )

    def build(self, d_model: int, dropout: float = 0.0) -> "SlidingWindowAttention":
        """Raises ConfigError where `flex` is named with dropout, which it does not have."""
        if self.kernel == "flex":
            flex.require_no_dropout(dropout, instead="banded")
        return SlidingWindowAttention(self, d_model, dropout)


class SlidingWindowAttention(CachedHeads, Mechanism[KVCache]):
    def __init__(self, config: SlidingWindow, d_model: int, dropout: float) -> None:
        super().__init__(config, d_model)
        self.config, self.dropout = config, dropout

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> str:
        del dtype
        return windowed_attention.resolve(self.config.kernel, device, self.dropout)

    def _slots(self, capacity: int) -> int:
        return min(capacity, self.config.window)

    def _attend(self, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTV: Tensor) -> Tensor:
        y_BHTV = windowed_attention.windowed_attention(
            q_BHTK,
            k_BGTK,
            v_BGTV,
            window=self.config.window,
            kernel=windowed_attention.resolve(self.config.kernel, q_BHTK.device, self.dropout),
            dropout=self.dropout if self.training else 0.0,
        )
        return self._output(y_BHTV)
