"""Gated DeltaNet: a matrix memory a head that forgets by a learned scalar and overwrites by key.

    S_t = exp(g_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T        y_t = K^-0.5 q_t S_t

    q, k, v = conv(W x)  each, q and k then of length 1        beta_t = sigmoid(w_b x_t)
    g_t = -exp(A_log) softplus(w_a x_t + dt_bias)              out_t = W_o [rms(y_t) silu(W_g x_t)]

It costs the same for every token, however many came before. Parameters are named and begin as in
flash-linear-attention's layer of this name, but for its three convolutions: `qkv_conv1d` is the one
over the channels of all three.

Yang, Kautz, Hatamizadeh 2024 (arXiv:2412.06464).
Shapes: B batch, T tokens, D model width, H heads, K key width, V value width, C channels of all
heads, P past tokens of the convolution.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu, softplus

from attnlab.blocks.short_convolution import ShortConvolution
from attnlab.config import Problem
from attnlab.kernels import gated_delta_rule as rule
from attnlab.mechanism import Cost, Mechanism, MechanismConfig


@dataclass(frozen=True, kw_only=True)
class GatedDeltaNet(MechanismConfig):
    n_heads: int = 4
    head_dim: int = 32  # of a query and key; n_heads * head_dim need not be d_model
    expand_v: float = 1.0  # a value head is this many times as wide
    conv_size: int = 4  # tokens that a convolution sees, the present one included
    output_gate: bool = True
    kernel: rule.Kernel = "auto"

    @property
    def value_dim(self) -> int:
        """Width of a value head."""
        return round(self.head_dim * self.expand_v)

    def problems(self) -> Iterator[Problem]:
        for field in ("n_heads", "head_dim", "conv_size"):
            if getattr(self, field) < 1:
                yield Problem(field, f"must be at least 1, got {getattr(self, field)}")
        if self.expand_v <= 0:
            yield Problem("expand_v", f"must be positive, got {self.expand_v}")
        elif not math.isclose(self.value_dim, self.head_dim * self.expand_v, rel_tol=1e-6):
            width = self.head_dim * self.expand_v
            yield Problem("expand_v", f"makes a value head of {width:g}: choose a whole number")

    def cost(self, d_model: int, context: int, itemsize: int = 2) -> Cost:
        """As the contract says; the matrix memory is kept in float32 or wider."""
        del context
        keys, values = self.n_heads * self.head_dim, self.n_heads * self.value_dim
        convolved = 2 * keys + values
        projections = d_model * (convolved + 2 * self.n_heads + (1 + self.output_gate) * values)
        memory = keys * self.value_dim
        return Cost(
            params=projections + self.conv_size * convolved + 2 * self.n_heads + self.value_dim,
            flops=2 * projections + 3 * 2 * memory,  # what the key recalls, the write, the read
            state_bytes=max(itemsize, 4) * memory + itemsize * (self.conv_size - 1) * convolved,
        )

    def build(self, d_model: int, dropout: float = 0.0) -> "GatedDeltaNetMixer":
        del dropout  # there are no attention weights
        return GatedDeltaNetMixer(self, d_model)


class DeltaState(NamedTuple):
    memory_BHKV: Tensor  # float32 or wider: it sums over all tokens seen
    past_BPC: Tensor  # the last inputs of the convolution, in the parameters' dtype


class GatedDeltaNetMixer(Mechanism[DeltaState]):
    def __init__(self, config: GatedDeltaNet, d_model: int) -> None:
        super().__init__()
        self.config = config
        heads = config.n_heads
        keys, values = heads * config.head_dim, heads * config.value_dim
        self.q_proj = nn.Linear(d_model, keys, bias=False)
        self.k_proj = nn.Linear(d_model, keys, bias=False)
        self.v_proj = nn.Linear(d_model, values, bias=False)
        self.a_proj = nn.Linear(d_model, heads, bias=False)
        self.b_proj = nn.Linear(d_model, heads, bias=False)
        self.A_log = nn.Parameter(_initial_A_log(heads))
        self.dt_bias = nn.Parameter(_initial_dt_bias(heads))
        self.qkv_conv1d = ShortConvolution(2 * keys + values, config.conv_size)
        if config.output_gate:
            self.g_proj = nn.Linear(d_model, values, bias=False)
        self.o_norm = nn.RMSNorm(config.value_dim, eps=1e-5)
        self.o_proj = nn.Linear(values, d_model, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        qkv_BTC = self.qkv_conv1d(self._qkv(x_BTD))
        y_BTHV, _ = rule.gated_delta_rule(*self._inputs(x_BTD, qkv_BTC), self.config.kernel)
        return self._output(x_BTD, y_BTHV)

    def init_state(self, batch_size: int, capacity: int) -> DeltaState:
        del capacity  # the state is as large for one token as for a million
        config, dtype = self.config, self.o_proj.weight.dtype
        shape = batch_size, config.n_heads, config.head_dim, config.value_dim
        return DeltaState(
            self.o_proj.weight.new_zeros(shape, dtype=torch.promote_types(dtype, torch.float32)),
            self.qkv_conv1d.init_state(batch_size),
        )

    def prefill(self, x_BTD: Tensor, capacity: int) -> tuple[Tensor, DeltaState]:
        del capacity
        qkv_BTC, past_BPC = self.qkv_conv1d.prefill(self._qkv(x_BTD))
        inputs = self._inputs(x_BTD, qkv_BTC)
        y_BTHV, memory_BHKV = rule.gated_delta_rule(*inputs, self.config.kernel)
        return self._output(x_BTD, y_BTHV), DeltaState(memory_BHKV, past_BPC)

    def step(self, x_BD: Tensor, state: DeltaState) -> tuple[Tensor, DeltaState]:
        qkv_BC, past_BPC = self.qkv_conv1d.step(self._qkv(x_BD), state.past_BPC)
        y_BHV, memory_BHKV = rule.step(*self._inputs(x_BD, qkv_BC), state.memory_BHKV)
        return self._output(x_BD, y_BHV), DeltaState(memory_BHKV, past_BPC)

    def initial_value(self, name: str, generator: torch.Generator) -> Tensor | None:
        if name == "A_log":
            return _initial_A_log(self.config.n_heads, generator)
        if name == "dt_bias":
            return _initial_dt_bias(self.config.n_heads, generator)
        if name == "qkv_conv1d.weight":
            channels, width = self.qkv_conv1d.weight.shape
            return ShortConvolution.initial_weight(channels, width, generator)
        return None

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> str:
        return rule.resolve(self.config.kernel, device, dtype, self.config.head_dim)

    def _qkv(self, x_D: Tensor) -> Tensor:
        return torch.cat([self.q_proj(x_D), self.k_proj(x_D), self.v_proj(x_D)], -1)

    def _inputs(self, x_D: Tensor, qkv_C: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys and values by head, then g and beta, of x (..., D)."""
        heads, width = self.config.n_heads, self.config.head_dim
        qk_C, v_C = qkv_C.tensor_split([2 * heads * width], -1)
        q_HK, k_HK = _unit(qk_C.unflatten(-1, (2, heads, width))).unbind(-3)
        v_HV = v_C.unflatten(-1, (heads, self.config.value_dim))
        a_H, b_H = _wide(self.a_proj(x_D)), _wide(self.b_proj(x_D))
        g_H = -_wide(self.A_log).exp() * softplus(a_H + _wide(self.dt_bias))
        return q_HK, k_HK, v_HV, g_H, b_H.sigmoid()

    def _output(self, x_D: Tensor, y_HV: Tensor) -> Tensor:
        weight_V, eps = _wide(self.o_norm.weight), self.o_norm.eps
        y_C = rms_norm(_wide(y_HV), weight_V.shape, weight_V, eps).flatten(-2)
        if self.config.output_gate:
            y_C = y_C * silu(_wide(self.g_proj(x_D)))
        return self.o_proj(y_C.to(x_D.dtype))


def _unit(x_HK: Tensor) -> Tensor:
    """x / sqrt(|x|^2 + 1e-6) over the last dimension, through the RMS norm, which is one kernel."""
    width = x_HK.shape[-1]
    return rms_norm(x_HK, (width,), eps=1e-6 / width) * width**-0.5


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _initial_A_log(heads: int, generator: torch.Generator | None = None) -> Tensor:
    """log A for A uniform in (0, 16)."""
    return torch.rand(heads, generator=generator).clamp_min(1e-4).mul(16).log()


def _initial_dt_bias(heads: int, generator: torch.Generator | None = None) -> Tensor:
    """softplus^-1(dt) for dt log-uniform in (0.001, 0.1)."""
    spread = torch.rand(heads, generator=generator) * math.log(0.1 / 0.001)
    return (0.001 * spread.exp()).expm1().log()
