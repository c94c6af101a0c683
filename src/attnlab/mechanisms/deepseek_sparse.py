"""DeepSeek sparse attention: an indexer selects the `top_k` tokens that the heads attend to.

    q_t = rotate(norm(W_q c_t))        k_t = rotate(norm(W_k c'_t))        v_t = W_v c'_t
    I_ts = sum_j w_tj ReLU(q_tj . k_s)       S_t = the top_k positions s <= t by I_ts
    y_t  = W_o [ sum_{s in S_t} softmax_s(q_t . k_s / sqrt(K)) v_s ]_heads

Here c and c' are the token x_t, or narrow latents of it where `q_lora_rank` or `kv_lora_rank` is
set. The norms of queries and keys are off by default. q_tj, k_s and w_tj of the index scores I are
projections of the indexer.

The indexer is trained by its own loss alone: the KL divergence between the heads' mean attention
and softmax(I) over the same positions. Its input and its target are detached, so neither loss
reaches the other's parameters. For the first `dense_warmup_steps` training steps the heads attend
to all positions, so that the indexer learns before it selects.

A decoding step costs an index score per earlier token and the heads' attention to `top_k` of them;
the decode state holds keys, values and index keys of all. Training computes all scores.

DeepSeek-AI 2025 (DeepSeek-V3.2), here over grouped-query heads with rotary queries and keys.
Shapes: B batch, T tokens, D model width, H query heads, G key-value heads, K width of a query and
a key head, V width of a value head, R width of a latent, M = H K, S slots or keys, J index heads,
I index width, n selected slots.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from attnlab.config import Problem
from attnlab.kernels import block_attention, lightning_indexer, sparse_attention
from attnlab.mechanism import Cost, MechanismConfig
from attnlab.modules.kv_cache import attend_once, filled, next_positions, none_seen
from attnlab.modules.rotary import Rope, rotate, rotation
from attnlab.modules.rotary_heads import RotaryHeads, RotaryHeadsConfig


@dataclass(frozen=True, kw_only=True)
class DeepseekSparse(RotaryHeadsConfig, MechanismConfig):
    top_k: int = 256  # tokens that a query attends to
    index_n_heads: int = 4  # number of index heads
    index_head_dim: int = 64  # width of an index head
    index_rope_head_dim: int | None = None  # columns that RoPE rotates; None: half of them
    dense_warmup_steps: int = 100  # training steps at the start that attend to all positions

    @property
    def index_rope_width(self) -> int:
        """Number of columns of an index head that RoPE rotates."""
        given = self.index_rope_head_dim
        return self.index_head_dim // 2 if given is None else given

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        for name in ("top_k", "index_n_heads", "index_head_dim"):
            if getattr(self, name) < 1:
                yield Problem(name, f"must be at least 1, got {getattr(self, name)}")
        width = self.index_rope_width
        if self.index_rope_head_dim is None and width % 2:
            yield Problem(
                "index_head_dim",
                f"half of {self.index_head_dim} is odd: RoPE rotates pairs of columns; "
                "use a multiple of 4, or set index_rope_head_dim",
            )
        elif width % 2 or not 0 <= width <= max(self.index_head_dim, 0):
            yield Problem(
                "index_rope_head_dim",
                f"must be even, from 0 to index_head_dim {self.index_head_dim}, got {width}",
            )
        if self.dense_warmup_steps < 0:
            yield Problem(
                "dense_warmup_steps", f"must not be negative, got {self.dense_warmup_steps}"
            )

    def cost(self, d_model: int, context: int, itemsize: int = 2) -> Cost:
        scores_and_sums = self.n_heads * sum(self.head_widths(d_model)) * min(context, self.top_k)
        index_heads, width = self.index_n_heads, self.index_head_dim
        indexer = d_model * (index_heads * width + width + index_heads)  # q, k, w
        index_scores = index_heads * (width + 1) * context
        index_norm = 2 * width
        return self.projections_cost(d_model, context, itemsize) + Cost(
            params=indexer + index_norm,
            flops=2 * (scores_and_sums + indexer + index_scores),
            state_bytes=itemsize * width * context,
        )

    def forward_flops(self, d_model: int, context: int) -> int:
        """Return the FLOPs with all scores of a block of queries: those not selected are masked."""
        of_heads = self.n_heads * sum(self.head_widths(d_model))
        of_index = self.index_n_heads * (self.index_head_dim + 1)
        of_step = self.cost(d_model, context).flops
        by_token = of_step - 2 * (of_heads * min(context, self.top_k) + of_index * context)
        pairs = sparse_attention.pairs(context)
        return by_token + 2 * (of_heads + of_index) * pairs // context

    def build(self, d_model: int, dropout: float = 0.0) -> "DeepseekSparseAttention":
        return DeepseekSparseAttention(self, d_model, dropout)


class LightningIndexer(nn.Module):
    """Index queries, the index key that all index heads share, and the index heads' weights.

    They keep the dtype of the parameters under autocast: decoding must select what training
    selected, and in bfloat16 two ways to add up a score often disagree about which is larger.
    """

    def __init__(self, config: DeepseekSparse, d_model: int) -> None:
        super().__init__()
        self.config = config
        self.rope = Rope(config.rope_theta, config.index_rope_width, config.rope_scaling)
        heads, width = config.index_n_heads, config.index_head_dim
        self.q_proj = nn.Linear(d_model, heads * width, bias=False)
        self.k_proj = nn.Linear(d_model, width, bias=False)
        self.k_norm = nn.LayerNorm(width, eps=1e-6)
        self.weights_proj = nn.Linear(d_model, heads, bias=False)

    def forward(self, x_BTD: Tensor, start: int | Tensor) -> lightning_indexer.Index:
        """Return the index of tokens whose first is at position `start`."""
        x_BTD = x_BTD.detach().to(self.q_proj.weight.dtype)
        heads, width = self.config.index_n_heads, self.config.index_head_dim
        q_BTJI = rearrange(self.q_proj(x_BTD), "B T (J I) -> B T J I", J=heads)
        k_BTI = self.k_norm(self.k_proj(x_BTD))
        weights_BTJ = self.weights_proj(x_BTD) * (heads * width) ** -0.5
        by = rotation(self.rope, start, x_BTD.shape[1], like=k_BTI)
        q_BTJI = rotate(q_BTJI.transpose(1, 2), by).transpose(1, 2)
        return lightning_indexer.Index(q_BTJI, rotate(k_BTI, by), weights_BTJ)


class SparseCache(NamedTuple):
    k_BGSK: Tensor
    v_BGSV: Tensor
    index_k_BSI: Tensor
    seen: Tensor  # tokens written so far, also the next token's position: int64, no dimension

    def append(self, k_BGTK: Tensor, v_BGTV: Tensor, index_k_BTI: Tensor) -> "SparseCache":
        """Write T more tokens in place. There must be T free slots."""
        slot_T = next_positions(self.seen, index_k_BTI.shape[1])
        self.k_BGSK.index_copy_(2, slot_T, k_BGTK.to(self.k_BGSK.dtype))
        self.v_BGSV.index_copy_(2, slot_T, v_BGTV.to(self.v_BGSV.dtype))
        self.index_k_BSI.index_copy_(1, slot_T, index_k_BTI.to(self.index_k_BSI.dtype))
        seen = self.seen + index_k_BTI.shape[1]
        return SparseCache(self.k_BGSK, self.v_BGSV, self.index_k_BSI, seen)


class DeepseekSparseAttention(RotaryHeads[SparseCache]):
    is_dense: Tensor

    def __init__(self, config: DeepseekSparse, d_model: int, dropout: float) -> None:
        super().__init__(config, d_model)
        self.config, self.dropout = config, dropout
        self.indexer = LightningIndexer(config, d_model)
        self.register_buffer("is_dense", torch.tensor(False), persistent=False)
        self.at_step(0)

    def at_step(self, step: int) -> None:
        self.is_dense.fill_(step < self.config.dense_warmup_steps)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self._output(self._attend(x_BTD, self._inputs(x_BTD)))

    def forward_with_loss(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Return `y_BTD`, and the indexer's KL divergence in nats, averaged over tokens."""
        inputs = self._inputs(x_BTD)
        with _without_autocast(x_BTD):
            y_BHTV, loss = sparse_attention.attend_with_loss(*inputs, **self._settings())
        return self._output(y_BHTV), loss

    def init_state(self, batch_size: int, capacity: int) -> SparseCache:
        new, kv_heads = self.o_proj.weight.new_zeros, self.config.n_kv_heads
        return SparseCache(
            new(batch_size, kv_heads, capacity, self.head_dim),
            new(batch_size, kv_heads, capacity, self.v_head_dim),
            new(batch_size, capacity, self.config.index_head_dim),
            none_seen(self.o_proj.weight),
        )

    def prefill(self, x_BTD: Tensor, capacity: int) -> tuple[Tensor, SparseCache]:
        inputs = self._inputs(x_BTD)
        state = self.init_state(x_BTD.shape[0], capacity)
        state = state.append(inputs.k_BGTK, inputs.v_BGTV, inputs.indexed.k_BSI)
        return self._output(self._attend(x_BTD, inputs)), state

    def step(self, x_BD: Tensor, state: SparseCache) -> tuple[Tensor, SparseCache]:
        x_B1D, start = x_BD[:, None], state.seen
        q_BH1K, k_BG1K, v_BG1V = self._qkv(x_B1D, start)
        with _without_autocast(x_BD):
            index: lightning_indexer.Index = self.indexer(x_B1D, start)
            state = state.append(k_BG1K, v_BG1V, index.k_BSI)
            index_k_BSI = state.index_k_BSI.to(index.k_BSI.dtype)
            index_B1S = lightning_indexer.index_scores(index._replace(k_BSI=index_k_BSI))
        is_seen_S = filled(state.seen, index_B1S.shape[-1])
        # no score is compared with one that was computed before: a compiler may compute scores
        # again where they are read, and round them otherwise
        slots = block_attention.best(index_B1S[:, 0], is_seen_S, self.config.top_k)
        slot_B1n1 = slots.block_Xn[:, None, :, None]
        k_BGnK, v_BGnV = (
            x_BGSK.gather(2, slot_B1n1.expand(-1, x_BGSK.shape[1], -1, x_BGSK.shape[3]))
            for x_BGSK in (state.k_BGSK, state.v_BGSV)
        )
        y_BHV = attend_once(q_BH1K[:, :, 0], k_BGnK, v_BGnV, slots.is_found_Xn)
        return self.o_proj(y_BHV.flatten(1)), state

    def _inputs(self, x_BTD: Tensor) -> "_Inputs":
        q_BHTK, k_BGTK, v_BGTV = self._qkv(x_BTD, start=0)
        with _without_autocast(x_BTD):
            index: lightning_indexer.Index = self.indexer(x_BTD, start=0)
        return _Inputs(q_BHTK, k_BGTK, v_BGTV, index)

    def _attend(self, x_BTD: Tensor, inputs: "_Inputs") -> Tensor:
        with _without_autocast(x_BTD):  # which would widen the scores
            return sparse_attention.attend(*inputs, **self._settings())

    def _settings(self) -> dict[str, Any]:
        return {
            "top_k": self.config.top_k,
            "is_dense": self.is_dense if self.training else None,
            "dropout": self.dropout if self.training else 0.0,
        }

    def _output(self, y_BHTV: Tensor) -> Tensor:
        return self.o_proj(rearrange(y_BHTV, "B H T V -> B T (H V)"))


class _Inputs(NamedTuple):
    """Inputs of attention over a whole sequence."""

    q_BHTK: Tensor
    k_BGTK: Tensor
    v_BGTV: Tensor
    indexed: lightning_indexer.Index


def _without_autocast(x: Tensor) -> torch.autocast:
    """Return a context in which computations keep the dtypes of their inputs."""
    return torch.autocast(x.device.type, enabled=False)
