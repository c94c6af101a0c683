"""Kimi Delta Attention: a Gated DeltaNet, each key channel forgetting at its own rate.

    S_t = (I - beta_t k_t k_t^T) Diag(exp(g_t)) S_{t-1} + beta_t k_t v_t^T    y_t = K^-0.5 q_t S_t

    q, k, v = conv(W x)  each, q and k then of length 1        beta_t = sigmoid(w_b x_t)
    g_t = -exp(A_log) softplus(F_2 F_1 x_t + dt_bias)
    out_t = W_o [rms(y_t) sigmoid(G_2 G_1 x_t + b)]

F_1 and G_1 are as narrow as a value head. It costs the same for every token, however many came
before. Parameters are named as in flash-linear-attention's layer KimiDeltaAttention, but for its
three convolutions: `qkv_conv1d` is the one over the channels of all three. A and dt begin as in
Mamba-2.

Kimi Team 2025 (arXiv:2510.26692).
Shapes: D model width, H heads, K key width, V value width.
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
class KDA(DeltaHeadsConfig, MechanismConfig):
    def cost(self, d_model: int, context: int, itemsize: int = 2) -> Cost:
        del context
        gates = self.value_dim * (2 * d_model + self.keys + self.values)
        vectors = self.n_heads + self.keys + self.values  # A_log, dt_bias, b
        return self.delta_cost(d_model, itemsize, weights=gates, vectors=vectors)

    def build(self, d_model: int, dropout: float = 0.0) -> "KDAMixer":
        del dropout  # there are no attention weights
        return KDAMixer(self, d_model)


class KDAMixer(DeltaHeads):
    gate = "channel"

    def __init__(self, config: KDA, d_model: int) -> None:
        super().__init__(config)
        self.config = config
        heads, keys, values, narrow = config.n_heads, config.keys, config.values, config.value_dim
        self.q_proj = nn.Linear(d_model, keys, bias=False)
        self.k_proj = nn.Linear(d_model, keys, bias=False)
        self.v_proj = nn.Linear(d_model, values, bias=False)
        self.b_proj = nn.Linear(d_model, heads, bias=False)
        self.f_proj = nn.Sequential(
            nn.Linear(d_model, narrow, bias=False), nn.Linear(narrow, keys, bias=False)
        )
        self.A_log = nn.Parameter(initial_A_log(heads, lowest=1))
        self.dt_bias = nn.Parameter(initial_dt_bias(keys))
        self.qkv_conv1d = ShortConvolution(2 * keys + values, config.conv_size, config.kernel)
        self.g_proj = nn.Sequential(
            nn.Linear(d_model, narrow, bias=False), nn.Linear(narrow, values)
        )
        self.o_norm = nn.RMSNorm(config.value_dim, eps=1e-5)
        self.o_proj = nn.Linear(values, d_model, bias=False)

    def log_decay(self, x_D: Tensor) -> Tensor:
        by_head = self.config.n_heads, self.config.head_dim
        f_HK, dt_bias_HK = self.f_proj(x_D).unflatten(-1, by_head), self.dt_bias.view(by_head)
        return log_decay(f_HK, self.A_log[:, None], dt_bias_HK)

    def output(self, x_D: Tensor, y_HV: Tensor) -> Tensor:
        y_C = gated_norm(y_HV, self.o_norm, self.g_proj(x_D), self.config.kernel, "sigmoid")
        return self.o_proj(y_C.to(x_D.dtype))

    def initial_value(self, name: str, generator: torch.Generator) -> Tensor | None:
        if name == "A_log":
            return initial_A_log(len(self.A_log), generator, lowest=1)
        if name == "dt_bias":
            return initial_dt_bias(len(self.dt_bias), generator)
        return super().initial_value(name, generator)
