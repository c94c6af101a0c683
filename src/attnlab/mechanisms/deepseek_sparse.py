"""DeepSeek sparse attention: a small indexer says which `top_k` tokens the heads may look at.

    I_ts = sum_j w_tj ReLU(q_tj . k_s)       S_t = the top_k positions s <= t by I_ts
    y_t  = W_o [ sum_{s in S_t} softmax_s(q_t . k_s / sqrt(K)) v_s ]_heads

The indexer learns from its own loss alone: the KL divergence between what the heads look at
together and softmax(I) over the same positions. Its input is detached, so that the language-model
loss does not reach it, and so is its target. For the first `dense_warmup_steps` training steps the
heads look at every position, so that the indexer has something to learn from before it chooses.

DeepSeek-AI 2025 (DeepSeek-V3.2), here over grouped-query heads with rotary queries and keys.
Shapes: B batch, T tokens, D model width, H query heads, G key-value heads,
K width of a query and a key head, V width of a value head, S slots, J index heads, I index width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from attnlab.config import Problem
from attnlab.kernels import sparse_attention
from attnlab.mechanism import Cost, Mechanism, MechanismConfig
from attnlab.modules.kv_cache import attend_once, filled, next_positions, none_seen
from attnlab.modules.rotary import Rope, rotate, turn
from attnlab.modules.rotary_heads import RotaryHeads, RotaryHeadsConfig


@dataclass(frozen=True, kw_only=True)
class DeepseekSparse(RotaryHeadsConfig, MechanismConfig):
    top_k: int = 256
    index_n_heads: int = 4
    index_head_dim: int = 64
    index_rope_head_dim: int | None = None  # None: half of index_head_dim
    dense_warmup_steps: int = 100

    @property
    def index_rope_width(self) -> int:
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
                f"half of {self.index_head_dim} is odd: RoPE turns pairs; "
                "take a multiple of 4, or give index_rope_head_dim",
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
        heads, width = self.index_n_heads, self.index_head_dim
        indexer = d_model * (heads * width + width + heads)  # q k w
        index = heads * (width + 1) * context
        attention = self.look_flops(d_model, min(context, self.top_k))
        return Cost(
            params=self.projection_params(d_model) + indexer + 2 * width,  # norm of the index keys
            flops=self.projection_flops(d_model) + 2 * (indexer + index) + attention,
            state_bytes=itemsize * (self.kv_width(d_model) + width) * context,
        )

    def build(self, d_model: int, dropout: float = 0.0) -> "DeepseekSparseAttention":
        return DeepseekSparseAttention(self, d_model, dropout)


class LightningIndexer(nn.Module):
    """Index queries, the one index key and the heads' weights of each token.

    They stay in the dtype of the parameters under autocast: decoding must select what training
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

    def forward(self, x_BTD: Tensor, start: int | Tensor) -> sparse_attention.Index:
        """Of tokens whose first is at position `start`."""
        x_BTD = x_BTD.detach().to(self.q_proj.weight.dtype)
        heads, width = self.config.index_n_heads, self.config.index_head_dim
        q_BTJI = rearrange(self.q_proj(x_BTD), "B T (J I) -> B T J I", J=heads)
        k_BTI = self.k_norm(self.k_proj(x_BTD))
        weights_BTJ = self.weights_proj(x_BTD) * (heads * width) ** -0.5
        by = turn(self.rope, start, x_BTD.shape[1], like=k_BTI)
        q_BTJI = rotate(q_BTJI.transpose(1, 2), by).transpose(1, 2)
        return sparse_attention.Index(q_BTJI, rotate(k_BTI, by), weights_BTJ)


class SparseCache(NamedTuple):
    k_BGSK: Tensor
    v_BGSV: Tensor
    index_k_BSI: Tensor
    seen: Tensor  # tokens written so far, also the next token's position: int64, no dimension

    def append(self, k_BGTK: Tensor, v_BGTV: Tensor, index_k_BTI: Tensor) -> "SparseCache":
        """Write T more tokens, in place. There must be room for them."""
        slot_T = next_positions(self.seen, index_k_BTI.shape[1])
        self.k_BGSK.index_copy_(2, slot_T, k_BGTK.to(self.k_BGSK.dtype))
        self.v_BGSV.index_copy_(2, slot_T, v_BGTV.to(self.v_BGSV.dtype))
        self.index_k_BSI.index_copy_(1, slot_T, index_k_BTI.to(self.index_k_BSI.dtype))
        seen = self.seen + index_k_BTI.shape[1]
        return SparseCache(self.k_BGSK, self.v_BGSV, self.index_k_BSI, seen)


class DeepseekSparseAttention(RotaryHeads, Mechanism[SparseCache]):
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
        return self._look(x_BTD).y_BTD

    def forward_with_loss(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """`y_BTD`, and the indexer's KL divergence in nats, averaged over tokens."""
        look = self._look(x_BTD)
        loss = sparse_attention.index_loss(
            look.read,
            look.index_BTS,
            look.selected_BTS,
            sparse_attention.target(look.weights_BHTS),
            gradient_dtype=look.weights_BHTS.dtype,
        )
        return look.y_BTD, loss

    def init_state(self, batch_size: int, capacity: int) -> SparseCache:
        new, kv_heads = self.o_proj.weight.new_zeros, self.config.n_kv_heads
        return SparseCache(
            new(batch_size, kv_heads, capacity, self.head_dim),
            new(batch_size, kv_heads, capacity, self.v_head_dim),
            new(batch_size, capacity, self.config.index_head_dim),
            none_seen(self.o_proj.weight),
        )

    def prefill(self, x_BTD: Tensor, capacity: int) -> tuple[Tensor, SparseCache]:
        look = self._look(x_BTD)
        state = self.init_state(x_BTD.shape[0], capacity)
        return look.y_BTD, state.append(look.k_BGTK, look.v_BGTV, look.read.k_BSI)

    def step(self, x_BD: Tensor, state: SparseCache) -> tuple[Tensor, SparseCache]:
        x_B1D, start = x_BD[:, None], state.seen
        q_BH1K, k_BG1K, v_BG1V = self._qkv(x_B1D, start)
        with _full_precision(x_BD):
            index: sparse_attention.Index = self.indexer(x_B1D, start)
            state = state.append(k_BG1K, v_BG1V, index.k_BSI)
            index_k_BSI = state.index_k_BSI.to(index.k_BSI.dtype)
            index_B1S = sparse_attention.index_scores(index._replace(k_BSI=index_k_BSI))
        slots = index_B1S.shape[-1]
        is_seen_S = filled(state.seen, slots)
        index_B1S = index_B1S.masked_fill(~is_seen_S, -torch.inf)
        selected_BS = sparse_attention.select(index_B1S, self.config.top_k)[:, 0] & is_seen_S
        kept = (selected_BS.int()).topk(min(slots, self.config.top_k), sorted=False)
        slot_B1n1 = kept.indices[:, None, :, None]
        k_BGnK, v_BGnV = (
            x_BGSK.gather(2, slot_B1n1.expand(-1, x_BGSK.shape[1], -1, x_BGSK.shape[3]))
            for x_BGSK in (state.k_BGSK, state.v_BGSV)
        )
        y_BHV = attend_once(q_BH1K[:, :, 0], k_BGnK, v_BGnV, kept.values.bool())
        return self.o_proj(y_BHV.flatten(1)), state

    def _look(self, x_BTD: Tensor) -> "_Look":
        config = self.config
        with _full_precision(x_BTD):
            read: sparse_attention.Index = self.indexer(x_BTD, start=0)
            with torch.no_grad():  # `index_loss` knows its own gradient
                index_BTS = sparse_attention.index_scores(read)
        selected_BTS = sparse_attention.select(index_BTS, config.top_k)
        if self.training:
            selected_BTS = selected_BTS | (sparse_attention.causal(index_BTS) & self.is_dense)

        q_BHTK, k_BGTK, v_BGTV = self._qkv(x_BTD, start=0)
        repeats = config.n_heads // config.n_kv_heads
        k_BHTK, v_BHTV = (
            x.repeat_interleave(repeats, 1) if repeats > 1 else x for x in (k_BGTK, v_BGTV)
        )
        with _full_precision(x_BTD):  # autocast would widen the weights of T x T
            y_BHTV, weights_BHTS = sparse_attention.attend(
                q_BHTK, k_BHTK, v_BHTV, selected_BTS, self.dropout if self.training else 0.0
            )
        y_BTD = self._output(y_BHTV)
        return _Look(y_BTD, weights_BHTS, read, index_BTS, selected_BTS, k_BGTK, v_BGTV)


class _Look(NamedTuple):
    """All that one pass over a sequence finds out."""

    y_BTD: Tensor
    weights_BHTS: Tensor  # before dropout
    read: sparse_attention.Index
    index_BTS: Tensor
    selected_BTS: Tensor
    k_BGTK: Tensor
    v_BGTV: Tensor


def _full_precision(x: Tensor) -> torch.autocast:
    """What is computed inside keeps the dtypes it is given."""
    return torch.autocast(x.device.type, enabled=False)
