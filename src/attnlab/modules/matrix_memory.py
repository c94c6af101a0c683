"""Sizes, decode state and decay of mechanisms that keep a matrix memory per head.

    S_t = exp(g_t) S_{t-1} + ...        g_t = -exp(A_log) softplus(a_t + dt_bias)

The log decay g_t <= 0 says how much of the memory is forgotten at token t. It is computed from a
projection a_t of the token; the rate A and the step size dt are initialised as in Mamba-2.

`GatedMemory` is what mechanisms share that only decay and add, S_t = exp(g_t) S_{t-1} + k_t v_t^T;
`ConvolvedMemory` what those share whose queries, keys and values pass through a short convolution.

Dao and Gu 2024 (arXiv:2405.21060); names of settings are those of Yang et al. 2024
(github.com/fla-org/flash-linear-attention).
Shapes: B batch, T tokens, D model width, H heads, K key width, V value width, P past tokens,
C channels.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from attnlab.config import Config, Problem
from attnlab.kernels import flash_linear_attention, gated_linear_attention
from attnlab.kernels.norms import widened
from attnlab.mechanism import Cost, Mechanism, MechanismConfig
from attnlab.modules.short_convolution import ShortConvolution


@dataclass(frozen=True, kw_only=True)
class MemoryHeadsConfig(Config):
    """Sizes of the heads. A mechanism's config inherits it before `MechanismConfig`."""

    n_heads: int = 4  # number of heads, each with a memory of its own
    head_dim: int = 32  # width of a query or key head; n_heads * head_dim may differ from d_model
    expand_v: float = 1.0  # width of a value head, as a multiple of head_dim
    kernel: flash_linear_attention.Kernel = "auto"  # implementation; all compute the same function

    @property
    def value_dim(self) -> int:
        """Width of a value head."""
        return round(self.head_dim * self.expand_v)

    @property
    def keys(self) -> int:
        """Width of the keys of all heads together."""
        return self.n_heads * self.head_dim

    @property
    def values(self) -> int:
        """Width of the values of all heads together."""
        return self.n_heads * self.value_dim

    def problems(self) -> Iterator[Problem]:
        yield from at_least_1(self, "n_heads", "head_dim")
        if self.expand_v <= 0:
            yield Problem("expand_v", f"must be positive, got {self.expand_v}")
        elif not math.isclose(self.value_dim, self.head_dim * self.expand_v, rel_tol=1e-6):
            width = self.head_dim * self.expand_v
            yield Problem("expand_v", f"makes a value head of {width:g}: choose a whole number")


def at_least_1(config: Config, *names: str) -> Iterator[Problem]:
    """Yield a problem for each of these fields that is less than 1."""
    for name in names:
        if getattr(config, name) < 1:
            yield Problem(name, f"must be at least 1, got {getattr(config, name)}")


class MemoryState(NamedTuple):
    """Decode state of a memory that is written through a short convolution."""

    memory_BHKV: Tensor  # float32 or wider: it sums over all tokens seen
    past_BPC: Tensor  # the last inputs of the convolution, in the parameters' dtype


class ConvolvedMemory(Mechanism[MemoryState]):
    """Projections of queries, keys and values, their convolution, and the decode state."""

    qkv_conv1d: ShortConvolution
    o_proj: nn.Linear

    def __init__(self, d_model: int, channels: tuple[int, int, int]) -> None:
        super().__init__()
        q, k, v = channels
        self.q_proj = nn.Linear(d_model, q, bias=False)
        self.k_proj = nn.Linear(d_model, k, bias=False)
        self.v_proj = nn.Linear(d_model, v, bias=False)

    @property
    @abstractmethod
    def memory_size(self) -> tuple[int, int, int]:
        """H, K and V of the memory."""

    def init_state(self, batch_size: int, capacity: int) -> MemoryState:
        del capacity  # the state does not grow with the number of tokens
        memory_BHKV = widened(self.o_proj.weight.new_zeros(batch_size, *self.memory_size))
        return MemoryState(memory_BHKV, self.qkv_conv1d.init_state(batch_size))

    def initial_value(self, name: str, generator: torch.Generator) -> Tensor | None:
        if name == "qkv_conv1d.weight":
            channels, width = self.qkv_conv1d.weight.shape
            return ShortConvolution.initial_weight(channels, width, generator)
        return None

    def project(self, x_BTD: Tensor) -> Tensor:
        """Return `qkv_BTC` before the convolution, by one product."""
        weights = self.q_proj.weight, self.k_proj.weight, self.v_proj.weight
        return linear(x_BTD, torch.cat(weights))

    def convolve_step(self, x_BD: Tensor, past_BPC: Tensor) -> tuple[Tensor, Tensor]:
        """Return `qkv_BC` of one more token after the convolution, and the next `past_BPC`."""
        qkv_BC = torch.cat([self.q_proj(x_BD), self.k_proj(x_BD), self.v_proj(x_BD)], -1)
        return self.qkv_conv1d.step(qkv_BC, past_BPC)


def log_decay(a_H: Tensor, A_log_H: Tensor, dt_bias_H: Tensor) -> Tensor:
    """Return g in float32 or wider, of the shape to which the three arguments broadcast."""
    return -widened(A_log_H).exp() * softplus(widened(a_H) + widened(dt_bias_H))


def write_strength(b_H: Tensor, negative_eigenvalues: bool) -> Tensor:
    """Return `beta_H` of its logits in float32 or wider: in (0, 1), or else in (0, 2)."""
    beta_H = widened(b_H).sigmoid()
    return 2 * beta_H if negative_eigenvalues else beta_H


def initial_A_log(
    heads: int, generator: torch.Generator | None = None, lowest: float = 0.0
) -> Tensor:
    """Return `A_log_H`: log A for A uniform in (lowest, 16)."""
    A_H = torch.rand(heads, generator=generator).clamp_min(1e-4).mul(16 - lowest).add(lowest)
    return A_H.log()


def initial_dt_bias(number: int, generator: torch.Generator | None = None) -> Tensor:
    """Return `number` values of softplus^-1(dt) for dt log-uniform in (0.001, 0.1)."""
    spread = torch.rand(number, generator=generator) * math.log(0.1 / 0.001)
    return (0.001 * spread.exp()).expm1().log()


@dataclass(frozen=True, kw_only=True)
class GatedMemoryConfig(MemoryHeadsConfig, MechanismConfig, ABC):
    """Sizes and cost of a `GatedMemory`. Kinds differ in their decays, norm and output gate."""

    gate: ClassVar[Literal["head", "channel"]]  # a decay per head, or per channel of its keys

    @abstractmethod
    def more_params(self, d_model: int) -> tuple[int, int]:
        """Return the parameters beside q, k, v, g and o: those of matrices, those of vectors."""

    def cost(self, d_model: int, context: int, itemsize: int = 2) -> Cost:
        del context
        more, vectors = self.more_params(d_model)
        matrices = d_model * (2 * self.keys + 3 * self.values) + more
        memory = self.keys * self.value_dim
        return Cost(
            params=matrices + vectors,
            flops=2 * matrices + 2 * 2 * memory,  # write, read
            state_bytes=max(itemsize, 4) * memory,  # float32 or wider
        )

    def forward_flops(self, d_model: int, context: int) -> int:
        """Return the FLOPs of the form of `forward`, which reads and writes by chunks."""
        of_step = 2 * 2 * self.n_heads * self.head_dim * self.value_dim
        of_head = gated_linear_attention.flops(
            context, self.head_dim, self.value_dim, self.gate, self.kernel
        )
        return self.cost(d_model, context).flops - of_step + self.n_heads * of_head // context


class GatedMemoryState(NamedTuple):
    memory_BHKV: Tensor  # float32 or wider: it sums over all tokens seen


Settings = TypeVar("Settings", bound=GatedMemoryConfig)


class GatedMemory(Mechanism[GatedMemoryState], Generic[Settings]):
    """A memory by gated linear attention, and the projections q, k, v, g and o."""

    def __init__(self, config: Settings, d_model: int) -> None:
        super().__init__()
        self.config = config
        self.q_proj = nn.Linear(d_model, config.keys, bias=False)
        self.k_proj = nn.Linear(d_model, config.keys, bias=False)
        self.v_proj = nn.Linear(d_model, config.values, bias=False)
        self.g_proj = nn.Linear(d_model, config.values, bias=False)
        self.o_proj = nn.Linear(config.values, d_model, bias=False)

    @abstractmethod
    def inputs(self, x_D: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return queries, keys, values and log decays by head, of x (..., D)."""

    @abstractmethod
    def output(self, x_D: Tensor, y_HV: Tensor) -> Tensor:
        """Return the output of tokens `x`, which read `y` from the memory."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.prefill(x_BTD, x_BTD.shape[1])[0]

    def init_state(self, batch_size: int, capacity: int) -> GatedMemoryState:
        del capacity  # the state does not grow with the number of tokens
        of_heads = self.config.n_heads, self.config.head_dim, self.config.value_dim
        return GatedMemoryState(widened(self.o_proj.weight.new_zeros(batch_size, *of_heads)))

    def prefill(self, x_BTD: Tensor, capacity: int) -> tuple[Tensor, GatedMemoryState]:
        del capacity
        y_BTHV, memory_BHKV = gated_linear_attention.gated_linear_attention(
            *self.inputs(x_BTD), self.config.kernel
        )
        return self.output(x_BTD, y_BTHV), GatedMemoryState(memory_BHKV)

    def step(self, x_BD: Tensor, state: GatedMemoryState) -> tuple[Tensor, GatedMemoryState]:
        y_BHV, memory_BHKV = gated_linear_attention.step(*self.inputs(x_BD), state.memory_BHKV)
        return self.output(x_BD, y_BHV), GatedMemoryState(memory_BHKV)

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> str:
        config = self.config
        return gated_linear_attention.resolve(
            config.kernel, device, dtype, config.head_dim, config.gate
        )
