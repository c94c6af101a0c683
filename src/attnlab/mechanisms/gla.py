"""Gated Linear Attention: a matrix memory per head, whose key channels have decays of their own.

    S_t = Diag(exp(g_t)) S_{t-1} + k_t v_t^T        y_t = K^-0.5 q_t S_t

    q, k, v = W x_t        g_t = logsigmoid(W_2 W_1 x_t + b) / 16
    out_t = W_o [rms(y_t) silu(W_g x_t)]

The cost per token is the same at every context length. Names and initial values of parameters are
those of flash-linear-attention's layer of this name, except for the norm, which is `o_norm` here.
Value heads are by default twice as wide as key heads, as in the paper.

Yang et al. 2023 (arXiv:2312.06635).
Shapes: D model width, H heads, K key width, V value width, C = H V.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from attnlab.config import Problem
from attnlab.kernels.norms import gated_norm, widened
from attnlab.modules.matrix_memory import GatedMemory, GatedMemoryConfig, at_least_1


@dataclass(frozen=True, kw_only=True)
class GLA(GatedMemoryConfig):
    gate = "channel"

    expand_v: float = 2.0  # width of a value head, as a multiple of head_dim
    gate_rank: int = 16  # width of the bottleneck W_1 of the decays
    gate_normalizer: float = 16.0  # divides log decays: the larger, the slower the decay

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from at_least_1(self, "gate_rank")
        if self.gate_normalizer <= 0:
            yield Problem("gate_normalizer", f"must be positive, got {self.gate_normalizer}")

    def more_params(self, d_model: int) -> tuple[int, int]:
        return self.gate_rank * (d_model + self.keys), self.keys + self.value_dim  # b, the norm

    def build(self, d_model: int, dropout: float = 0.0) -> "GLAMixer":
        del dropout  # there are no attention weights
        return GLAMixer(self, d_model)


class GLAMixer(GatedMemory[GLA]):
    def __init__(self, config: GLA, d_model: int) -> None:
        super().__init__(config, d_model)
        self.gk_proj = nn.Sequential(
            nn.Linear(d_model, config.gate_rank, bias=False),
            nn.Linear(config.gate_rank, config.keys),
        )
        self.o_norm = nn.RMSNorm(config.value_dim, eps=1e-5)

    def inputs(self, x_D: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        config = self.config
        q_HK, k_HK, g_HK = (
            project(x_D).unflatten(-1, (config.n_heads, config.head_dim))
            for project in (self.q_proj, self.k_proj, self.gk_proj)
        )
        v_HV = self.v_proj(x_D).unflatten(-1, (config.n_heads, config.value_dim))
        g_HK = logsigmoid(widened(g_HK)) / config.gate_normalizer
        return q_HK * config.head_dim**-0.5, k_HK, v_HV, g_HK

    def output(self, x_D: Tensor, y_HV: Tensor) -> Tensor:
        y_C = gated_norm(y_HV, self.o_norm, self.g_proj(x_D), self.config.kernel)
        return self.o_proj(y_C.to(x_D.dtype))
