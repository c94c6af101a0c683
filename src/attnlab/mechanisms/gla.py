"""Gated Linear Attention: a matrix memory a head, each key channel forgetting at its own rate.

    S_t = Diag(exp(g_t)) S_{t-1} + k_t v_t^T        y_t = K^-0.5 q_t S_t

    q, k, v = W x_t        g_t = logsigmoid(W_2 W_1 x_t + b) / 16
    out_t = W_o [rms(y_t) silu(W_g x_t)]

It costs the same for every token, however many came before. Parameters are named and begin as in
flash-linear-attention's layer of this name, but for the norm, which is `o_norm` here. Value heads
are twice as wide as key heads by default, as in the paper.

Yang et al. 2023 (arXiv:2312.06635).
Shapes: B batch, T tokens, D model width, H heads, K key width, V value width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from attnlab.config import Problem
from attnlab.kernels import gated_linear_attention as linear
from attnlab.mechanism import Cost, Mechanism, MechanismConfig
from attnlab.modules.gated_norm import gated_norm
from attnlab.modules.memory_heads import MemoryHeadsConfig, at_least_1
from attnlab.modules.widened import widened


@dataclass(frozen=True, kw_only=True)
class GLA(MemoryHeadsConfig, MechanismConfig):
    expand_v: float = 2.0
    gate_rank: int = 16  # of the projection that decays are read out of
    gate_normalizer: float = 16.0  # divides log decays: the higher, the longer a memory

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from at_least_1(self, "gate_rank")
        if self.gate_normalizer <= 0:
            yield Problem("gate_normalizer", f"must be positive, got {self.gate_normalizer}")

    def cost(self, d_model: int, context: int, itemsize: int = 2) -> Cost:
        """As the contract says; the matrix memory is kept in float32 or wider."""
        del context
        gates = self.gate_rank * (d_model + self.keys)
        products = d_model * (2 * self.keys + 3 * self.values) + gates
        memory = self.keys * self.value_dim
        return Cost(
            params=products + self.keys + self.value_dim,
            flops=2 * products + 2 * 2 * memory,  # the write, the read
            state_bytes=max(itemsize, 4) * memory,
        )

    def build(self, d_model: int, dropout: float = 0.0) -> "GLAMixer":
        del dropout  # there are no attention weights
        return GLAMixer(self, d_model)


class GLAState(NamedTuple):
    memory_BHKV: Tensor  # float32 or wider: it sums over all tokens seen


class GLAMixer(Mechanism[GLAState]):
    def __init__(self, config: GLA, d_model: int) -> None:
        super().__init__()
        self.config = config
        self.q_proj = nn.Linear(d_model, config.keys, bias=False)
        self.k_proj = nn.Linear(d_model, config.keys, bias=False)
        self.v_proj = nn.Linear(d_model, config.values, bias=False)
        self.g_proj = nn.Linear(d_model, config.values, bias=False)
        self.gk_proj = nn.Sequential(
            nn.Linear(d_model, config.gate_rank, bias=False),
            nn.Linear(config.gate_rank, config.keys),
        )
        self.o_norm = nn.RMSNorm(config.value_dim, eps=1e-5)
        self.o_proj = nn.Linear(config.values, d_model, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.prefill(x_BTD, x_BTD.shape[1])[0]

    def init_state(self, batch_size: int, capacity: int) -> GLAState:
        del capacity  # the state is as large for one token as for a million
        config, weight = self.config, self.q_proj.weight
        shape = batch_size, config.n_heads, config.head_dim, config.value_dim
        return GLAState(widened(weight.new_zeros(shape)))

    def prefill(self, x_BTD: Tensor, capacity: int) -> tuple[Tensor, GLAState]:
        del capacity
        y_BTHV, memory_BHKV = linear.gated_linear_attention(
            *self._inputs(x_BTD), self.config.kernel
        )
        return self._output(x_BTD, y_BTHV), GLAState(memory_BHKV)

    def step(self, x_BD: Tensor, state: GLAState) -> tuple[Tensor, GLAState]:
        y_BHV, memory_BHKV = linear.step(*self._inputs(x_BD), state.memory_BHKV)
        return self._output(x_BD, y_BHV), GLAState(memory_BHKV)

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> str:
        return linear.resolve(self.config.kernel, device, dtype, self.config.head_dim, "channel")

    def _inputs(self, x_D: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys, values and log decays by head, of x (..., D)."""
        config = self.config
        q_HK, k_HK, g_HK = (
            project(x_D).unflatten(-1, (config.n_heads, config.head_dim))
            for project in (self.q_proj, self.k_proj, self.gk_proj)
        )
        v_HV = self.v_proj(x_D).unflatten(-1, (config.n_heads, config.value_dim))
        g_HK = logsigmoid(widened(g_HK)) / config.gate_normalizer
        return q_HK * config.head_dim**-0.5, k_HK, v_HV, g_HK

    def _output(self, x_D: Tensor, y_HV: Tensor) -> Tensor:
        return self.o_proj(
            gated_norm(y_HV, self.o_norm, self.g_proj(x_D), self.config.kernel).to(x_D.dtype)
        )
