"""Lightning attention: a matrix memory per head that decays at a rate that is fixed, not learned.

    S_t = exp(-d s_h) S_{t-1} + k_t v_t^T        y_t = q_t S_t        s_h = 2^(-8 h / H),  h = 1..H

    q, k, v = silu(W x_t)        out_t = W_o [rms(y_t) sigmoid(W_g x_t)]   over all heads' channels

`decay_factor` d multiplies all rates. In MiniMax-01 it is 1 in the first layer and falls linearly
to 0 in the last, where nothing is forgotten; here all layers have the same unless a study gives
each its own. There are no decays to compute, no short convolution and no positions.

The cost per token is the same at every context length. It is computed in chunks, as gated linear
attention with one gate per head is: the published kernel is a form of the same function.

Qin et al. 2024 (arXiv:2401.04658); MiniMax 2025 (arXiv:2501.08313).
Shapes: D model width, H heads, K key width, V value width, C = H V.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from attnlab.config import Problem
from attnlab.kernels.norms import rms_norm, widened
from attnlab.modules.matrix_memory import GatedMemory, GatedMemoryConfig


@dataclass(frozen=True, kw_only=True)
class LightningAttention(GatedMemoryConfig):
    gate = "head"

    decay_factor: float = 1.0  # multiplies the decay rates of all heads; 0: nothing is forgotten

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if self.decay_factor < 0:
            yield Problem("decay_factor", f"must not be negative, got {self.decay_factor}")

    def more_params(self, d_model: int) -> tuple[int, int]:
        del d_model
        return 0, self.values  # the norm

    def build(self, d_model: int, dropout: float = 0.0) -> "LightningMixer":
        del dropout  # there are no attention weights
        return LightningMixer(self, d_model)


class LightningMixer(GatedMemory[LightningAttention]):
    def __init__(self, config: LightningAttention, d_model: int) -> None:
        super().__init__(config, d_model)
        self.o_norm = nn.RMSNorm(config.values, eps=1e-6)

    def inputs(self, x_D: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        heads = self.config.n_heads
        q_HK, k_HK, v_HV = (
            silu(project(x_D)).unflatten(-1, (heads, -1))
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        wide = torch.promote_types(q_HK.dtype, torch.float32)
        number_H = torch.arange(1, heads + 1, device=x_D.device, dtype=wide)
        rate_H = self.config.decay_factor * (-8 / heads * number_H).exp2()
        return q_HK, k_HK, v_HV, (-rate_H).expand(*q_HK.shape[:-1]).contiguous()

    def output(self, x_D: Tensor, y_HV: Tensor) -> Tensor:
        y_C = widened(y_HV).flatten(-2)
        normed_C = rms_norm(y_C, self.o_norm.weight.to(y_C), self.o_norm.eps)
        return self.o_proj((normed_C * self.g_proj(x_D).sigmoid()).to(x_D.dtype))
