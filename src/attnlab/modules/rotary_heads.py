"""Grouped query heads with rotary queries and keys: what several kinds of attention are made of.

Settings, projections and their size; which positions a query looks at is the mechanism's own.

    q_t = rotate(norm(W_q c_t))    k_t = rotate(norm(W_k c'_t))    v_t = W_v c'_t

Here c and c' are the token x_t itself, or latents norm(W x_t) of `q_lora_rank` and `kv_lora_rank`
numbers. Decoding keeps keys and values and not c': turned keys cannot be had of it by a product
with the query, which is why multi-head latent attention keeps its rotary key apart. The norm of
queries and keys, `qk_norm`, is left out by default, and so are biases.

With the dynamic scaling of RoPE decoding gives what `forward` gives up to the original length only.

Shapes: B batch, T tokens, D model width, H query heads, G key-value heads, K width of a query and
a key head, V width of a value head.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from einops import rearrange
from torch import Tensor, nn

from attnlab.config import Config, Problem
from attnlab.modules.latent import Latent, RMSNorm
from attnlab.modules.rope_scaling import RopeScaling
from attnlab.modules.rotary import Rope, rope_problems, rotate, turn


@dataclass(frozen=True, kw_only=True)
class RotaryHeadsConfig(Config):
    """For a mechanism's config to inherit, before `MechanismConfig`."""

    n_heads: int = 4
    n_kv_heads: int = 4
    head_dim: int | None = None  # of a query and a key; None: d_model / n_heads
    v_head_dim: int | None = None  # of a value; None: as wide as a key
    q_lora_rank: int | None = None  # of the queries' latent; None: they are read out of the token
    kv_lora_rank: int | None = None  # of the latent of keys and values
    rope_theta: float = 10_000.0
    rope_head_dim: int | None = None  # how many columns of a head turn; None: all, 0: none (NoPE)
    rope_scaling: RopeScaling | None = None
    qk_norm: bool = False  # RMSNorm of each query and key head, before it turns
    bias: bool = False  # in every projection
    softmax_scale: float | None = None  # None: K^-0.5

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
        """A head's width must be whole, and what turns of it even and no more than the head."""
        if self.head_dim is None and d_model % self.n_heads:
            yield Problem("n_heads", f"{self.n_heads} does not divide d_model {d_model}")
            return
        key, _ = self.head_widths(d_model)
        if self.rope_head_dim is None and key % 2:
            field = "n_heads" if self.head_dim is None else "head_dim"
            yield Problem(field, f"a head of {key} is odd: RoPE turns pairs")
        elif self.rope_head_dim is not None and self.rope_head_dim > key:
            yield Problem("rope_head_dim", f"{self.rope_head_dim} is more than a head of {key}")

    @property
    def exact_length(self) -> int | None:
        return None if self.rope_scaling is None else self.rope_scaling.exact_length

    def head_widths(self, d_model: int) -> tuple[int, int]:
        """Of a query or key head, and of a value head."""
        key = self.head_dim or d_model // self.n_heads
        return key, self.v_head_dim or key

    def kv_width(self, d_model: int) -> int:
        """Width of all keys and values of a token: what decoding keeps of it."""
        return self.n_kv_heads * sum(self.head_widths(d_model))

    def look_flops(self, d_model: int, seen: int) -> int:
        """Of a token that looks at `seen` others: scores and values."""
        return 2 * self.n_heads * sum(self.head_widths(d_model)) * seen

    def projections(self, d_model: int) -> dict[str, tuple[int, int]]:
        """The widths that each projection reads and writes."""
        key, value = self.head_widths(d_model)
        ranks = {"q_latent": self.q_lora_rank, "kv_latent": self.kv_lora_rank}
        return {
            **{name: (d_model, rank) for name, rank in ranks.items() if rank},
            "q_proj": (self.q_lora_rank or d_model, self.n_heads * key),
            "k_proj": (self.kv_lora_rank or d_model, self.n_kv_heads * key),
            "v_proj": (self.kv_lora_rank or d_model, self.n_kv_heads * value),
            "o_proj": (self.n_heads * value, d_model),
        }

    def projection_flops(self, d_model: int) -> int:
        return sum(2 * read * written for read, written in self.projections(d_model).values())

    def projection_params(self, d_model: int) -> int:
        """Weights and biases of the projections, and the norms of latents, queries and keys."""
        projections = self.projections(d_model).values()
        norms = (self.q_lora_rank or 0) + (self.kv_lora_rank or 0)
        norms += 2 * self.head_widths(d_model)[0] * self.qk_norm
        return norms + sum((read + self.bias) * written for read, written in projections)


class RotaryHeads(nn.Module):
    """The projections. For a mechanism to inherit, before `Mechanism`."""

    def __init__(self, config: RotaryHeadsConfig, d_model: int) -> None:
        super().__init__()
        self.head_dim, self.v_head_dim = config.head_widths(d_model)
        turning = self.head_dim if config.rope_head_dim is None else config.rope_head_dim
        self.rope = Rope(config.rope_theta, turning, config.rope_scaling)
        self.query_factor = self.rope.softmax_factor
        if config.softmax_scale is not None:
            self.query_factor *= config.softmax_scale * self.head_dim**0.5

        widths, bias = config.projections(d_model), config.bias

        def latent(name: str) -> nn.Module:
            return Latent(*widths[name], bias) if name in widths else nn.Identity()

        def norm() -> nn.Module:
            return RMSNorm(self.head_dim) if config.qk_norm else nn.Identity()

        self.q_latent, self.kv_latent = latent("q_latent"), latent("kv_latent")
        self.q_proj = nn.Linear(*widths["q_proj"], bias)
        self.k_proj = nn.Linear(*widths["k_proj"], bias)
        self.v_proj = nn.Linear(*widths["v_proj"], bias)
        self.o_proj = nn.Linear(*widths["o_proj"], bias)
        self.q_norm, self.k_norm = norm(), norm()

    def _qkv(self, x_BTD: Tensor, start: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`q_BHTK, k_BGTK, v_BGTV` of tokens whose first is at position `start`.

        Queries are such that the softmax's scale is K^-0.5, whatever it is in the settings.
        """
        latent_BTR = self.kv_latent(x_BTD)
        q_BHTK = self.q_norm(_heads(self.q_proj(self.q_latent(x_BTD)), self.head_dim))
        k_BGTK = self.k_norm(_heads(self.k_proj(latent_BTR), self.head_dim))
        v_BGTV = _heads(self.v_proj(latent_BTR), self.v_head_dim)
        by = turn(self.rope, start, x_BTD.shape[1], like=q_BHTK)
        q_BHTK, k_BGTK = rotate(q_BHTK, by), rotate(k_BGTK, by)
        return q_BHTK if self.query_factor == 1 else q_BHTK * self.query_factor, k_BGTK, v_BGTV

    def _output(self, y_BHTV: Tensor) -> Tensor:
        """`y_BTD`: the heads put together."""
        return self.o_proj(rearrange(y_BHTV, "B H T V -> B T (H V)"))


def _heads(x_BTC: Tensor, width: int) -> Tensor:
    return rearrange(x_BTC, "B T (H K) -> B H T K", K=width)
