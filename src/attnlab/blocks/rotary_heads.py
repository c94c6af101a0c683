"""Grouped query heads with rotary queries and keys: what several kinds of attention are made of.

Settings, projections and their size; which positions a query looks at is the mechanism's own.

Shapes: B batch, T tokens, D model width, H query heads, G key-value heads, K head width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from einops import rearrange
from torch import Tensor, nn

from attnlab.blocks.rotary import rotate, turn
from attnlab.config import Config, Problem


@dataclass(frozen=True, kw_only=True)
class RotaryHeadsConfig(Config):
    """For a mechanism's config to inherit, before `MechanismConfig`."""

    n_heads: int = 4
    n_kv_heads: int = 4
    rope_theta: float = 10_000.0

    def problems(self) -> Iterator[Problem]:
        if self.n_heads < 1:
            yield Problem("n_heads", f"must be at least 1, got {self.n_heads}")
        elif self.n_kv_heads < 1 or self.n_heads % self.n_kv_heads:
            yield Problem("n_kv_heads", f"{self.n_kv_heads} does not divide n_heads {self.n_heads}")
        if self.rope_theta <= 0:
            yield Problem("rope_theta", f"must be positive, got {self.rope_theta}")

    def problems_at(self, d_model: int) -> Iterator[Problem]:
        """A head's width must be whole, and even for RoPE."""
        if d_model % self.n_heads:
            yield Problem("n_heads", f"{self.n_heads} does not divide d_model {d_model}")
        elif d_model // self.n_heads % 2:
            head_dim = d_model // self.n_heads
            yield Problem("n_heads", f"a head of {head_dim} is odd: RoPE turns pairs")

    def kv_width(self, d_model: int) -> int:
        """Width of all keys of a token, and of all values."""
        return d_model // self.n_heads * self.n_kv_heads

    def projection_params(self, d_model: int) -> int:
        """Weights of the four projections."""
        return 2 * d_model**2 + 2 * d_model * self.kv_width(d_model)


class RotaryHeads(nn.Module):
    """The four projections. For a mechanism to inherit, before `Mechanism`."""

    def __init__(self, config: RotaryHeadsConfig, d_model: int) -> None:
        super().__init__()
        self.head_dim, self.rope_theta = d_model // config.n_heads, config.rope_theta
        kv_width = config.kv_width(d_model)
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, kv_width, bias=False)
        self.v_proj = nn.Linear(d_model, kv_width, bias=False)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)

    def _qkv(self, x_BTD: Tensor, start: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`q_BHTK, k_BGTK, v_BGTK` of tokens whose first is at position `start`."""
        q_BHTK, k_BGTK, v_BGTK = (
            rearrange(proj(x_BTD), "B T (H K) -> B H T K", K=self.head_dim)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        by = turn(self.rope_theta, self.head_dim, start, x_BTD.shape[1], like=q_BHTK)
        return rotate(q_BHTK, by), rotate(k_BGTK, by), v_BGTK

    def _output(self, y_BHTK: Tensor) -> Tensor:
        """`y_BTD`: the heads put together."""
        return self.o_proj(rearrange(y_BHTK, "B H T K -> B T (H K)"))
