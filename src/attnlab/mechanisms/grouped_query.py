"""Grouped-query attention: groups of query heads share one key and value head.

    y_t = W_o [ sum_{s <= t} softmax_s(q_t . k_s / sqrt(K)) v_s ]_heads

with rotary queries and keys. Its ends are multi-head attention (`n_kv_heads == n_heads`) and
multi-query attention (`n_kv_heads == 1`).

Ainslie et al. 2023 (arXiv:2305.13245); Shazeer 2019 (arXiv:1911.02150); Vaswani et al. 2017
(arXiv:1706.03762).
Shapes: B batch, T tokens, D model width, H query heads, G key-value heads, K head width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from attnlab.blocks.cached_heads import CachedHeads
from attnlab.blocks.kv_cache import KVCache
from attnlab.blocks.rotary_heads import RotaryHeadsConfig
from attnlab.kernels import attention
from attnlab.mechanism import Cost, Mechanism, MechanismConfig


@dataclass(frozen=True, kw_only=True)
class GroupedQuery(RotaryHeadsConfig, MechanismConfig):
    kernel: attention.Kernel = "auto"

    def cost(self, d_model: int, context: int, itemsize: int = 2) -> Cost:
        kv_width, projections = self.kv_width(d_model), self.projection_params(d_model)
        return Cost(
            params=projections,
            flops=2 * projections + 2 * 2 * d_model * context,  # q k v o, then scores and values
            state_bytes=itemsize * 2 * kv_width * context,  # keys and values
        )

    def build(self, d_model: int, dropout: float = 0.0) -> "GroupedQueryAttention":
        return GroupedQueryAttention(self, d_model, dropout)


class GroupedQueryAttention(CachedHeads, Mechanism[KVCache]):
    def __init__(self, config: GroupedQuery, d_model: int, dropout: float) -> None:
        super().__init__(config, d_model)
        self.config, self.dropout = config, dropout

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> str:
        del dtype
        return attention.resolve(self.config.kernel, device, self.dropout)

    def _attend(self, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor) -> Tensor:
        y_BHTK = attention.attention(
            q_BHTK,
            k_BGTK,
            v_BGTK,
            kernel=attention.resolve(self.config.kernel, q_BHTK.device, self.dropout),
            dropout=self.dropout if self.training else 0.0,
        )
        return self._output(y_BHTK)
