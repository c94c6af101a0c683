"""Gated DeltaNet: a matrix memory per head that forgets by a learned scalar and overwrites by key.

    S_t = exp(g_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T        y_t = K^-0.5 q_t S_t

    q, k, v = conv(W x)  each, q and k then of length 1        beta_t = sigmoid(w_b x_t)
    g_t = -exp(A_log) softplus(w_a x_t + dt_bias)              out_t = W_o [rms(y_t) silu(W_g x_t)]

With `negative_eigenvalues`, beta_t = 2 sigmoid(w_b x_t): along k_t the memory is multiplied by
1 - beta_t, which then lies in (-1, 1), so that a token can flip what is stored (Grazzi et al. 2024,
arXiv:2411.12537), as parity needs.

The cost per token is the same at every context length. Names and initial values of parameters are
those of flash-linear-attention's layer of this name, except for its three convolutions: here
`qkv_conv1d` is one convolution over the channels of queries, keys and values.

Yang, Kautz, Hatamizadeh 2024 (arXiv:2412.06464).
Shapes: D model width, H heads, K key width, V value width, C = H V.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attnlab.kernels.flash_linear_attention import Gate
from attnlab.modules.delta_memory import DeltaMemory, DeltaMemoryConfig
from attnlab.modules.matrix_memory import initial_A_log, initial_dt_bias, log_decay
from attnlab.modules.norms import gated_norm


@dataclass(frozen=True, kw_only=True)
class GatedDeltaNet(DeltaMemoryConfig):
    output_gate: bool = True  # multiply the output by silu(W_g x)

    @property
    def gate(self) -> Gate:
        return "head"

    def more_params(self, d_model: int) -> tuple[int, int]:
        gates = self.n_heads + self.output_gate * self.values  # a, g
        return d_model * gates, 2 * self.n_heads + self.value_dim  # A_log, dt_bias, the norm

    def build(self, d_model: int, dropout: float = 0.0) -> "GatedDeltaNetMixer":
        del dropout  # there are no attention weights
        return GatedDeltaNetMixer(self, d_model)


class GatedDeltaNetMixer(DeltaMemory[GatedDeltaNet]):
    def __init__(self, config: GatedDeltaNet, d_model: int) -> None:
        super().__init__(config, d_model)
        self.a_proj = nn.Linear(d_model, config.n_heads, bias=False)
        self.A_log = nn.Parameter(initial_A_log(config.n_heads))
        self.dt_bias = nn.Parameter(initial_dt_bias(config.n_heads))
        if config.output_gate:
            self.g_proj = nn.Linear(d_model, config.values, bias=False)

    def initial_value(self, name: str, generator: torch.Generator) -> Tensor | None:
        if name == "A_log":
            return initial_A_log(self.config.n_heads, generator)
        if name == "dt_bias":
            return initial_dt_bias(self.config.n_heads, generator)
        return super().initial_value(name, generator)

    def decays(self, x_D: Tensor) -> Tensor:
        return log_decay(self.a_proj(x_D), self.A_log, self.dt_bias)

    def normed(self, x_D: Tensor, y_HV: Tensor) -> Tensor:
        gate_C = self.g_proj(x_D) if self.config.output_gate else None
        return gated_norm(y_HV, self.o_norm, gate_C, self.config.kernel)
