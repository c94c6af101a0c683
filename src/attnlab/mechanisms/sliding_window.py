"""Sliding-window attention: a token attends to itself and the `window - 1` tokens before it.

    q_t = rotate(norm(W_q c_t))        k_t = rotate(norm(W_k c'_t))        v_t = W_v c'_t
    y_t = W_o [ sum_{t - window < s <= t} softmax_s(q_t . k_s / sqrt(K)) v_s ]_heads

Here c and c' are the token x_t, or narrow latents of it where `q_lora_rank` or `kv_lora_rank` is
set. The norms of queries and keys are off by default. Training costs O(T window), and the decode
state holds the last `window` tokens, whatever the length of the sequence.

Beltagy et al. 2020 (arXiv:2004.05150); Jiang et al. 2023 (arXiv:2310.06825).
Shapes: B batch, T tokens, D model width, H query heads, G key-value heads,
K width of a query and a key head, V width of a value head, R width of a latent, M = H K.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from attnlab.config import Problem
from attnlab.kernels import flex, windowed_attention
from attnlab.mechanism import Cost, Mechanism, MechanismConfig
from attnlab.modules.kv_cache import KVCache
from attnlab.modules.norms import RMSNorm
from attnlab.modules.rotary import rotate, rotation
from attnlab.modules.rotary_heads import RotaryHeadsConfig, latent


@dataclass(frozen=True, kw_only=True)
class SlidingWindow(RotaryHeadsConfig, MechanismConfig):
    window: int = 256  # tokens that a query attends to, itself included
    kernel: windowed_attention.Kernel = "auto"  # implementation; all compute the same function

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if self.window < 1:
            yield Problem("window", f"must be at least 1, the token itself, got {self.window}")

    def cost(self, d_model: int, context: int, itemsize: int = 2) -> Cost:
        key, value = self.head_widths(d_model)
        q_input, kv_input = self.projection_inputs(d_model)
        latents = (self.q_lora_rank or 0) + (self.kv_lora_rank or 0)
        queries, keys_values = self.n_heads * key, self.n_kv_heads * (key + value)
        outputs = self.n_heads * value
        matrices = d_model * (latents + outputs) + q_input * queries + kv_input * keys_values
        biases = self.bias * (latents + queries + keys_values + d_model)
        norms = latents + self.qk_norm * 2 * key
        seen = min(context, self.window)
        scores_and_sums = self.n_heads * (key + value) * seen
        return Cost(
            params=matrices + biases + norms,
            flops=2 * (matrices + scores_and_sums),
            state_bytes=itemsize * keys_values * seen,
        )

    def forward_flops(self, d_model: int, context: int) -> int:
        """Return the FLOPs with all pairs that the kernel computes, masked ones included."""
        widths = self.head_widths(d_model)
        of_step = 2 * self.n_heads * sum(widths) * min(context, self.window)
        of_projections = self.cost(d_model, context).flops - of_step
        of_head = windowed_attention.flops(context, *widths, self.window, self.kernel)
        return of_projections + self.n_heads * of_head // context

    def build(self, d_model: int, dropout: float = 0.0) -> "SlidingWindowAttention":
        """Return the module. Raise ConfigError for dropout with `flex`, which does not have it."""
        if self.kernel == "flex":
            flex.require_no_dropout(dropout, instead="banded")
        return SlidingWindowAttention(self, d_model, dropout)


class SlidingWindowAttention(Mechanism[KVCache]):
    def __init__(self, config: SlidingWindow, d_model: int, dropout: float) -> None:
        super().__init__()
        self.config, self.dropout = config, dropout
        self.rope, self.query_factor = config.rope(d_model), config.query_factor(d_model)
        self.head_dim, self.v_head_dim = key, value = config.head_widths(d_model)
        q_input, kv_input = config.projection_inputs(d_model)
        bias = config.bias
        self.q_latent = latent(d_model, config.q_lora_rank, bias)
        self.kv_latent = latent(d_model, config.kv_lora_rank, bias)
        self.q_proj = nn.Linear(q_input, config.n_heads * key, bias)
        self.k_proj = nn.Linear(kv_input, config.n_kv_heads * key, bias)
        self.v_proj = nn.Linear(kv_input, config.n_kv_heads * value, bias)
        self.o_proj = nn.Linear(config.n_heads * value, d_model, bias)
        self.q_norm = RMSNorm(key) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(key) if config.qk_norm else nn.Identity()

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self._attend(*self._qkv(x_BTD, start=0))

    def init_state(self, batch_size: int, capacity: int) -> KVCache:
        slots = min(capacity, self.config.window)
        widths = self.head_dim, self.v_head_dim
        like = self.o_proj.weight
        return KVCache.empty(batch_size, self.config.n_kv_heads, slots, widths, like)

    def prefill(self, x_BTD: Tensor, capacity: int) -> tuple[Tensor, KVCache]:
        q_BHTK, k_BGTK, v_BGTV = self._qkv(x_BTD, start=0)
        state = self.init_state(x_BTD.shape[0], capacity).append(k_BGTK, v_BGTV)
        return self._attend(q_BHTK, k_BGTK, v_BGTV), state

    def step(self, x_BD: Tensor, state: KVCache) -> tuple[Tensor, KVCache]:
        q_BH1K, k_BG1K, v_BG1V = self._qkv(x_BD[:, None], start=state.seen)
        state = state.append(k_BG1K, v_BG1V)
        y_BHV = state.attend(q_BH1K[:, :, 0])
        return self.o_proj(y_BHV.flatten(1)), state

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> windowed_attention.Kernel:
        del dtype
        return windowed_attention.resolve(self.config.kernel, device, self.dropout)

    def _qkv(self, x_BTD: Tensor, start: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return `q_BHTK, k_BGTK, v_BGTV` of tokens whose first is at position `start`."""
        latent_BTR, q_BTM = self.kv_latent(x_BTD), self.q_proj(self.q_latent(x_BTD))
        q_BHTK = rearrange(q_BTM, "B T (H K) -> B H T K", K=self.head_dim)
        k_BGTK = rearrange(self.k_proj(latent_BTR), "B T (G K) -> B G T K", K=self.head_dim)
        v_BGTV = rearrange(self.v_proj(latent_BTR), "B T (G V) -> B G T V", V=self.v_head_dim)
        q_BHTK, k_BGTK = self.q_norm(q_BHTK), self.k_norm(k_BGTK)
        by = rotation(self.rope, start, x_BTD.shape[1], like=q_BHTK)
        q_BHTK, k_BGTK = rotate(q_BHTK, by), rotate(k_BGTK, by)
        return q_BHTK if self.query_factor == 1 else q_BHTK * self.query_factor, k_BGTK, v_BGTV

    def _attend(self, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTV: Tensor) -> Tensor:
        """Return `y_BTD` of all tokens at once."""
        y_BHTV = windowed_attention.windowed_attention(
            q_BHTK,
            k_BGTK,
            v_BGTV,
            window=self.config.window,
            kernel=self.kernel_on(q_BHTK.device, q_BHTK.dtype),
            dropout=self.dropout if self.training else 0.0,
        )
        return self.o_proj(rearrange(y_BHTV, "B H T V -> B T (H V)"))
