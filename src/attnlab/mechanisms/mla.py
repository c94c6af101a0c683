"""Multi-head latent attention: keys and values are computed from one narrow latent per token.

    c_t   = norm(W_dkv x_t)                          the latent, R numbers
    r_t   = rotate(W_kr x_t)                         one rotary key, shared by all heads
    k_t^h = [W_uk^h c_t ; r_t]        v_t^h = W_uv^h c_t        q_t^h = [a_t^h ; rotate(b_t^h)]
    y_t   = W_o [ sum_{s <= t} softmax_s(q_t^h . k_s^h / sqrt(N + P)) v_s^h ]_heads

The decode state holds c and r alone, and no step computes a key or value (the absorbed form): since
a . W_uk c = (W_uk^T a) . c, the query is mapped into the latent space, attends there as if all
heads shared the one key [c ; r] and the one value c, and the result is mapped back by W_uv.

With `q_lora_rank` the queries are computed from a latent of their own, norm(W_dq x_t), as in
DeepSeek-V3. Projections have the names of DeepSeek's code: `kv_a_proj_with_mqa` is W_dkv above
W_kr, `kv_b_proj` is W_uk and W_uv by head.

A gate on the heads' outputs, sinks and a softcap of the scores are those of
`modules/softmax_heads.py`; they are off by default.

DeepSeek-AI 2024 (arXiv:2405.04434, arXiv:2412.19437).
Shapes: B batch, T tokens, D model width, H heads, N width of the part without rotary, P width of
the rotary part, K = N + P, V value width, R latent rank, M = H K, S slots, C = R + P.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from einops import einsum, rearrange
from torch import Tensor, nn

from attnlab.config import Problem
from attnlab.kernels import attention
from attnlab.kernels.norms import RMSNorm
from attnlab.kernels.scores import Scores
from attnlab.mechanism import Cost, Mechanism, MechanismConfig
from attnlab.modules.kv_cache import attend_once, filled, next_positions, none_seen
from attnlab.modules.rope_scaling import RopeScaling
from attnlab.modules.rotary import Rope, rope_problems, rotate, rotation


@dataclass(frozen=True, kw_only=True)
class MLA(MechanismConfig):
    n_heads: int = 4  # number of heads
    q_lora_rank: int | None = None  # width of the queries' latent; None: read from the token
    kv_lora_rank: int = 64  # width of the latent of keys and values
    qk_nope_head_dim: int = 32  # width of the part of a query or key head without RoPE
    qk_rope_head_dim: int = 32  # width of the part of a query or key head with RoPE; even
    v_head_dim: int = 32  # width of a value head
    rope_theta: float = 10_000.0  # base of the rotary frequencies
    rope_scaling: RopeScaling | None = None  # change of the frequencies for longer texts
    output_gate: Literal["head", "element"] | None = None  # gate on the outputs, one per this
    sinks: bool = False  # a learned logit per head in the softmax, without a value
    logit_softcap: float | None = None  # scores are squeezed smoothly to between - and + this
    kernel: attention.Kernel = "auto"  # implementation of attention; all compute the same function

    def problems(self) -> Iterator[Problem]:
        for name in ("n_heads", "kv_lora_rank", "qk_nope_head_dim", "v_head_dim"):
            if getattr(self, name) < 1:
                yield Problem(name, f"must be at least 1, got {getattr(self, name)}")
        if self.qk_rope_head_dim < 2 or self.qk_rope_head_dim % 2:
            yield Problem(
                "qk_rope_head_dim",
                f"must be even and at least 2, got {self.qk_rope_head_dim}: "
                "RoPE rotates pairs of columns",
            )
        if self.q_lora_rank is not None and self.q_lora_rank < 1:
            yield Problem("q_lora_rank", f"must be at least 1, got {self.q_lora_rank}")
        yield from rope_problems(self.rope_theta, self.rope_scaling)
        if self.logit_softcap is not None and not 0 < self.logit_softcap < math.inf:
            yield Problem("logit_softcap", f"must be positive and finite, got {self.logit_softcap}")

    @property
    def exact_length(self) -> int | None:
        return self.rope.exact_length

    @property
    def rope(self) -> Rope:
        """Rotary embedding of the part of a head that has one."""
        return Rope(self.rope_theta, self.qk_rope_head_dim, self.rope_scaling)

    @property
    def qk_head_dim(self) -> int:
        """Width of a query or key head."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def cache_width(self) -> int:
        """Number of values stored per token while decoding: its latent and its rotary key."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def n_gates(self) -> int:
        """Number of gates per token."""
        widths = {None: 0, "head": 1, "element": self.v_head_dim}
        return self.n_heads * widths[self.output_gate]

    @property
    def scores_are_products(self) -> bool:
        """True if every kernel serves the scores, but for sinks; see `Scores.are_products`."""
        return self.logit_softcap is None

    def cost(self, d_model: int, context: int, itemsize: int = 2) -> Cost:
        matrices, norms = self._matrices(d_model), self.kv_lora_rank + (self.q_lora_rank or 0)
        scores_and_sums = self.n_heads * (self.cache_width + self.kv_lora_rank) * context
        return Cost(
            params=matrices + norms + self.sinks * self.n_heads,
            flops=2 * (matrices + scores_and_sums),
            state_bytes=itemsize * self.cache_width * context,
        )

    def forward_flops(self, d_model: int, context: int) -> int:
        """Return the FLOPs with keys and values computed, which are narrower than the latent."""
        of_head = attention.flops(
            context,
            self.qk_head_dim,
            self.v_head_dim,
            self.kernel,
            products=self.scores_are_products,
            sinks=self.sinks,
        )
        return 2 * self._matrices(d_model) + self.n_heads * of_head // context

    def _matrices(self, d_model: int) -> int:
        """Return the weights of all projections, which are also their multiply-adds per token.

        The absorbed form multiplies the query by the matrices that `forward` applies to the latent.
        """
        heads, q_rank = self.n_heads, self.q_lora_rank or 0
        outer = self.cache_width + heads * self.v_head_dim + q_rank + self.n_gates  # of a side D
        inner = heads * (self.qk_nope_head_dim + self.v_head_dim) * self.kv_lora_rank
        queries = (q_rank or d_model) * heads * self.qk_head_dim
        return d_model * outer + inner + queries

    def build(self, d_model: int, dropout: float = 0.0) -> "MultiHeadLatentAttention":
        """Return the module. Raise ConfigError if the chosen kernel does not serve the settings."""
        attention.require(self.kernel, dropout, products=self.scores_are_products)
        return MultiHeadLatentAttention(self, d_model, dropout)


class LatentCache(NamedTuple):
    latent_BSC: Tensor  # a token's normalised latent, then its rotary key
    seen: Tensor  # tokens written so far, also the next token's position: int64, no dimension

    def append(self, latent_BTC: Tensor) -> "LatentCache":
        """Write T more tokens in place. There must be T free slots."""
        tokens = latent_BTC.shape[1]
        slot_T = next_positions(self.seen, tokens)
        self.latent_BSC.index_copy_(1, slot_T, latent_BTC.to(self.latent_BSC.dtype))
        return LatentCache(self.latent_BSC, self.seen + tokens)


class MultiHeadLatentAttention(Mechanism[LatentCache]):
    def __init__(self, config: MLA, d_model: int, dropout: float) -> None:
        super().__init__()
        self.config, self.dropout = config, dropout
        heads, rank = config.n_heads, config.kv_lora_rank
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(d_model, heads * config.qk_head_dim, bias=False)
        else:
            self.q_a_proj = nn.Linear(d_model, config.q_lora_rank, bias=False)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank)
            self.q_b_proj = nn.Linear(config.q_lora_rank, heads * config.qk_head_dim, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(d_model, config.cache_width, bias=False)
        self.kv_a_layernorm = RMSNorm(rank)
        self.kv_b_proj = nn.Linear(
            rank, heads * (config.qk_nope_head_dim + config.v_head_dim), bias=False
        )
        self.o_proj = nn.Linear(heads * config.v_head_dim, d_model, bias=False)
        gates = config.n_gates
        self.g_proj = nn.Linear(d_model, gates, bias=False) if gates else None
        self.sinks = nn.Parameter(torch.zeros(heads)) if config.sinks else None

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self._attend(x_BTD, self._latents(x_BTD, start=0))

    def init_state(self, batch_size: int, capacity: int) -> LatentCache:
        weight, width = self.o_proj.weight, self.config.cache_width
        return LatentCache(weight.new_zeros(batch_size, capacity, width), none_seen(weight))

    def prefill(self, x_BTD: Tensor, capacity: int) -> tuple[Tensor, LatentCache]:
        latent_BTC = self._latents(x_BTD, start=0)
        state = self.init_state(x_BTD.shape[0], capacity).append(latent_BTC)
        return self._attend(x_BTD, latent_BTC), state

    def step(self, x_BD: Tensor, state: LatentCache) -> tuple[Tensor, LatentCache]:
        config, x_B1D = self.config, x_BD[:, None]
        q_BHK = self._queries(x_B1D, start=state.seen)[:, :, 0]
        state = state.append(self._latents(x_B1D, start=state.seen))
        latent_BSC = state.latent_BSC.to(q_BHK.dtype)

        w_uk_HNR, w_uv_HVR = self.kv_b_proj.weight.unflatten(0, (config.n_heads, -1)).split(
            [config.qk_nope_head_dim, config.v_head_dim], 1
        )
        q_BHN, q_BHP = q_BHK.split([config.qk_nope_head_dim, config.qk_rope_head_dim], -1)
        q_BHR = einsum(q_BHN, w_uk_HNR.to(q_BHN.dtype), "B H N, H N R -> B H R")
        k_B1SC, slots = latent_BSC[:, None], latent_BSC.shape[1]
        y_BHR = attend_once(
            torch.cat([q_BHR, q_BHP], -1),
            k_B1SC,
            k_B1SC[..., : config.kv_lora_rank],
            filled(state.seen, slots),
            self._scores(),
            age_S=state.seen - 1 - torch.arange(slots, device=state.seen.device),
            scale=config.qk_head_dim**-0.5,
        )
        y_BHV = einsum(y_BHR, w_uv_HVR.to(y_BHR.dtype), "B H R, H V R -> B H V")
        return self._output(x_B1D, y_BHV[:, :, None])[:, 0], state

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> attention.Kernel:
        config = self.config
        return attention.resolve(
            config.kernel,
            device,
            dtype,
            dropout=self.dropout,
            width=max(config.qk_head_dim + config.sinks, config.v_head_dim),
            products=config.scores_are_products,
        )

    def _queries(self, x_BTD: Tensor, start: int | Tensor) -> Tensor:
        """Return `q_BHTK` of tokens whose first is at position `start`.

        The factor that a scaling of RoPE puts on the scores is in the queries.
        """
        config = self.config
        if config.q_lora_rank is None:
            q_BTM = self.q_proj(x_BTD)
        else:
            q_BTM = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BTD)))
        q_BHTK = rearrange(q_BTM, "B T (H K) -> B H T K", H=config.n_heads)
        q_BHTN, q_BHTP = q_BHTK.split([config.qk_nope_head_dim, config.qk_rope_head_dim], -1)
        q_BHTK = torch.cat([q_BHTN, self._rotate(q_BHTP, start)], -1)
        factor = config.rope.softmax_factor
        return q_BHTK if factor == 1 else q_BHTK * factor

    def _latents(self, x_BTD: Tensor, start: int | Tensor) -> Tensor:
        """Return `latent_BTC`: the normalised latent of each token, then its rotary key."""
        latent_BTR, k_BTP = self.kv_a_proj_with_mqa(x_BTD).split(
            [self.config.kv_lora_rank, self.config.qk_rope_head_dim], -1
        )
        return torch.cat([self.kv_a_layernorm(latent_BTR), self._rotate(k_BTP, start)], -1)

    def _rotate(self, x_TP: Tensor, start: int | Tensor) -> Tensor:
        return rotate(x_TP, rotation(self.config.rope, start, x_TP.shape[-2], like=x_TP))

    def _scores(self) -> Scores:
        """Return the changes of the scores."""
        return Scores(self.config.logit_softcap, None, self.sinks)

    def _output(self, x_BTD: Tensor, y_BHTV: Tensor) -> Tensor:
        """Return `y_BTD` of what the heads have read."""
        y_BTHV = rearrange(y_BHTV, "B H T V -> B T H V")
        if self.g_proj is not None:
            gate_BTHV = self.g_proj(x_BTD).unflatten(-1, (self.config.n_heads, -1)).sigmoid()
            y_BTHV = y_BTHV * gate_BTHV
        return self.o_proj(y_BTHV.flatten(2))

    def _attend(self, x_BTD: Tensor, latent_BTC: Tensor) -> Tensor:
        """Return `y_BTD` of all tokens at once, with keys and values computed."""
        config, q_BHTK = self.config, self._queries(x_BTD, start=0)
        latent_BTR, k_BTP = latent_BTC.split([config.kv_lora_rank, config.qk_rope_head_dim], -1)
        k_BHTN, v_BHTV = rearrange(
            self.kv_b_proj(latent_BTR), "B T (H M) -> B H T M", H=config.n_heads
        ).split([config.qk_nope_head_dim, config.v_head_dim], -1)
        k_BHTP = k_BTP[:, None].expand(-1, config.n_heads, -1, -1)
        y_BHTV = attention.attention(
            q_BHTK,
            torch.cat([k_BHTN, k_BHTP], -1),
            v_BHTV,
            kernel=self.kernel_on(q_BHTK.device, q_BHTK.dtype),
            dropout=self.dropout if self.training else 0.0,
            scores=self._scores(),
        )
        return self._output(x_BTD, y_BHTV)
