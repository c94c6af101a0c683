"""Mamba-2: a state space model whose memory, a matrix a head, decays by one scalar of the token.

    S_t = exp(A dt_t) S_{t-1} + B_t (dt_t x_t)^T        y_t = C_t S_t + D x_t

    C, B, x = conv(W u)  each        dt_t = softplus(w_dt u_t + dt_bias)        A = -exp(A_log)
    out_t = W_o rms(y_t silu(W_z u_t))   over all channels of all heads

By the paper's duality this is linear attention: C is the query, B the key and dt x the value, and
parameters are named so: `q_proj`, `k_proj` and `v_proj` read C, B and x out of the token u, and
`g_proj` reads z. All heads share one C and one B. What is published as Mamba-2 has heads of 64, a
state of 128 and n_heads * head_dim = 2 d_model, and also a bias in its convolution. It costs the
same for every token, however many came before.

Dao and Gu 2024 (arXiv:2405.21060).
Shapes: D model width, H heads, K width of the state, V width of a head.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu, softplus

from attnlab.config import Problem
from attnlab.kernels import gated_linear_attention as linear
from attnlab.kernels.forms import Kernel
from attnlab.mechanism import Cost, MechanismConfig
from attnlab.modules.convolved_memory import ConvolvedMemory, Inputs
from attnlab.modules.decay import initial_A_log, initial_dt_bias
from attnlab.modules.memory_heads import at_least_1
from attnlab.modules.short_convolution import ShortConvolution
from attnlab.modules.widened import widened


@dataclass(frozen=True, kw_only=True)
class Mamba2(MechanismConfig):
    n_heads: int = 4
    head_dim: int = 32  # n_heads * head_dim need not be twice d_model
    d_state: int = 64  # of a B and a C, which all heads share
    conv_size: int = 4  # tokens that a convolution sees, the present one included
    kernel: Kernel = "auto"

    def problems(self) -> Iterator[Problem]:
        yield from at_least_1(self, "n_heads", "head_dim", "d_state", "conv_size")

    def cost(self, d_model: int, context: int, itemsize: int = 2) -> Cost:
        """As the contract says; the matrix memory is kept in float32 or wider."""
        del context
        inner = self.n_heads * self.head_dim
        convolved, memory = inner + 2 * self.d_state, inner * self.d_state
        products = d_model * (convolved + 2 * inner + self.n_heads)
        vectors = 3 * self.n_heads + inner  # A_log, dt_bias, D, the norm
        return Cost(
            params=products + self.conv_size * convolved + vectors,
            flops=2 * products + 2 * 2 * memory,  # the write, the read
            state_bytes=max(itemsize, 4) * memory + itemsize * (self.conv_size - 1) * convolved,
        )

    def build(self, d_model: int, dropout: float = 0.0) -> "Mamba2Mixer":
        del dropout  # there are no attention weights
        return Mamba2Mixer(self, d_model)


class Mamba2Mixer(ConvolvedMemory):
    def __init__(self, config: Mamba2, d_model: int) -> None:
        super().__init__()
        self.config = config
        heads, inner = config.n_heads, config.n_heads * config.head_dim
        self.memory_shape = heads, config.d_state, config.head_dim
        self.q_proj = nn.Linear(d_model, config.d_state, bias=False)
        self.k_proj = nn.Linear(d_model, config.d_state, bias=False)
        self.v_proj = nn.Linear(d_model, inner, bias=False)
        self.dt_proj = nn.Linear(d_model, heads, bias=False)
        self.A_log = nn.Parameter(initial_A_log(heads, lowest=1))
        self.dt_bias = nn.Parameter(initial_dt_bias(heads))
        self.D = nn.Parameter(torch.ones(heads))
        self.qkv_conv1d = ShortConvolution(
            2 * config.d_state + inner, config.conv_size, config.kernel
        )
        self.g_proj = nn.Linear(d_model, inner, bias=False)
        self.norm = nn.RMSNorm(inner, eps=1e-5)
        self.o_proj = nn.Linear(inner, d_model, bias=False)

    def inputs(self, x_D: Tensor, qkv_C: Tensor) -> Inputs:
        """C and B of each head, x by head, and dt (..., H)."""
        config = self.config
        qk_C, v_C = qkv_C.tensor_split([2 * config.d_state], -1)
        of_heads = *qk_C.shape[:-1], config.n_heads, config.d_state
        q_HK, k_HK = (x_K[..., None, :].expand(of_heads) for x_K in qk_C.chunk(2, -1))
        dt_H = softplus(widened(self.dt_proj(x_D)) + widened(self.dt_bias))
        return q_HK, k_HK, v_C.unflatten(-1, (config.n_heads, config.head_dim)), dt_H

    def over_time(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        q_BTHK, k_BTHK, x_BTHV, dt_BTH = inputs
        v_BTHV, g_BTH = self._values_and_decays(x_BTHV, dt_BTH)
        y_BTHV, memory_BHKV = linear.gated_linear_attention(
            q_BTHK, k_BTHK, v_BTHV, g_BTH, self.config.kernel
        )
        return self._with_skip(y_BTHV, x_BTHV), memory_BHKV

    def one_more(self, inputs: Inputs, memory_BHKV: Tensor) -> tuple[Tensor, Tensor]:
        q_BHK, k_BHK, x_BHV, dt_BH = inputs
        v_BHV, g_BH = self._values_and_decays(x_BHV, dt_BH)
        y_BHV, memory_BHKV = linear.step(q_BHK, k_BHK, v_BHV, g_BH, memory_BHKV)
        return self._with_skip(y_BHV, x_BHV), memory_BHKV

    def output(self, x_D: Tensor, y_HV: Tensor) -> Tensor:
        y_C = y_HV.flatten(-2) * silu(widened(self.g_proj(x_D)))
        weight_C = widened(self.norm.weight)
        return self.o_proj(rms_norm(y_C, weight_C.shape, weight_C, self.norm.eps).to(x_D.dtype))

    def initial_value(self, name: str, generator: torch.Generator) -> Tensor | None:
        if name == "A_log":
            return initial_A_log(len(self.A_log), generator, lowest=1)
        if name == "dt_bias":
            return initial_dt_bias(len(self.dt_bias), generator)
        return torch.ones_like(self.D) if name == "D" else super().initial_value(name, generator)

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> str:
        return linear.resolve(self.config.kernel, device, dtype, self.config.d_state, "head")

    def _values_and_decays(self, x_HV: Tensor, dt_H: Tensor) -> tuple[Tensor, Tensor]:
        return (x_HV * dt_H[..., None]).to(x_HV.dtype), -widened(self.A_log).exp() * dt_H

    def _with_skip(self, y_HV: Tensor, x_HV: Tensor) -> Tensor:
        return widened(y_HV) + widened(self.D)[:, None] * x_HV
