"""Gated DeltaNet: a matrix memory a head that forgets by a learned scalar and overwrites by key.

    S_t = exp(g_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T        y_t = K^-0.5 q_t S_t

    q, k, v = conv(W x)  each, q and k then of length 1        beta_t = sigmoid(w_b x_t)
    g_t = -exp(A_log) softplus(w_a x_t + dt_bias)              out_t = W_o [rms(y_t) silu(W_g x_t)]

It costs the same for every token, however many came before. Parameters are named and begin as in
flash-linear-attention's layer of this name, but for its three convolutions: `qkv_conv1d` is the one
over the channels of all three.

Yang, Kautz, Hatamizadeh 2024 (arXiv:2412.06464).
Shapes: D model width, H heads, V value width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attnlab.mechanism import Cost, MechanismConfig
from attnlab.modules.decay import initial_A_log, initial_dt_bias, log_decay
from attnlab.modules.delta_heads import DeltaHeads, DeltaHeadsConfig
from attnlab.modules.gated_norm import gated_norm
from attnlab.modules.short_convolution import ShortConvolution


@dataclass(frozen=True, kw_only=True)
class GatedDeltaNet(DeltaHeadsConfig, MechanismConfig):
    output_gate: bool = True

    def cost(self, d_model: int, context: int, itemsize: int = 2) -> Cost:
        del context
        gates = d_model * (self.n_heads + self.output_gate * self.values)
        return self.delta_cost(d_model, itemsize, weights=gates, vectors=2 * self.n_heads)

    def build(self, d_model: int, dropout: float = 0.0) -> "GatedDeltaNetMixer":
        del dropout  # there are no attention weights
        return GatedDeltaNetMixer(self, d_model)


class GatedDeltaNetMixer(DeltaHeads):
    gate = "head"

    def __init__(self, config: GatedDeltaNet, d_model: int) -> None:
        super().__init__(config)
        self.config = config
        heads, keys, values = config.n_heads, config.keys, config.values
        self.q_proj = nn.Linear(d_model, keys, bias=False)
        self.k_proj = nn.Linear(d_model, keys, bias=False)
        self.v_proj = nn.Linear(d_model, values, bias=False)
        self.a_proj = nn.Linear(d_model, heads, bias=False)
        self.b_proj = nn.Linear(d_model, heads, bias=False)
        self.A_log = nn.Parameter(initial_A_log(heads))
        self.dt_bias = nn.Parameter(initial_dt_bias(heads))
        self.qkv_conv1d = ShortConvolution(2 * keys + values, config.conv_size, config.kernel)
        if config.output_gate:
            self.g_proj = nn.Linear(d_model, values, bias=False)
        self.o_norm = nn.RMSNorm(config.value_dim, eps=1e-5)
        self.o_proj = nn.Linear(values, d_model, bias=False)

    def log_decay(self, x_D: Tensor) -> Tensor:
        return log_decay(self.a_proj(x_D), self.A_log, self.dt_bias)

    def output(self, x_D: Tensor, y_HV: Tensor) -> Tensor:
        gate_C = self.g_proj(x_D) if self.config.output_gate else None
        return self.o_proj(gated_norm(y_HV, self.o_norm, gate_C, self.config.kernel).to(x_D.dtype))

    def initial_value(self, name: str, generator: torch.Generator) -> Tensor | None:
        if name == "A_log":
            return initial_A_log(len(self.A_log), generator)
        if name == "dt_bias":
            return initial_dt_bias(len(self.dt_bias), generator)
        return super().initial_value(name, generator)
