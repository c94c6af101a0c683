"""Grouped-query attention: groups of query heads share one key and value head.

    y_t = W_o [ sum_{s <= t} softmax_s(q_t . k_s / sqrt(K)) v_s ]_heads

with rotary queries and keys. Its ends are multi-head attention (`n_kv_heads == n_heads`) and
multi-query attention (`n_kv_heads == 1`). With a `q_lora_rank` or `kv_lora_rank` it is low-rank
attention: what is projected is a narrow latent of the token.

Ainslie et al. 2023 (arXiv:2305.13245); Shazeer 2019 (arXiv:1911.02150); Vaswani et al. 2017
(arXiv:1706.03762).
Shapes: B batch, T tokens, D model width, H query heads, G key-value heads,
K width of a query and a key head, V width of a value head.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from attnlab.kernels import attention
from attnlab.mechanism import Cost, Mechanism, MechanismConfig
from attnlab.modules.cached_heads import CachedHeads
from attnlab.modules.kv_cache import KVCache
from attnlab.modules.rotary_heads import RotaryHeadsConfig


@dataclass(frozen=True, kw_only=True)
class GroupedQuery(RotaryHeadsConfig, MechanismConfig):
    kernel: attention.Kernel = "auto"

    def cost(self, d_model: int, context: int, itemsize: int = 2) -> Cost:
        projections = self.projection_flops(d_model)
        return Cost(
            params=self.projection_params(d_model),
            flops=projections + self.look_flops(d_model, context),
            state_bytes=itemsize * self.kv_width(d_model) * context,
        )

    def build(self, d_model: int, dropout: float = 0.0) -> "GroupedQueryAttention":
        """Raises ConfigError where the kernel that is named has no dropout."""
        attention.require_dropout(self.kernel, dropout)
        return GroupedQueryAttention(self, d_model, dropout)


class GroupedQueryAttention(CachedHeads, Mechanism[KVCache]):
    def __init__(self, config: GroupedQuery, d_model: int, dropout: float) -> None:
        super().__init__(config, d_model)
        self.config, self.dropout = config, dropout

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> attention.Kernel:
        width = max(self.head_dim, self.v_head_dim)
        return attention.resolve(
            self.config.kernel, device, dtype, dropout=self.dropout, width=width
        )

    def _attend(self, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTV: Tensor) -> Tensor:
        y_BHTV = attention.attention(
            q_BHTK,
            k_BGTK,
            v_BGTV,
            kernel=self.kernel_on(q_BHTK.device, q_BHTK.dtype),
            dropout=self.dropout if self.training else 0.0,
        )
        return self._output(y_BHTV)
