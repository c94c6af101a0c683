"""MoBA: each query attends to its own block of tokens and to the best `top_k - 1` earlier blocks.

    q_t = rotate(norm(W_q c_t))        k_t = rotate(norm(W_k c'_t))        v_t = W_v c'_t
    s_ti = q_t . (mean of k over block i)      I_t = the block of t, and top_k - 1 before it by s
    y_t  = W_o [ sum_{s <= t in I_t} softmax_s(q_t . k_s / sqrt(K)) v_s ]_heads

Every query head selects on its own, by no parameters and without a gradient through the selection.
Here c and c' are the token x_t, or narrow latents of it where `q_lora_rank` or `kv_lora_rank` is
set. The norms of queries and keys are off by default.

A decoding step reads the mean key of every block and the tokens of `top_k` blocks. The decode state
holds keys, values, and one mean key per block. Training computes the scores of all earlier tokens
and masks them, block by block of queries: memory is linear in T, time is not below that of full
attention.

Lu et al. 2025 (arXiv:2502.13189).
Shapes: B batch, T tokens, D model width, H query heads, G key-value heads, K width of a query and
a key head, V width of a value head, S slots, N blocks, n selected blocks, M their tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from attnlab.config import Problem
from attnlab.kernels import block_attention, sparse_attention
from attnlab.kernels.scores import products
from attnlab.mechanism import Cost, MechanismConfig
from attnlab.modules.kv_cache import KVCache, attend_once
from attnlab.modules.rotary_heads import RotaryHeads, RotaryHeadsConfig


@dataclass(frozen=True, kw_only=True)
class MOBA(RotaryHeadsConfig, MechanismConfig):
    block_size: int = 64  # tokens per block
    top_k: int = 4  # blocks that a query attends to, its own included

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        for name in ("block_size", "top_k"):
            if getattr(self, name) < 1:
                yield Problem(name, f"must be at least 1, got {getattr(self, name)}")

    def cost(self, d_model: int, context: int, itemsize: int = 2) -> Cost:
        widths, blocks = self.head_widths(d_model), -(-context // self.block_size)
        attended = min(context, self.top_k * self.block_size)  # the whole of its own block
        products = self.n_heads * sum(widths) * attended
        products += self._block_scores(d_model, context)
        means = self.n_kv_heads * widths[0] * blocks
        return self.projections_cost(d_model, context, itemsize) + Cost(
            params=0, flops=2 * products, state_bytes=itemsize * means
        )

    def forward_flops(self, d_model: int, context: int) -> int:
        """Return the FLOPs with all scores of a block of queries: those not selected are masked."""
        of_heads = self.n_heads * sum(self.head_widths(d_model))
        blocks = -(-context // self.block_size)
        products = of_heads * sparse_attention.pairs(context) // context
        products += self.n_heads * self.head_widths(d_model)[0] * blocks
        return self.projections_cost(d_model, context).flops + 2 * products

    def _block_scores(self, d_model: int, context: int) -> int:
        """Return the products of a step with mean keys: none where all blocks are selected."""
        blocks = -(-context // self.block_size)
        is_needed = blocks > self.top_k
        return self.n_heads * self.head_widths(d_model)[0] * blocks if is_needed else 0

    def build(self, d_model: int, dropout: float = 0.0) -> "MixtureOfBlocks":
        return MixtureOfBlocks(self, d_model, dropout)


class BlockCache(NamedTuple):
    """Decode state."""

    heads: KVCache
    mean_BGNK: Tensor  # of each block's keys, so far


class MixtureOfBlocks(RotaryHeads[BlockCache]):
    def __init__(self, config: MOBA, d_model: int, dropout: float) -> None:
        super().__init__(config, d_model)
        self.config, self.dropout = config, dropout

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self._attend(*self._qkv(x_BTD, start=0))

    def init_state(self, batch_size: int, capacity: int) -> BlockCache:
        config, like = self.config, self.o_proj.weight
        widths, blocks = (self.head_dim, self.v_head_dim), -(-capacity // config.block_size)
        heads = KVCache.empty(batch_size, config.n_kv_heads, capacity, widths, like)
        mean_BGNK = like.new_zeros(batch_size, config.n_kv_heads, blocks, self.head_dim)
        return BlockCache(heads, mean_BGNK)

    def prefill(self, x_BTD: Tensor, capacity: int) -> tuple[Tensor, BlockCache]:
        q_BHTK, k_BGTK, v_BGTV = self._qkv(x_BTD, start=0)
        heads, mean_BGNK = self.init_state(x_BTD.shape[0], capacity)
        filled_BGNK = block_attention.block_means(k_BGTK, self.config.block_size)
        mean_BGNK[:, :, : filled_BGNK.shape[2]] = filled_BGNK
        state = BlockCache(heads.append(k_BGTK, v_BGTV), mean_BGNK)
        return self._attend(q_BHTK, k_BGTK, v_BGTV), state

    def step(self, x_BD: Tensor, state: BlockCache) -> tuple[Tensor, BlockCache]:
        q_BH1K, k_BG1K, v_BG1V = self._qkv(x_BD[:, None], start=state.heads.seen)
        heads = state.heads.append(k_BG1K, v_BG1V)
        state = BlockCache(heads, self._with_mean(heads, state.mean_BGNK))
        if state.mean_BGNK.shape[2] <= self.config.top_k:  # all blocks are selected
            return self._output(heads.attend(q_BH1K[:, :, 0])[:, :, None])[:, 0], state
        mean_BGNK = state.mean_BGNK.to(q_BH1K.dtype)
        selection = self._select(q_BH1K, mean_BGNK, heads.seen - 1)
        of_step = block_attention.Selection(*(x_BHTn[:, :, 0] for x_BHTn in selection))
        k_BHMK, v_BHMV, is_seen_BHM = block_attention.gathered(
            heads.k_BGSK, heads.v_BGSV, of_step, self.config.block_size, heads.seen
        )
        y_BHV = attend_once(q_BH1K[:, :, 0], k_BHMK, v_BHMV, is_seen_BHM[:, :, None])
        return self._output(y_BHV[:, :, None])[:, 0], state

    def _attend(self, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTV: Tensor) -> Tensor:
        """Return `y_BTD` of all tokens at once."""
        mean_BGNK = block_attention.block_means(k_BGTK, self.config.block_size)
        selection_BHTn = self._select(q_BHTK, mean_BGNK, start=0)
        selected_BHTN = selection_BHTn.among(mean_BGNK.shape[2])
        dropout = self.dropout if self.training else 0.0
        return self._output(
            block_attention.attend(
                q_BHTK, k_BGTK, v_BGTV, selected_BHTN, self.config.block_size, dropout
            )
        )

    def _select(
        self, q_BHTK: Tensor, mean_BGNK: Tensor, start: int | Tensor
    ) -> block_attention.Selection:
        """Return the blocks of each query, its own first; the first query is at `start`."""
        wide = torch.promote_types(q_BHTK.dtype, torch.float32)
        blocks = mean_BGNK.shape[2]
        with torch.autocast(q_BHTK.device.type, enabled=False):  # to select what training selects
            score_BHTN = products(q_BHTK.detach().to(wide), mean_BGNK.detach().to(wide))
        position_T = start + torch.arange(q_BHTK.shape[2], device=q_BHTK.device)
        own_T1 = position_T[:, None] // self.config.block_size
        block_N = torch.arange(blocks, device=q_BHTK.device)
        earlier = block_attention.best(score_BHTN, block_N < own_T1, self.config.top_k - 1)
        own_BHT1 = own_T1.expand(*score_BHTN.shape[:2], -1, -1)
        return block_attention.Selection(
            torch.cat([own_BHT1, earlier.block_Xn], -1),
            torch.cat([torch.ones_like(own_BHT1, dtype=torch.bool), earlier.is_found_Xn], -1),
        )

    def _with_mean(self, heads: KVCache, mean_BGNK: Tensor) -> Tensor:
        """Return the mean keys, with that of the last token's block written in place."""
        size, slots = self.config.block_size, heads.k_BGSK.shape[2]
        block = (heads.seen - 1) // size
        position_S = block * size + torch.arange(size, device=block.device)
        k_BGSK = heads.k_BGSK.index_select(2, position_S.clamp(max=slots - 1))
        wide_BGSK = k_BGSK.to(torch.promote_types(k_BGSK.dtype, torch.float32))
        is_seen_S1 = (position_S < heads.seen)[:, None]
        sum_BG1K = (wide_BGSK * is_seen_S1).sum(2, keepdim=True)
        new_BG1K = (sum_BG1K / is_seen_S1.sum()).to(mean_BGNK.dtype)
        return mean_BGNK.index_copy_(2, block[None], new_BG1K)

    def _output(self, y_BHTV: Tensor) -> Tensor:
        return self.o_proj(rearrange(y_BHTV, "B H T V -> B T (H V)"))
