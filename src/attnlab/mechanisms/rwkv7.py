"""RWKV-7: a matrix memory per head, corrected along a key at a learning rate for each channel.

    S_t = Diag(w_t) S_{t-1} - (a_t u_t) (u_t^T S_{t-1}) + k'_t v_t^T          y_t = r_t S_t

    r, k, v = W x^r, W x^k, W x^v        x^i_t = x_t + m_i (x_{t-1} - x_t)    token shift
    w_t = exp(-e^-0.5 sigmoid(W_2 tanh(W_1 x^w) + b))                         decay
    a_t = sigmoid(A_2 A_1 x^a + b)                                            learning rate
    u_t = k_t xi_t, of length 1          k'_t = k_t (1 + (a_t - 1) alpha)
    o_t = W_o [ (norm(y_t) + (r_t . rho k'_t) v_t) G_2 sigmoid(G_1 x^g) ]     the sum: bonus

m, xi, alpha and rho are learned vectors; the norm is that of each head, with weights and biases.
Eigenvalues of the transition lie in (-1, 1), since 1 - a_t |u_t|^2 may be less than w_t.

This is the time mixing alone. The published model adds a residual of the first layer's values,
shifts tokens in its feed-forward layer, too, and starts vectors at values that depend on the
layer: here they start at those of its first layer.

The cost per token is the same at every context length. The decode state is the memory and the
previous token. The chunked form costs several times that of a Gated DeltaNet, since it has four
kinds of scores in place of two.

Peng et al. 2025 (arXiv:2503.14456).
Shapes: B batch, T tokens, D model width, H heads, K head width, C = H K channels.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, pad

from attnlab.config import Problem
from attnlab.kernels import generalized_delta_rule as rule
from attnlab.kernels.gated_delta_rule import unit
from attnlab.kernels.norms import widened
from attnlab.mechanism import Cost, Mechanism, MechanismConfig
from attnlab.modules.matrix_memory import at_least_1

_SHIFTED = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}  # powers of initial m


@dataclass(frozen=True, kw_only=True)
class RWKV7(MechanismConfig):
    grows_with_width: ClassVar[tuple[str, ...]] = (
        *MechanismConfig.grows_with_width,
        *("decay_rank", "learning_rate_rank", "gate_rank"),
    )

    n_heads: int = 4  # number of heads, each with a memory of its own
    head_dim: int = 32  # width of a head; n_heads * head_dim may differ from d_model
    decay_rank: int = 32  # inner width of the decay's projection
    learning_rate_rank: int = 32  # inner width of that of the in-context learning rate
    gate_rank: int = 32  # inner width of that of the output gate
    kernel: Literal["auto", "recurrent", "chunked"] = "auto"  # implementation; auto: chunked

    @property
    def channels(self) -> int:
        """Width of the keys, and of the values, of all heads together."""
        return self.n_heads * self.head_dim

    @property
    def form(self) -> rule.Form:
        return "chunked" if self.kernel == "auto" else self.kernel

    def problems(self) -> Iterator[Problem]:
        ranks = "decay_rank", "learning_rate_rank", "gate_rank"
        yield from at_least_1(self, "n_heads", "head_dim", *ranks)

    def cost(self, d_model: int, context: int, itemsize: int = 2) -> Cost:
        del context
        channels, memory = self.channels, self.channels * self.head_dim
        ranks = self.decay_rank + self.learning_rate_rank + self.gate_rank
        matrices = 4 * d_model * channels + ranks * (d_model + channels)  # r, k, v, o
        vectors = len(_SHIFTED) * d_model + 7 * channels  # m; xi, alpha, rho, 2 biases, the norm
        return Cost(
            params=matrices + vectors,
            flops=2 * matrices + 3 * 2 * memory,  # what is removed, where, and what is read
            # the memory is float32 or wider
            state_bytes=max(itemsize, 4) * memory + itemsize * d_model,
        )

    def forward_flops(self, d_model: int, context: int) -> int:
        """Return the FLOPs of the form of `forward`."""
        of_step = 3 * 2 * self.channels * self.head_dim
        of_head = rule.flops(context, self.head_dim, self.head_dim, self.form)
        return self.cost(d_model, context).flops - of_step + self.n_heads * of_head // context

    def build(self, d_model: int, dropout: float = 0.0) -> "TimeMixing":
        del dropout  # there are no attention weights
        return TimeMixing(self, d_model)


class ShiftedState(NamedTuple):
    """Decode state."""

    memory_BHKV: Tensor  # float32 or wider: it sums over all tokens seen
    last_BD: Tensor  # the previous token, in the parameters' dtype


class TimeMixing(Mechanism[ShiftedState]):
    def __init__(self, config: RWKV7, d_model: int) -> None:
        super().__init__()
        self.config, channels = config, config.channels
        place_D = torch.arange(d_model) / d_model
        shifts = {name: 1 - place_D**power for name, power in _SHIFTED.items()}
        self.shift = nn.ParameterDict({name: nn.Parameter(m) for name, m in shifts.items()})
        self.r_proj = nn.Linear(d_model, channels, bias=False)
        self.k_proj = nn.Linear(d_model, channels, bias=False)
        self.v_proj = nn.Linear(d_model, channels, bias=False)
        at_C = torch.linspace(0, 1, channels)
        in_head_K = torch.linspace(-1, 1, config.head_dim)
        zigzag_C = (in_head_K * in_head_K.abs()).repeat(config.n_heads)
        decays_C = 6 * at_C - 5.5 + 2.5 * zigzag_C
        rates_C = 0.4 * at_C - 0.39 + 0.3 * zigzag_C
        ranks = config.decay_rank, config.learning_rate_rank, config.gate_rank
        self.w_proj = _narrow(d_model, ranks[0], channels, nn.Tanh(), decays_C)
        self.a_proj = _narrow(d_model, ranks[1], channels, nn.Identity(), rates_C)
        self.g_proj = _narrow(d_model, ranks[2], channels, nn.Sigmoid())
        self.xi = nn.Parameter(0.76 - 0.1 * at_C)
        self.alpha = nn.Parameter(torch.full((channels,), 1.02))
        self.rho = nn.Parameter(torch.full((channels,), -0.04))
        self.o_norm = nn.GroupNorm(config.n_heads, channels, eps=1e-5 * config.head_dim)
        self.o_proj = nn.Linear(channels, d_model, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.prefill(x_BTD, x_BTD.shape[1])[0]

    def init_state(self, batch_size: int, capacity: int) -> ShiftedState:
        del capacity  # the state does not grow with the number of tokens
        new, width = self.o_proj.weight.new_zeros, self.config.head_dim
        memory_BHKV = widened(new(batch_size, self.config.n_heads, width, width))
        return ShiftedState(memory_BHKV, new(batch_size, self.o_proj.out_features))

    def prefill(self, x_BTD: Tensor, capacity: int) -> tuple[Tensor, ShiftedState]:
        del capacity
        of = self._inputs(x_BTD, pad(x_BTD, (0, 0, 1, -1)))
        y_BTHK, memory_BHKV = rule.generalized_delta_rule(*of[:6], self.config.form)
        last_BD = x_BTD[:, -1].to(self.o_proj.weight.dtype)
        return self._output(x_BTD, y_BTHK, of), ShiftedState(memory_BHKV, last_BD)

    def step(self, x_BD: Tensor, state: ShiftedState) -> tuple[Tensor, ShiftedState]:
        of = self._inputs(x_BD, state.last_BD.to(x_BD.dtype))
        y_BHK, memory_BHKV = rule.step(*of[:6], state.memory_BHKV)
        last_BD = x_BD.to(state.last_BD.dtype)
        return self._output(x_BD, y_BHK, of), ShiftedState(memory_BHKV, last_BD)

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> str:
        del device, dtype
        return self.config.form

    def _inputs(self, x_D: Tensor, previous_D: Tensor) -> "_Inputs":
        """Return what the memory reads and writes, of tokens (..., D) and those before them."""
        change_D = previous_D - x_D
        shifted = {name: x_D + m_D.to(x_D.dtype) * change_D for name, m_D in self.shift.items()}
        r_C, k_C, v_C = (
            widened(projection(shifted[name]))
            for name, projection in (("r", self.r_proj), ("k", self.k_proj), ("v", self.v_proj))
        )
        log_decay_C = -math.exp(-0.5) * widened(self.w_proj(shifted["w"])).sigmoid()
        a_C = widened(self.a_proj(shifted["a"])).sigmoid()
        written_C = k_C * (1 + (a_C - 1) * widened(self.alpha))
        u_HK = unit(self._by_head(k_C * widened(self.xi)))
        r_HK, written_HK, v_HK, g_HK, a_HK = map(
            self._by_head, (r_C, written_C, v_C, log_decay_C, a_C)
        )
        gate_C = self.g_proj(shifted["g"])
        return _Inputs(r_HK, written_HK, v_HK, g_HK, a_HK * u_HK, u_HK, gate_C)

    def _output(self, x_D: Tensor, y_HK: Tensor, of: "_Inputs") -> Tensor:
        """Return the output of tokens `x`, which read `y` from the memory."""
        normed_HK = layer_norm(y_HK, y_HK.shape[-1:], eps=self.o_norm.eps)
        vectors = self.o_norm.weight, self.o_norm.bias, self.rho
        weight_HK, bias_HK, rho_HK = (self._by_head(widened(vector)) for vector in vectors)
        bonus_HK = (of.r_HK * rho_HK * of.k_HK).sum(-1, keepdim=True) * of.v_HK
        read_HK = normed_HK * weight_HK + bias_HK + bonus_HK
        return self.o_proj((read_HK.flatten(-2) * of.gate_C).to(x_D.dtype))

    def _by_head(self, x_C: Tensor) -> Tensor:
        return x_C.unflatten(-1, (self.config.n_heads, -1))


class _Inputs(NamedTuple):
    """Inputs of the memory, in the order of the rule's arguments, and the output's gate."""

    r_HK: Tensor
    k_HK: Tensor  # as it is written
    v_HK: Tensor
    g_HK: Tensor
    b_HK: Tensor
    u_HK: Tensor
    gate_C: Tensor


def _narrow(
    d_model: int, rank: int, channels: int, between: nn.Module, bias_C: Tensor | None = None
) -> nn.Sequential:
    """Return a projection through a narrow layer, with a bias that begins at the given one."""
    first = nn.Linear(d_model, rank, bias=False)
    second = nn.Linear(rank, channels, bias=bias_C is not None)
    if bias_C is not None:
        with torch.no_grad():
            second.bias.copy_(bias_C)
    return nn.Sequential(first, between, second)
