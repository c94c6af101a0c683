"""Gated DeltaProduct: a Gated DeltaNet that overwrites by several keys per token, one by one.

    S_t0 = exp(g_t) S_{t-1}        S_tj = (I - beta_tj k_tj k_tj^T) S_t(j-1) + beta_tj k_tj v_tj^T
    S_t = S_tN                     y_t = K^-0.5 q_t S_t                        j = 1..N

    q, k, v = conv(W x)  each, q and k then of length 1        beta_tj = 2 sigmoid(w_bj x_t)
    g_t = -exp(A_log) softplus(w_a x_t + dt_bias)              out_t = W_o [rms(y_t) silu(W_g x_t)]

The transition of a token is a product of N (`n_householder`) generalised Householder matrices. For
beta near 2 one of them reflects, two rotate, and N give each permutation of N + 1 elements. Without
`negative_eigenvalues`, beta_tj = sigmoid(w_bj x_t), which reflects nothing. Without `forget_gate`
it is DeltaProduct, which never decays. With N = 1 it is a Gated DeltaNet.

Keys, values and strengths have projections per write; the chunked form computes N tokens per token,
of which the last reads. The cost per token is the same at every context length, and so is the
decode state but for the channels of the convolution. Names of parameters are those of
flash-linear-attention's layer of this name, except for its three convolutions: here `qkv_conv1d` is
one convolution over the channels of queries, keys and values.

Siems et al. 2025 (arXiv:2502.10297).
Shapes: D model width, H heads, V value width, C = H V.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attnlab.config import Problem
from attnlab.kernels.flash_linear_attention import Gate
from attnlab.modules.delta_memory import DeltaMemory, DeltaMemoryConfig
from attnlab.modules.matrix_memory import at_least_1, initial_A_log, initial_dt_bias, log_decay
from attnlab.modules.norms import gated_norm


@dataclass(frozen=True, kw_only=True)
class GatedDeltaProduct(DeltaMemoryConfig):
    n_householder: int = 2  # writes per token, each along a key of its own
    forget_gate: bool = True  # decay by a learned scalar per head and token
    output_gate: bool = True  # multiply the output by silu(W_g x)
    negative_eigenvalues: bool = True  # beta in (0, 2) in place of (0, 1)

    @property
    def gate(self) -> Gate:
        return "head" if self.forget_gate else "none"

    @property
    def writes(self) -> int:
        return self.n_householder

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from at_least_1(self, "n_householder")

    def more_params(self, d_model: int) -> tuple[int, int]:
        gates = self.forget_gate * self.n_heads + self.output_gate * self.values  # a, g
        decay = self.forget_gate * 2 * self.n_heads  # A_log, dt_bias
        return d_model * gates, decay + self.value_dim  # the latter is the norm

    def build(self, d_model: int, dropout: float = 0.0) -> "GatedDeltaProductMixer":
        del dropout  # there are no attention weights
        return GatedDeltaProductMixer(self, d_model)


class GatedDeltaProductMixer(DeltaMemory[GatedDeltaProduct]):
    def __init__(self, config: GatedDeltaProduct, d_model: int) -> None:
        super().__init__(config, d_model)
        if config.forget_gate:
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

    def decays(self, x_D: Tensor) -> Tensor | None:
        if not self.config.forget_gate:
            return None
        return log_decay(self.a_proj(x_D), self.A_log, self.dt_bias)

    def normed(self, x_D: Tensor, y_HV: Tensor) -> Tensor:
        gate_C = self.g_proj(x_D) if self.config.output_gate else None
        return gated_norm(y_HV, self.o_norm, gate_C, self.config.kernel)
