"""Mechanisms that keep a matrix memory per head and overwrite in it what a key recalls.

    S_t = prod_j (I - beta_tj k_tj k_tj^T) Diag(exp(g_t)) S_{t-1} + ...      y_t = K^-0.5 q_t S_t

    q, k, v = conv(W x)  each, q and k then of length 1        beta_t = sigmoid(w_b x_t)

The memory decays once per token, is written one time or several (`writes`), and then read. Kinds
differ in what decays, in the number of writes, and in the norm and gate of the output. Those with
at most one decay per head are a `ScalarDecayMemory`:

    g_t = -exp(A_log) softplus(w_a x_t + dt_bias)         out_t = W_o [rms(y_t) silu(W_g x_t)]

The forms of the gated delta rule (kernels/gated_delta_rule.py) compute several writes as several
tokens each, of which the first decays and the last reads.

Yang, Kautz, Hatamizadeh 2024 (arXiv:2412.06464); Siems et al. 2025 (arXiv:2502.10297).
Shapes: B batch, T tokens, N writes per token, S = T N, D model width, H heads, K key width, V value
width, P past tokens of the convolution, C channels: of queries, keys and values, or H V of the
output.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from attnlab.config import Problem
from attnlab.kernels import gated_delta_rule as rule
from attnlab.kernels.flash_linear_attention import Gate
from attnlab.kernels.norms import gated_norm
from attnlab.mechanism import Cost, MechanismConfig
from attnlab.modules.matrix_memory import (
    ConvolvedMemory,
    MemoryHeadsConfig,
    MemoryState,
    at_least_1,
    initial_A_log,
    initial_dt_bias,
    log_decay,
    write_strength,
)
from attnlab.modules.short_convolution import ShortConvolution


@dataclass(frozen=True, kw_only=True)
class DeltaMemoryConfig(MemoryHeadsConfig, MechanismConfig, ABC):
    """Sizes and cost of a `DeltaMemory`."""

    conv_size: int = 4  # tokens that the convolution covers, the current one included
    negative_eigenvalues: bool = False  # beta in (0, 2) in place of (0, 1)

    @property
    @abstractmethod
    def gate(self) -> Gate:
        """Return the number of decays: none, one per head, or one per channel of its keys."""

    @property
    def writes(self) -> int:
        """Writes per token."""
        return 1

    @abstractmethod
    def more_params(self, d_model: int) -> tuple[int, int]:
        """Return the parameters beside q, k, v, b, o and their convolution: of matrices, others."""

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from at_least_1(self, "conv_size")

    def cost(self, d_model: int, context: int, itemsize: int = 2) -> Cost:
        del context
        more, vectors = self.more_params(d_model)
        channels, memory = sum(self.channels), self.keys * self.value_dim
        matrices = d_model * (channels + self.writes * self.n_heads + self.values) + more
        return Cost(
            params=matrices + self.conv_size * channels + vectors,
            flops=2 * matrices + self._flops_of_heads,
            # the memory is float32 or wider
            state_bytes=max(itemsize, 4) * memory + itemsize * (self.conv_size - 1) * channels,
        )

    def forward_flops(self, d_model: int, context: int) -> int:
        """Return the FLOPs of the form of `forward`, which reads and writes by chunks."""
        tokens, widths = self.writes * context, (self.head_dim, self.value_dim)
        of_head = rule.flops(tokens, *widths, self.gate, self.kernel)
        chunked = self.n_heads * of_head // context
        return self.cost(d_model, context).flops - self._flops_of_heads + chunked

    @property
    def channels(self) -> tuple[int, int, int]:
        """Widths of the queries, the keys and the values of a token."""
        return self.keys, self.writes * self.keys, self.writes * self.values

    @property
    def _flops_of_heads(self) -> int:
        """FLOPs of a decode step in the memory: recall by key and write, each time, then read."""
        return (2 * self.writes + 1) * 2 * self.keys * self.value_dim


Settings = TypeVar("Settings", bound=DeltaMemoryConfig)


Writes = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]


class _Inputs(NamedTuple):
    """Queries and writes of tokens (...): keys, values and strengths by write."""

    q_HK: Tensor
    k_NHK: Tensor
    v_NHV: Tensor
    g_H: Tensor | None  # or g_HK
    beta_NH: Tensor


class DeltaMemory(ConvolvedMemory, Generic[Settings]):
    """A memory by the gated delta rule, with projections, convolution and norm."""

    def __init__(self, config: Settings, d_model: int) -> None:
        super().__init__(d_model, config.channels)
        self.config = config
        self.b_proj = nn.Linear(d_model, config.writes * config.n_heads, bias=False)
        self.qkv_conv1d = ShortConvolution(sum(config.channels), config.conv_size, config.kernel)
        self.o_norm = nn.RMSNorm(config.value_dim, eps=1e-5)
        self.o_proj = nn.Linear(config.values, d_model, bias=False)

    @abstractmethod
    def decays(self, x_D: Tensor) -> Tensor | None:
        """Return the log decays by head `g_H`, by channel `g_HK`, or None, of x (..., D)."""

    @abstractmethod
    def normed(self, x_D: Tensor, y_HV: Tensor) -> Tensor:
        """Return `y_C`, normalised and gated, of tokens `x` that read `y` from the memory."""

    @property
    def memory_size(self) -> tuple[int, int, int]:
        return self.config.n_heads, self.config.head_dim, self.config.value_dim

    def forward(self, x_BTD: Tensor) -> Tensor:
        of_S = self._writes(x_BTD, self.qkv_conv1d(self.project(x_BTD)))
        y_BSHV, _ = rule.gated_delta_rule(*of_S, self.config.kernel)
        return self._output(x_BTD, after_writes(y_BSHV, self.config.writes))

    def prefill(self, x_BTD: Tensor, capacity: int) -> tuple[Tensor, MemoryState]:
        del capacity
        qkv_BTC, past_BPC = self.qkv_conv1d.prefill(self.project(x_BTD))
        of_S = self._writes(x_BTD, qkv_BTC)
        y_BSHV, memory_BHKV = rule.gated_delta_rule(*of_S, self.config.kernel)
        y_BTHV = after_writes(y_BSHV, self.config.writes)
        return self._output(x_BTD, y_BTHV), MemoryState(memory_BHKV, past_BPC)

    def step(self, x_BD: Tensor, state: MemoryState) -> tuple[Tensor, MemoryState]:
        qkv_BC, past_BPC = self.convolve_step(x_BD, state.past_BPC)
        of, memory_BHKV = self._inputs(x_BD, qkv_BC), state.memory_BHKV
        k_BNHK = rule.unit(of.k_NHK)
        for n in range(self.config.writes):
            g_BH = of.g_H if n == 0 else None
            memory_BHKV = rule.write(
                k_BNHK[:, n], of.v_NHV[:, n], g_BH, of.beta_NH[:, n], memory_BHKV
            )
        y_BHV = rule.read(rule.unit(of.q_HK), memory_BHKV)
        return self._output(x_BD, y_BHV), MemoryState(memory_BHKV, past_BPC)

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> str:
        config = self.config
        return rule.resolve(config.kernel, device, dtype, config.head_dim, config.gate)

    def _inputs(self, x_D: Tensor, qkv_C: Tensor) -> _Inputs:
        """Return what the memory reads and writes, of x (..., D) and its convolved channels."""
        by_write = self.config.writes, self.config.n_heads
        q_C, k_C, v_C = qkv_C.split(list(self.config.channels), -1)
        q_HK = q_C.unflatten(-1, (self.config.n_heads, -1))
        k_NHK, v_NHV = (each_C.unflatten(-1, (*by_write, -1)) for each_C in (k_C, v_C))
        beta_NH = write_strength(self.b_proj(x_D), self.config.negative_eigenvalues)
        return _Inputs(q_HK, k_NHK, v_NHV, self.decays(x_D), beta_NH.unflatten(-1, by_write))

    def _writes(self, x_BTD: Tensor, qkv_BTC: Tensor) -> Writes:
        return as_writes(*self._inputs(x_BTD, qkv_BTC))

    def _output(self, x_D: Tensor, y_HV: Tensor) -> Tensor:
        return self.o_proj(self.normed(x_D, y_HV).to(x_D.dtype))


@dataclass(frozen=True, kw_only=True)
class ScalarDecayConfig(DeltaMemoryConfig, ABC):
    """Sizes and cost of a `ScalarDecayMemory`, whose `gate` is none or one per head."""

    output_gate: bool = True  # multiply the output by silu(W_g x)

    def more_params(self, d_model: int) -> tuple[int, int]:
        decays = self.n_heads if self.gate == "head" else 0
        matrices = d_model * (decays + self.output_gate * self.values)  # a, g
        return matrices, 2 * decays + self.value_dim  # A_log, dt_bias, the norm

    def build(self, d_model: int, dropout: float = 0.0) -> "ScalarDecayMemory":
        del dropout  # there are no attention weights
        return ScalarDecayMemory(self, d_model)


class ScalarDecayMemory(DeltaMemory[ScalarDecayConfig]):
    """A delta memory with at most one decay per head, and a gate per channel of its output."""

    def __init__(self, config: ScalarDecayConfig, d_model: int) -> None:
        super().__init__(config, d_model)
        if config.gate == "head":
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
        if self.config.gate == "none":
            return None
        return log_decay(self.a_proj(x_D), self.A_log, self.dt_bias)

    def normed(self, x_D: Tensor, y_HV: Tensor) -> Tensor:
        gate_C = self.g_proj(x_D) if self.config.output_gate else None
        return gated_norm(y_HV, self.o_norm, gate_C, self.config.kernel)


def as_writes(
    q_BTHK: Tensor,
    k_BTNHK: Tensor,
    v_BTNHV: Tensor,
    g_BTH: Tensor | None,
    beta_BTNH: Tensor,
) -> Writes:
    """Return the arguments of `gated_delta_rule` that make each write a token of its own.

    A token decays by g, is written N times and then read: `after_writes` has what it reads. Nothing
    here calls the rule: where its kernel ends a compiled graph, it shall end that of one function.
    """
    writes = k_BTNHK.shape[2]
    k_BSHK, v_BSHV, beta_BSH = (x.flatten(1, 2) for x in (k_BTNHK, v_BTNHV, beta_BTNH))
    q_BSHK = _among(q_BTHK, writes, writes - 1)
    g_BSH = None if g_BTH is None else _among(g_BTH, writes, 0)
    return q_BSHK, k_BSHK, v_BSHV, g_BSH, beta_BSH


def after_writes(y_BSHV: Tensor, writes: int) -> Tensor:
    """Return `y_BTHV`: what was read after the last write of each token."""
    return y_BSHV[:, writes - 1 :: writes]


def _among(x_BTH: Tensor, writes: int, place: int) -> Tensor:
    """Return `x_BSH` with each token's x at one place of its writes, and zeros at the others."""
    if writes == 1:
        return x_BTH
    ends = [0, 0] * (x_BTH.ndim - 2)
    return pad(x_BTH[:, :, None], (*ends, place, writes - 1 - place)).flatten(1, 2)
