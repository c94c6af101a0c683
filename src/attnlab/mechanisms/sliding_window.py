"""Sliding-window attention: a token attends to itself and the `window - 1` tokens before it.

    q_t = rotate(norm(W_q c_t))        k_t = rotate(norm(W_k c'_t))        v_t = W_v c'_t
    y_t = W_o [ sum_{t - window < s <= t} softmax_s(q_t . k_s / sqrt(K)) v_s ]_heads

With `n_sink_tokens` = n, every token attends to the first n tokens of its text, too, s < n (an
attention sink). Positions are those in the text, as in training; Xiao et al. count them within the
tokens that are held.

Here c and c' are the token x_t, or narrow latents of it where `q_lora_rank` or `kv_lora_rank` is
set. The norms of queries and keys are off by default, as are the settings of
`modules/softmax_heads.py`, which has the projections and the decoding. Training costs O(T window),
and the decode state holds the last `window` tokens and the first n, whatever the length of the
sequence.

Beltagy et al. 2020 (arXiv:2004.05150); Jiang et al. 2023 (arXiv:2310.06825); Xiao et al. 2023
(arXiv:2309.17453) for sinks.
Shapes: B batch, T tokens, H query heads, G key-value heads, K width of a query and a key head,
V width of a value head.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attnlab.config import Problem
from attnlab.kernels import flex, windowed_attention
from attnlab.mechanism import MechanismConfig
from attnlab.modules.softmax_heads import SoftmaxHeads, SoftmaxHeadsConfig


@dataclass(frozen=True, kw_only=True)
class SlidingWindow(SoftmaxHeadsConfig, MechanismConfig):
    window: int = 256  # tokens that a query attends to, itself included
    n_sink_tokens: int | None = None  # first tokens of a text that a query attends to, too
    kernel: windowed_attention.Kernel = "auto"  # implementation; all compute the same function

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if self.window < 1:
            yield Problem("window", f"must be at least 1, the token itself, got {self.window}")
        if self.n_sink_tokens is not None and self.n_sink_tokens < 1:
            message = f"must be at least 1, or none, got {self.n_sink_tokens}"
            yield Problem("n_sink_tokens", message)

    @property
    def kept_tokens(self) -> int:
        return self.n_sink_tokens or 0

    def attended(self, context: int) -> int:
        return min(context, self.window + self.kept_tokens)

    def keys_values_name(self, d_model: int) -> str:
        first = f" and the first {self.n_sink_tokens}" if self.n_sink_tokens else ""
        return f"{super().keys_values_name(d_model)} in a window of {self.window}{first}"

    def forward_flops(self, d_model: int, context: int) -> int:
        """Return the FLOPs with all pairs that the kernel computes, masked ones included."""
        widths = self.attention_widths(d_model)
        of_head = windowed_attention.flops(
            context,
            *widths,
            self.window,
            self.kernel,
            products=self.scores_are_products,
            sinks=self.sinks,
            kept=self.kept_tokens,
        )
        return self.forward_flops_with(d_model, context, of_head)

    def build(self, d_model: int, dropout: float = 0.0) -> "SlidingWindowAttention":
        """Return the module. Raise ConfigError for dropout with `flex`, which does not have it."""
        if self.kernel == "flex":
            flex.require_no_dropout(dropout, instead="banded")
        return SlidingWindowAttention(self, d_model, dropout)


class SlidingWindowAttention(SoftmaxHeads):
    config: SlidingWindow

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> windowed_attention.Kernel:
        del dtype
        return windowed_attention.resolve(self.config.kernel, device, self.dropout)

    def _attend(self, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTV: Tensor) -> Tensor:
        return windowed_attention.windowed_attention(
            q_BHTK,
            k_BGTK,
            v_BGTV,
            window=self.config.window,
            kernel=self.kernel_on(q_BHTK.device, q_BHTK.dtype),
            dropout=self.dropout if self.training else 0.0,
            scores=self._scores(),
            kept=self.config.kept_tokens,
        )
