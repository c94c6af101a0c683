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
Shapes: B batch, T tokens, D model width, H heads, K key width, V value width, P past tokens of the
convolution, C channels: of queries, keys and values, or H V of the output.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from attnlab.config import Problem
from attnlab.kernels import gated_delta_rule as rule
from attnlab.mechanism import Cost, Mechanism, MechanismConfig
from attnlab.modules.matrix_memory import (
    MemoryHeadsConfig,
    MemoryState,
    at_least_1,
    initial_A_log,
    initial_dt_bias,
    log_decay,
    write_strength,
)
from attnlab.modules.norms import gated_norm, widened
from attnlab.modules.short_convolution import ShortConvolution


@dataclass(frozen=True, kw_only=True)
class GatedDeltaNet(MemoryHeadsConfig, MechanismConfig):
    conv_size: int = 4  # tokens that the convolution covers, the current one included
    output_gate: bool = True  # multiply the output by silu(W_g x)
    negative_eigenvalues: bool = False  # beta in (0, 2) in place of (0, 1)

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from at_least_1(self, "conv_size")

    def cost(self, d_model: int, context: int, itemsize: int = 2) -> Cost:
        del context
        channels, memory = 2 * self.keys + self.values, self.keys * self.value_dim
        gates = 2 * self.n_heads + self.output_gate * self.values  # a, b, g
        matrices = d_model * (channels + gates + self.values)  # q, k, v, the gates, o
        vectors = 2 * self.n_heads + self.value_dim  # A_log, dt_bias, the norm
        return Cost(
            params=matrices + self.conv_size * channels + vectors,
            flops=2 * matrices + 3 * 2 * memory,  # recall by key, write, read
            # the memory is float32 or wider
            state_bytes=max(itemsize, 4) * memory + itemsize * (self.conv_size - 1) * channels,
        )

    def forward_flops(self, d_model: int, context: int) -> int:
        """Return the FLOPs of the form of `forward`, which reads and writes by chunks."""
        of_step = 3 * 2 * self.n_heads * self.head_dim * self.value_dim
        of_head = rule.flops(context, self.head_dim, self.value_dim, "head", self.kernel)
        return self.cost(d_model, context).flops - of_step + self.n_heads * of_head // context

    def build(self, d_model: int, dropout: float = 0.0) -> "GatedDeltaNetMixer":
        del dropout  # there are no attention weights
        return GatedDeltaNetMixer(self, d_model)


class GatedDeltaNetMixer(Mechanism[MemoryState]):
    def __init__(self, config: GatedDeltaNet, d_model: int) -> None:
        super().__init__()
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

    def forward(self, x_BTD: Tensor) -> Tensor:
        qkv_BTC = self.qkv_conv1d(self._project(x_BTD))
        y_BTHV, _ = rule.gated_delta_rule(*self._inputs(x_BTD, qkv_BTC), self.config.kernel)
        return self._output(x_BTD, y_BTHV)

    def init_state(self, batch_size: int, capacity: int) -> MemoryState:
        del capacity  # the state does not grow with the number of tokens
        heads, key, value = self.config.n_heads, self.config.head_dim, self.config.value_dim
        memory_BHKV = widened(self.o_proj.weight.new_zeros(batch_size, heads, key, value))
        return MemoryState(memory_BHKV, self.qkv_conv1d.init_state(batch_size))

    def prefill(self, x_BTD: Tensor, capacity: int) -> tuple[Tensor, MemoryState]:
        del capacity
        qkv_BTC, past_BPC = self.qkv_conv1d.prefill(self._project(x_BTD))
        y_BTHV, memory_BHKV = rule.gated_delta_rule(
            *self._inputs(x_BTD, qkv_BTC), self.config.kernel
        )
        return self._output(x_BTD, y_BTHV), MemoryState(memory_BHKV, past_BPC)

    def step(self, x_BD: Tensor, state: MemoryState) -> tuple[Tensor, MemoryState]:
        qkv_BC = torch.cat([self.q_proj(x_BD), self.k_proj(x_BD), self.v_proj(x_BD)], -1)
        qkv_BC, past_BPC = self.qkv_conv1d.step(qkv_BC, state.past_BPC)
        q_BHK, k_BHK, v_BHV, g_BH, beta_BH = self._inputs(x_BD, qkv_BC)
        y_BHV, memory_BHKV = rule.step(
            rule.unit(q_BHK), rule.unit(k_BHK), v_BHV, g_BH, beta_BH, state.memory_BHKV
        )
        return self._output(x_BD, y_BHV), MemoryState(memory_BHKV, past_BPC)

    def initial_value(self, name: str, generator: torch.Generator) -> Tensor | None:
        if name == "A_log":
            return initial_A_log(self.config.n_heads, generator)
        if name == "dt_bias":
            return initial_dt_bias(self.config.n_heads, generator)
        if name == "qkv_conv1d.weight":
            channels, width = self.qkv_conv1d.weight.shape
            return ShortConvolution.initial_weight(channels, width, generator)
        return None

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> str:
        return rule.resolve(self.config.kernel, device, dtype, self.config.head_dim, "head")

    def _project(self, x_BTD: Tensor) -> Tensor:
        """Return `qkv_BTC` before the convolution, by one product."""
        weights = self.q_proj.weight, self.k_proj.weight, self.v_proj.weight
        return linear(x_BTD, torch.cat(weights))

    def _inputs(self, x_D: Tensor, qkv_C: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return `q_HK, k_HK, v_HV, g_H, beta_H` of x (..., D) and its convolved channels."""
        heads, keys, values = self.config.n_heads, self.config.keys, self.config.values
        q_C, k_C, v_C = qkv_C.split([keys, keys, values], -1)
        q_HK, k_HK, v_HV = (each_C.unflatten(-1, (heads, -1)) for each_C in (q_C, k_C, v_C))
        g_H = log_decay(self.a_proj(x_D), self.A_log, self.dt_bias)
        beta_H = write_strength(self.b_proj(x_D), self.config.negative_eigenvalues)
        return q_HK, k_HK, v_HV, g_H, beta_H

    def _output(self, x_D: Tensor, y_HV: Tensor) -> Tensor:
        gate_C = self.g_proj(x_D) if self.config.output_gate else None
        y_C = gated_norm(y_HV, self.o_norm, gate_C, self.config.kernel)
        return self.o_proj(y_C.to(x_D.dtype))
