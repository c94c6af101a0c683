"""Mamba-2: a state space model; its memory, a matrix per head, decays by one scalar per token.

    S_t = exp(A dt_t) S_{t-1} + B_t (dt_t x_t)^T        y_t = C_t S_t + D x_t

    C, B, x = conv(W u)  each        dt_t = softplus(w_dt u_t + dt_bias)        A = -exp(A_log)
    out_t = W_o rms(y_t silu(W_z u_t))   over all channels of all heads

By the paper's duality this is linear attention: C is the query, B the key and dt x the value, and
parameters are named so: `q_proj`, `k_proj` and `v_proj` compute C, B and x from the token u, and
`g_proj` computes z. All heads share one C and one B. The published Mamba-2 has heads of 64, a state
of 128, n_heads * head_dim = 2 d_model, and a bias in its convolution. The cost per token is the
same at every context length.

Dao and Gu 2024 (arXiv:2405.21060).
Shapes: B batch, T tokens, D model width, H heads, K width of the state, V width of a head, P past
tokens of the convolution, C channels: of C, B and x, or H V of the output. In tensor names x_D is
the token u.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from attnlab.config import Problem
from attnlab.kernels import flash_linear_attention, gated_linear_attention
from attnlab.kernels.norms import rms_norm, widened
from attnlab.mechanism import Cost, MechanismConfig
from attnlab.modules.matrix_memory import (
    ConvolvedMemory,
    MemoryState,
    at_least_1,
    initial_A_log,
    initial_dt_bias,
)
from attnlab.modules.short_convolution import ShortConvolution


@dataclass(frozen=True, kw_only=True)
class Mamba2(MechanismConfig):
    n_heads: int = 4  # number of heads, each with a memory of its own
    head_dim: int = 32  # width of a head; n_heads * head_dim may differ from 2 d_model
    d_state: int = 64  # width of a B and a C, which all heads share
    conv_size: int = 4  # tokens that the convolution covers, the current one included
    kernel: flash_linear_attention.Kernel = "auto"  # implementation; all compute the same function

    def problems(self) -> Iterator[Problem]:
        yield from at_least_1(self, "n_heads", "head_dim", "d_state", "conv_size")

    def cost(self, d_model: int, context: int, itemsize: int = 2) -> Cost:
        del context
        inner = self.n_heads * self.head_dim
        channels, memory = inner + 2 * self.d_state, inner * self.d_state
        matrices = d_model * (channels + 2 * inner + self.n_heads)  # q, k, v, g, o, dt
        vectors = 3 * self.n_heads + inner  # A_log, dt_bias, D, the norm
        return Cost(
            params=matrices + self.conv_size * channels + vectors,
            flops=2 * matrices + 2 * 2 * memory,  # write, read
            # the memory is float32 or wider
            state_bytes=max(itemsize, 4) * memory + itemsize * (self.conv_size - 1) * channels,
        )

    def forward_flops(self, d_model: int, context: int) -> int:
        """Return the FLOPs of the form of `forward`, which reads and writes by chunks."""
        of_step = 2 * 2 * self.n_heads * self.d_state * self.head_dim
        of_head = gated_linear_attention.flops(
            context, self.d_state, self.head_dim, "head", self.kernel
        )
        return self.cost(d_model, context).flops - of_step + self.n_heads * of_head // context

    def build(self, d_model: int, dropout: float = 0.0) -> "Mamba2Mixer":
        del dropout  # there are no attention weights
        return Mamba2Mixer(self, d_model)


class Mamba2Mixer(ConvolvedMemory):
    def __init__(self, config: Mamba2, d_model: int) -> None:
        heads, inner = config.n_heads, config.n_heads * config.head_dim
        channels = config.d_state, config.d_state, inner
        super().__init__(d_model, channels)
        self.config = config
        self.dt_proj = nn.Linear(d_model, heads, bias=False)
        self.A_log = nn.Parameter(initial_A_log(heads, lowest=1))
        self.dt_bias = nn.Parameter(initial_dt_bias(heads))
        self.D = nn.Parameter(torch.ones(heads))
        self.qkv_conv1d = ShortConvolution(sum(channels), config.conv_size, config.kernel)
        self.g_proj = nn.Linear(d_model, inner, bias=False)
        self.norm = nn.RMSNorm(inner, eps=1e-5)
        self.o_proj = nn.Linear(inner, d_model, bias=False)

    @property
    def memory_size(self) -> tuple[int, int, int]:
        return self.config.n_heads, self.config.d_state, self.config.head_dim

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTHV, _ = self._over_time(x_BTD, self.qkv_conv1d(self.project(x_BTD)))
        return self._output(x_BTD, y_BTHV)

    def prefill(self, x_BTD: Tensor, capacity: int) -> tuple[Tensor, MemoryState]:
        del capacity
        qkv_BTC, past_BPC = self.qkv_conv1d.prefill(self.project(x_BTD))
        y_BTHV, memory_BHKV = self._over_time(x_BTD, qkv_BTC)
        return self._output(x_BTD, y_BTHV), MemoryState(memory_BHKV, past_BPC)

    def step(self, x_BD: Tensor, state: MemoryState) -> tuple[Tensor, MemoryState]:
        qkv_BC, past_BPC = self.convolve_step(x_BD, state.past_BPC)
        q_BHK, k_BHK, x_BHV, dt_BH = self._inputs(x_BD, qkv_BC)
        v_BHV, g_BH = self._values_and_decays(x_BHV, dt_BH)
        y_BHV, memory_BHKV = gated_linear_attention.step(
            q_BHK, k_BHK, v_BHV, g_BH, state.memory_BHKV
        )
        y_BHV = self._with_skip(y_BHV, x_BHV)
        return self._output(x_BD, y_BHV), MemoryState(memory_BHKV, past_BPC)

    def initial_value(self, name: str, generator: torch.Generator) -> Tensor | None:
        if name == "A_log":
            return initial_A_log(self.config.n_heads, generator, lowest=1)
        if name == "dt_bias":
            return initial_dt_bias(self.config.n_heads, generator)
        if name == "D":
            return torch.ones_like(self.D)
        return super().initial_value(name, generator)

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> str:
        config = self.config
        return gated_linear_attention.resolve(config.kernel, device, dtype, config.d_state, "head")

    def _over_time(self, x_BTD: Tensor, qkv_BTC: Tensor) -> tuple[Tensor, Tensor]:
        """Return `y_BTHV` of all tokens from an empty memory, and the last `memory_BHKV`."""
        q_BTHK, k_BTHK, x_BTHV, dt_BTH = self._inputs(x_BTD, qkv_BTC)
        v_BTHV, g_BTH = self._values_and_decays(x_BTHV, dt_BTH)
        y_BTHV, memory_BHKV = gated_linear_attention.gated_linear_attention(
            q_BTHK, k_BTHK, v_BTHV, g_BTH, self.config.kernel
        )
        return self._with_skip(y_BTHV, x_BTHV), memory_BHKV

    def _inputs(self, x_D: Tensor, qkv_C: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return C and B (..., H, K), x (..., H, V) and dt (..., H)."""
        config = self.config
        qk_C, v_C = qkv_C.tensor_split([2 * config.d_state], -1)
        of_heads = *qk_C.shape[:-1], config.n_heads, config.d_state
        q_HK, k_HK = (x_K[..., None, :].expand(of_heads) for x_K in qk_C.chunk(2, -1))
        dt_H = softplus(widened(self.dt_proj(x_D)) + widened(self.dt_bias))
        return q_HK, k_HK, v_C.unflatten(-1, (config.n_heads, config.head_dim)), dt_H

    def _values_and_decays(self, x_HV: Tensor, dt_H: Tensor) -> tuple[Tensor, Tensor]:
        """Return `v_HV` = dt x and the log decays `g_H` = A dt."""
        return (x_HV * dt_H[..., None]).to(x_HV.dtype), -widened(self.A_log).exp() * dt_H

    def _with_skip(self, y_HV: Tensor, x_HV: Tensor) -> Tensor:
        return widened(y_HV) + widened(self.D)[:, None] * x_HV

    def _output(self, x_D: Tensor, y_HV: Tensor) -> Tensor:
        y_C = y_HV.flatten(-2) * silu(widened(self.g_proj(x_D)))
        normed_C = rms_norm(y_C, widened(self.norm.weight), self.norm.eps)
        return self.o_proj(normed_C.to(x_D.dtype))
