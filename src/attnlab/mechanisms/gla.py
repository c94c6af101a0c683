"""Gated Linear Attention: a matrix memory per head, whose key channels have decays of their own.

    S_t = Diag(exp(g_t)) S_{t-1} + k_t v_t^T        y_t = K^-0.5 q_t S_t

    q, k, v = W x_t        g_t = logsigmoid(W_2 W_1 x_t + b) / 16
    out_t = W_o [rms(y_t) silu(W_g x_t)]

The cost per token is the same at every context length. Names and initial values of parameters are
those of flash-linear-attention's layer of this name, except for the norm, which is `o_norm` here.
Value heads are by default twice as wide as key heads, as in the paper.

Yang et al. 2023 (arXiv:2312.06635).
Shapes: B batch, T tokens, D model width, H heads, K key width, V value width, C = H V.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from attnlab.config import Problem
from attnlab.kernels import gated_linear_attention
from attnlab.mechanism import Cost, Mechanism, MechanismConfig
from attnlab.modules.matrix_memory import MemoryHeadsConfig, at_least_1
from attnlab.modules.norms import gated_norm, widened


@dataclass(frozen=True, kw_only=True)
class GLA(MemoryHeadsConfig, MechanismConfig):
    expand_v: float = 2.0  # width of a value head, as a multiple of head_dim
    gate_rank: int = 16  # width of the bottleneck W_1 of the decays
    gate_normalizer: float = 16.0  # divides log decays: the larger, the slower the decay

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from at_least_1(self, "gate_rank")
        if self.gate_normalizer <= 0:
            yield Problem("gate_normalizer", f"must be positive, got {self.gate_normalizer}")

    def cost(self, d_model: int, context: int, itemsize: int = 2) -> Cost:
        del context
        decays = self.gate_rank * (d_model + self.keys)
        matrices = d_model * (2 * self.keys + 3 * self.values) + decays  # q, k, v, g, o
        memory = self.keys * self.value_dim
        return Cost(
            params=matrices + self.keys + self.value_dim,  # the last two: b, the norm
            flops=2 * matrices + 2 * 2 * memory,  # write, read
            state_bytes=max(itemsize, 4) * memory,  # float32 or wider
        )

    def forward_flops(self, d_model: int, context: int) -> int:
        """Return the FLOPs of the form of `forward`, which reads and writes by chunks."""
        of_step = 2 * 2 * self.n_heads * self.head_dim * self.value_dim
        of_head = gated_linear_attention.flops(
            context, self.head_dim, self.value_dim, "channel", self.kernel
        )
        return self.cost(d_model, context).flops - of_step + self.n_heads * of_head // context

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
        y_BTHV, _ = gated_linear_attention.gated_linear_attention(
            *self._inputs(x_BTD), self.config.kernel
        )
        return self._output(x_BTD, y_BTHV)

    def init_state(self, batch_size: int, capacity: int) -> GLAState:
        del capacity  # the state does not grow with the number of tokens
        heads, key, value = self.config.n_heads, self.config.head_dim, self.config.value_dim
        return GLAState(widened(self.o_proj.weight.new_zeros(batch_size, heads, key, value)))

    def prefill(self, x_BTD: Tensor, capacity: int) -> tuple[Tensor, GLAState]:
        del capacity
        y_BTHV, memory_BHKV = gated_linear_attention.gated_linear_attention(
            *self._inputs(x_BTD), self.config.kernel
        )
        return self._output(x_BTD, y_BTHV), GLAState(memory_BHKV)

    def step(self, x_BD: Tensor, state: GLAState) -> tuple[Tensor, GLAState]:
        y_BHV, memory_BHKV = gated_linear_attention.step(*self._inputs(x_BD), state.memory_BHKV)
        return self._output(x_BD, y_BHV), GLAState(memory_BHKV)

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> str:
        config = self.config
        return gated_linear_attention.resolve(
            config.kernel, device, dtype, config.head_dim, "channel"
        )

    def _inputs(self, x_D: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return queries, keys, values and log decays by head, of x (..., D)."""
        config = self.config
        q_HK, k_HK, g_HK = (
            project(x_D).unflatten(-1, (config.n_heads, config.head_dim))
            for project in (self.q_proj, self.k_proj, self.gk_proj)
        )
        v_HV = self.v_proj(x_D).unflatten(-1, (config.n_heads, config.value_dim))
        g_HK = logsigmoid(widened(g_HK)) / config.gate_normalizer
        return q_HK * config.head_dim**-0.5, k_HK, v_HV, g_HK

    def _output(self, x_D: Tensor, y_HV: Tensor) -> Tensor:
        y_C = gated_norm(y_HV, self.o_norm, self.g_proj(x_D), self.config.kernel)
        return self.o_proj(y_C.to(x_D.dtype))
