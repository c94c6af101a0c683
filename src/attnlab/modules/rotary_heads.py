"""Grouped query heads with rotary queries and keys: settings, projections, and latents they read.

    q_t = rotate(norm(W_q c_t))    k_t = rotate(norm(W_k c'_t))    v_t = W_v c'_t

Here c and c' are the token x_t itself, or latents norm(W x_t) of `q_lora_rank` and `kv_lora_rank`
numbers. The decode state holds keys and values, not c': a rotated key is not a product of c' and a
fixed matrix, which is why multi-head latent attention has a separate rotary key. The norm of
queries and keys, `qk_norm`, and biases are off by default.

With the dynamic scaling of RoPE, decoding equals `forward` up to the original length only.

DeepSeek-AI 2024 (arXiv:2405.04434) for the latents.
Shapes: B batch, T tokens, D model width, H query heads, G key-value heads,
K width of a query and a key head, V width of a value head, R rank of a latent, M = H K.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from einops import rearrange
from torch import Tensor, nn

from attnlab.config import Config, Problem
from attnlab.kernels.norms import RMSNorm
from attnlab.mechanism import Cost, Mechanism, State
from attnlab.modules.rope_scaling import RopeScaling
from attnlab.modules.rotary import Rope, Rotation, rope_problems, rotate, rotation


@dataclass(frozen=True, kw_only=True)
class RotaryHeadsConfig(Config):
    """Settings of the heads. A mechanism's config inherits it before `MechanismConfig`."""

    n_heads: int = 4  # number of query heads
    n_kv_heads: int = 4  # number of key and value heads; must divide n_heads
    head_dim: int | None = None  # width of a query or key head; None: d_model / n_heads
    v_head_dim: int | None = None  # width of a value head; None: as wide as a key head
    q_lora_rank: int | None = None  # width of the queries' latent; None: read from the token
    kv_lora_rank: int | None = None  # the same for keys and values
    rope_theta: float = 10_000.0  # base of the rotary frequencies
    rope_head_dim: int | None = None  # columns of a head that RoPE rotates; None: all, 0: none
    rope_scaling: RopeScaling | None = None  # change of the frequencies for longer texts
    qk_norm: bool = False  # RMSNorm of each query and key head, before RoPE
    bias: bool = False  # add a bias to every projection
    softmax_scale: float | None = None  # factor on the scores; None: head_dim^-0.5

    def problems(self) -> Iterator[Problem]:
        if self.n_heads < 1:
            yield Problem("n_heads", f"must be at least 1, got {self.n_heads}")
        elif self.n_kv_heads < 1 or self.n_heads % self.n_kv_heads:
            yield Problem("n_kv_heads", f"{self.n_kv_heads} does not divide n_heads {self.n_heads}")
        for name in ("head_dim", "v_head_dim", "q_lora_rank", "kv_lora_rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield Problem(name, f"must be at least 1, got {value}")
        if self.rope_head_dim is not None and (self.rope_head_dim < 0 or self.rope_head_dim % 2):
            yield Problem(
                "rope_head_dim", f"must be even, or 0 for no RoPE, got {self.rope_head_dim}"
            )
        yield from rope_problems(self.rope_theta, self.rope_scaling)
        if self.softmax_scale is not None and self.softmax_scale <= 0:
            yield Problem("softmax_scale", f"must be positive, got {self.softmax_scale}")

    def problems_at(self, d_model: int) -> Iterator[Problem]:
        """Yield a problem where a head's width is no integer or its rotary part does not fit."""
        if self.head_dim is None and d_model % self.n_heads:
            yield Problem("n_heads", f"{self.n_heads} does not divide d_model {d_model}")
            return
        key, _ = self.head_widths(d_model)
        if self.rope_head_dim is None and key % 2:
            field = "n_heads" if self.head_dim is None else "head_dim"
            yield Problem(field, f"a head of {key} is odd: RoPE rotates pairs of columns")
        elif self.rope_head_dim is not None and self.rope_head_dim > key:
            yield Problem("rope_head_dim", f"{self.rope_head_dim} is more than a head of {key}")

    @property
    def exact_length(self) -> int | None:
        return None if self.rope_scaling is None else self.rope_scaling.exact_length

    def head_widths(self, d_model: int) -> tuple[int, int]:
        """Return the widths of a query or key head, and of a value head."""
        key = self.head_dim or d_model // self.n_heads
        return key, self.v_head_dim or key

    def projection_inputs(self, d_model: int) -> tuple[int, int]:
        """Return the widths that the query projection, and that of keys and values, read."""
        return self.q_lora_rank or d_model, self.kv_lora_rank or d_model

    def projections_cost(self, d_model: int, context: int, itemsize: int = 2) -> Cost:
        """Return the cost of a step without attention: projections, and a cache of all tokens."""
        key, value = self.head_widths(d_model)
        q_input, kv_input = self.projection_inputs(d_model)
        latents = (self.q_lora_rank or 0) + (self.kv_lora_rank or 0)
        queries, keys_values = self.n_heads * key, self.n_kv_heads * (key + value)
        outputs = self.n_heads * value
        matrices = d_model * (latents + outputs) + q_input * queries + kv_input * keys_values
        biases = self.bias * (latents + queries + keys_values + d_model)
        norms = latents + self.qk_norm * 2 * key
        return Cost(
            params=matrices + biases + norms,
            flops=2 * matrices,
            state_bytes=itemsize * keys_values * context,
        )

    def rope(self, d_model: int) -> Rope:
        """Return the rotary embedding of a query or key head."""
        key, _ = self.head_widths(d_model)
        rotary = key if self.rope_head_dim is None else self.rope_head_dim
        return Rope(self.rope_theta, rotary, self.rope_scaling)

    def query_factor(self, d_model: int) -> float:
        """Return the factor on queries that gives scores over sqrt(K) the scale asked for."""
        factor = self.rope(d_model).softmax_factor
        if self.softmax_scale is not None:
            key, _ = self.head_widths(d_model)
            factor *= self.softmax_scale * key**0.5
        return factor

    def values_name(self, d_model: int) -> str:
        """Return the name of the values, as far as they must agree to be added."""
        return f"values of {self.n_kv_heads} heads of {self.head_widths(d_model)[1]}"

    def keys_values_name(self, d_model: int) -> str:
        """Return the name of keys and values, as far as they must agree to be attended to."""
        key, value = self.head_widths(d_model)
        theta, rotary, scaling = self.rope(d_model)
        rope = f"RoPE of {rotary} columns at theta {theta:g}" if rotary else "no RoPE"
        scaled = "" if scaling is None or not rotary else f", scaled by {scaling}"
        return f"keys of {self.n_kv_heads} heads of {key} with {rope}{scaled} and values of {value}"


class Latent(nn.Module):
    """Narrow summary of a token, c_t = norm(W x_t), that projections read in its place."""

    def __init__(self, d_model: int, rank: int, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Linear(d_model, rank, bias=bias)
        self.norm = RMSNorm(rank)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Return `latent_TR`."""
        return self.norm(self.proj(x_TD))


class RotaryHeads(Mechanism[State]):
    """The projections of a mechanism with such heads. What the heads read is the mechanism's."""

    def __init__(
        self, config: RotaryHeadsConfig, d_model: int, *, has_keys_values: bool = True
    ) -> None:
        """Construct the projections, without those of keys and values if there are to be none."""
        super().__init__()
        self.rope, self.query_factor = config.rope(d_model), config.query_factor(d_model)
        self.head_dim, self.v_head_dim = key, value = config.head_widths(d_model)
        q_input, kv_input = config.projection_inputs(d_model)
        bias = config.bias
        self.q_latent = _latent(d_model, config.q_lora_rank, bias)
        if has_keys_values:
            self.kv_latent = _latent(d_model, config.kv_lora_rank, bias)
        self.q_proj = nn.Linear(q_input, config.n_heads * key, bias)
        if has_keys_values:
            self.k_proj = nn.Linear(kv_input, config.n_kv_heads * key, bias)
            self.v_proj = nn.Linear(kv_input, config.n_kv_heads * value, bias)
        self.o_proj = nn.Linear(config.n_heads * value, d_model, bias)
        self.q_norm = RMSNorm(key) if config.qk_norm else nn.Identity()
        if has_keys_values:
            self.k_norm = RMSNorm(key) if config.qk_norm else nn.Identity()

    def _qkv(self, x_BTD: Tensor, start: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return `q_BHTK, k_BGTK, v_BGTV` of tokens whose first is at position `start`."""
        latent_BTR = self.kv_latent(x_BTD)
        q_BHTK, by = self._rotated(self.q_proj(self.q_latent(x_BTD)), start)
        k_BGTK = rearrange(self.k_proj(latent_BTR), "B T (G K) -> B G T K", K=self.head_dim)
        v_BGTV = rearrange(self.v_proj(latent_BTR), "B T (G V) -> B G T V", V=self.v_head_dim)
        return q_BHTK, rotate(self.k_norm(k_BGTK), by), v_BGTV

    def _queries(self, x_BTD: Tensor, start: int | Tensor) -> Tensor:
        """Return `q_BHTK` alone."""
        return self._rotated(self.q_proj(self.q_latent(x_BTD)), start)[0]

    def _rotated(self, q_BTM: Tensor, start: int | Tensor) -> tuple[Tensor, Rotation]:
        """Return `q_BHTK` of projected queries, and the rotation of keys at the same positions."""
        q_BHTK = self.q_norm(rearrange(q_BTM, "B T (H K) -> B H T K", K=self.head_dim))
        by = rotation(self.rope, start, q_BTM.shape[1], like=q_BHTK)
        q_BHTK = rotate(q_BHTK, by)
        return q_BHTK if self.query_factor == 1 else q_BHTK * self.query_factor, by


def _latent(d_model: int, rank: int | None, bias: bool) -> nn.Module:
    """Return a `Latent`, or the identity where `rank` is None."""
    return nn.Identity() if rank is None else Latent(d_model, rank, bias)
