"""Kimi Delta Attention: a Gated DeltaNet in which each key channel decays at its own rate.

    S_t = (I - beta_t k_t k_t^T) Diag(exp(g_t)) S_{t-1} + beta_t k_t v_t^T    y_t = K^-0.5 q_t S_t

    q, k, v = conv(W x)  each, q and k then of length 1        beta_t = sigmoid(w_b x_t)
    g_t = -exp(A_log) softplus(F_2 F_1 x_t + dt_bias)
    out_t = W_o [rms(y_t) sigmoid(G_2 G_1 x_t + b)]

With `negative_eigenvalues`, beta_t = 2 sigmoid(w_b x_t): along k_t the memory is multiplied by
1 - beta_t, which then lies in (-1, 1), so that a token can flip what is stored (Grazzi et al. 2024,
arXiv:2411.12537), as parity needs.

F_1 and G_1 map to the width of a value head. The cost per token is the same at every context
length. Names of parameters are those of flash-linear-attention's layer KimiDeltaAttention, except
for its three convolutions: here `qkv_conv1d` is one convolution over the channels of queries, keys
and values. A and dt are initialised as in Mamba-2.

Kimi Team 2025 (arXiv:2510.26692).
Shapes: D model width, H heads, K key width, V value width, C = H V.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attnlab.kernels.flash_linear_attention import Gate
from attnlab.kernels.norms import gated_norm
from attnlab.modules.delta_memory import DeltaMemory, DeltaMemoryConfig
from attnlab.modules.matrix_memory import initial_A_log, initial_dt_bias, log_decay


@dataclass(frozen=True, kw_only=True)
class KDA(DeltaMemoryConfig):
    @property
    def gate(self) -> Gate:
        return "channel"

    def more_params(self, d_model: int) -> tuple[int, int]:
        decays = self.value_dim * (d_model + self.keys)  # F_1, F_2
        output_gate = self.value_dim * (d_model + self.values)  # G_1, G_2
        vectors = self.n_heads + self.keys + self.values + self.value_dim
        return decays + output_gate, vectors  # A_log, dt_bias, b, the norm

    def build(self, d_model: int, dropout: float = 0.0) -> "KDAMixer":
        del dropout  # there are no attention weights
        return KDAMixer(self, d_model)


class KDAMixer(DeltaMemory[KDA]):
    def __init__(self, config: KDA, d_model: int) -> None:
        super().__init__(config, d_model)
        narrow = config.value_dim
        self.f_proj = nn.Sequential(
            nn.Linear(d_model, narrow, bias=False), nn.Linear(narrow, config.keys, bias=False)
        )
        self.A_log = nn.Parameter(initial_A_log(config.n_heads, lowest=1))
        self.dt_bias = nn.Parameter(initial_dt_bias(config.keys))
        self.g_proj = nn.Sequential(
            nn.Linear(d_model, narrow, bias=False), nn.Linear(narrow, config.values)
        )

    def initial_value(self, name: str, generator: torch.Generator) -> Tensor | None:
        if name == "A_log":
            return initial_A_log(self.config.n_heads, generator, lowest=1)
        if name == "dt_bias":
            return initial_dt_bias(self.config.keys, generator)
        return super().initial_value(name, generator)

    def decays(self, x_D: Tensor) -> Tensor:
        f_HK, heads = self.f_proj(x_D), self.config.n_heads
        f_HK = f_HK.unflatten(-1, (heads, -1))
        return log_decay(f_HK, self.A_log[:, None], self.dt_bias.view(heads, -1))

    def normed(self, x_D: Tensor, y_HV: Tensor) -> Tensor:
        return gated_norm(y_HV, self.o_norm, self.g_proj(x_D), self.config.kernel, "sigmoid")
