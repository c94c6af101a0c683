"""Grouped-query attention: groups of query heads share one key and value head.

    q_t = rotate(norm(W_q c_t))        k_t = rotate(norm(W_k c'_t))        v_t = W_v c'_t
    y_t = W_o [ sum_{s <= t} softmax_s(q_t . k_s / sqrt(K)) v_s ]_heads

Here c and c' are the token x_t. With `q_lora_rank` or `kv_lora_rank` they are narrow latents of it
(low-rank attention). The norms of queries and keys are off by default, as are the settings of
`modules/softmax_heads.py`, which has the projections and the decoding.

A token costs as much as there are tokens before it, and the decode state holds the keys and values
of all of them.

Multi-head attention is the case `n_kv_heads == n_heads`, multi-query attention `n_kv_heads == 1`.

Ainslie et al. 2023 (arXiv:2305.13245); Shazeer 2019 (arXiv:1911.02150); Vaswani et al. 2017
(arXiv:1706.03762).
Shapes: B batch, T tokens, H query heads, G key-value heads, K width of a query and a key head,
V width of a value head.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from attnlab.kernels import attention
from attnlab.mechanism import MechanismConfig
from attnlab.modules.softmax_heads import SoftmaxHeads, SoftmaxHeadsConfig


@dataclass(frozen=True, kw_only=True)
class GroupedQuery(SoftmaxHeadsConfig, MechanismConfig):
    kernel: attention.Kernel = "auto"  # implementation of attention; all compute the same function

    def forward_flops(self, d_model: int, context: int) -> int:
        """Return the FLOPs of the kernel, which may compute with wider heads."""
        of_head = attention.flops(
            context,
            *self.attention_widths(d_model),
            self.kernel,
            products=self.scores_are_products,
            sinks=self.sinks,
        )
        return self.forward_flops_with(d_model, context, of_head)

    def build(self, d_model: int, dropout: float = 0.0) -> "GroupedQueryAttention":
        """Return the module. Raise ConfigError if the chosen kernel does not serve the settings."""
        attention.require(self.kernel, dropout, products=self.scores_are_products)
        return GroupedQueryAttention(self, d_model, dropout)


class GroupedQueryAttention(SoftmaxHeads):
    config: GroupedQuery

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> attention.Kernel:
        return attention.resolve(
            self.config.kernel,
            device,
            dtype,
            dropout=self.dropout,
            width=max(
                self.head_dim + self.config.sinks,
                self.v_head_dim * (1 + self.config.differential),
            ),
            products=self.config.scores_are_products,
        )

    def _attend(self, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTV: Tensor) -> Tensor:
        return attention.attention(
            q_BHTK,
            k_BGTK,
            v_BGTV,
            kernel=self.kernel_on(q_BHTK.device, q_BHTK.dtype),
            dropout=self.dropout if self.training else 0.0,
            scores=self._scores(),
        )
