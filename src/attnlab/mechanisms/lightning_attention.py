"""Lightning attention: a matrix memory per head that decays at a rate that is fixed, not learned.

    S_t = exp(-d s_h) S_{t-1} + k_t v_t^T        y_t = q_t S_t        s_h = 2^(-8 h / H),  h = 1..H

    q, k, v = silu(W x_t)        out_t = W_o [rms(y_t) sigmoid(W_g x_t)]   over all heads' channels

`decay_factor` d multiplies all rates. In MiniMax-01 it is 1 in the first layer and falls linearly
to 0 in the last, where nothing is forgotten; here all layers have the same unless a study gives
each its own. There are no decays to compute, no short convolution and no positions.

The cost per token is the same at every context length. It is computed in chunks, as gated linear
attention with one gate per head is: the published kernel is a form of the same function.

Qin et al. 2024 (arXiv:2401.04658); MiniMax 2025 (arXiv:2501.08313).
Shapes: B batch, T tokens, D model width, H heads, K key width, V value width, C = H V.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu

from attnlab.config import Problem
from attnlab.kernels import gated_linear_attention
from attnlab.mechanism import Cost, Mechanism, MechanismConfig
from attnlab.modules.matrix_memory import MemoryHeadsConfig
from attnlab.modules.norms import widened


@dataclass(frozen=True, kw_only=True)
class LightningAttention(MemoryHeadsConfig, MechanismConfig):
    decay_factor: float = 1.0  # multiplies the decay rates of all heads; 0: nothing is forgotten

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if self.decay_factor < 0:
            yield Problem("decay_factor", f"must not be negative, got {self.decay_factor}")

    def cost(self, d_model: int, context: int, itemsize: int = 2) -> Cost:
        del context
        matrices = d_model * (2 * self.keys + 3 * self.values)  # q, k, v, g, o
        memory = self.keys * self.value_dim
        return Cost(
            params=matrices + self.values,  # the last is the norm
            flops=2 * matrices + 2 * 2 * memory,  # write, read
            state_bytes=max(itemsize, 4) * memory,  # float32 or wider
        )

    def forward_flops(self, d_model: int, context: int) -> int:
        """Return the FLOPs of the form of `forward`, which reads and writes by chunks."""
        of_step = 2 * 2 * self.n_heads * self.head_dim * self.value_dim
        of_head = gated_linear_attention.flops(
            context, self.head_dim, self.value_dim, "head", self.kernel
        )
        return self.cost(d_model, context).flops - of_step + self.n_heads * of_head // context

    def build(self, d_model: int, dropout: float = 0.0) -> "LightningMixer":
        del dropout  # there are no attention weights
        return LightningMixer(self, d_model)


class LightningState(NamedTuple):
    memory_BHKV: Tensor  # float32 or wider: it sums over all tokens seen


class LightningMixer(Mechanism[LightningState]):
    def __init__(self, config: LightningAttention, d_model: int) -> None:
        super().__init__()
        self.config = config
        self.q_proj = nn.Linear(d_model, config.keys, bias=False)
        self.k_proj = nn.Linear(d_model, config.keys, bias=False)
        self.v_proj = nn.Linear(d_model, config.values, bias=False)
        self.g_proj = nn.Linear(d_model, config.values, bias=False)
        self.o_norm = nn.RMSNorm(config.values, eps=1e-6)
        self.o_proj = nn.Linear(config.values, d_model, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.prefill(x_BTD, x_BTD.shape[1])[0]

    def init_state(self, batch_size: int, capacity: int) -> LightningState:
        del capacity  # the state does not grow with the number of tokens
        heads, key, value = self.config.n_heads, self.config.head_dim, self.config.value_dim
        return LightningState(widened(self.o_proj.weight.new_zeros(batch_size, heads, key, value)))

    def prefill(self, x_BTD: Tensor, capacity: int) -> tuple[Tensor, LightningState]:
        del capacity
        y_BTHV, memory_BHKV = gated_linear_attention.gated_linear_attention(
            *self._inputs(x_BTD), self.config.kernel
        )
        return self._output(x_BTD, y_BTHV), LightningState(memory_BHKV)

    def step(self, x_BD: Tensor, state: LightningState) -> tuple[Tensor, LightningState]:
        y_BHV, memory_BHKV = gated_linear_attention.step(*self._inputs(x_BD), state.memory_BHKV)
        return self._output(x_BD, y_BHV), LightningState(memory_BHKV)

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> str:
        config = self.config
        return gated_linear_attention.resolve(config.kernel, device, dtype, config.head_dim, "head")

    def _inputs(self, x_D: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return queries, keys, values and log decays by head, of x (..., D)."""
        heads = self.config.n_heads
        q_HK, k_HK, v_HV = (
            silu(project(x_D)).unflatten(-1, (heads, -1))
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        wide = torch.promote_types(q_HK.dtype, torch.float32)
        number_H = torch.arange(1, heads + 1, device=x_D.device, dtype=wide)
        rate_H = self.config.decay_factor * (-8 / heads * number_H).exp2()
        return q_HK, k_HK, v_HV, (-rate_H).expand(*q_HK.shape[:-1]).contiguous()

    def _output(self, x_D: Tensor, y_HV: Tensor) -> Tensor:
        y_C = widened(y_HV).flatten(-2)
        normed_C = rms_norm(y_C, y_C.shape[-1:], self.o_norm.weight.to(y_C), self.o_norm.eps)
        return self.o_proj((normed_C * self.g_proj(x_D).sigmoid()).to(x_D.dtype))
