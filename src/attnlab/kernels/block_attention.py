"""Causal attention of each query to the blocks of keys that it has selected.

    y_t = sum_{s in S_t} softmax_s(q_t . k_s / sqrt(K)) v_s      S_t: s <= t in a selected block

Tokens are divided into blocks of equal size; the last one may be partial. Heads select on their
own, or in groups that share keys. The scores of a block of queries with all earlier keys exist at a
time, those that are not selected masked, and the backward pass computes them again: time is that of
full attention, memory grows linearly with T. Decoding gathers the selected blocks alone.

The code has no data-dependent branches or shapes, so that it can be recorded in a CUDA graph.

Shapes: B batch, T tokens, H query heads, G key-value heads (G divides H), X heads that select (G or
H), K key width, V value width, S keys, N blocks of keys, n selected blocks, M keys of those.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from attnlab.kernels.compiled import opaque, recomputed
from attnlab.kernels.scores import products
from attnlab.kernels.sparse_attention import UNROLLED, block_on, blocks, kept_weights


class Selection(NamedTuple):
    """Blocks by number. Where there were fewer to select from, some are not `found`."""

    block_Xn: Tensor
    is_found_Xn: Tensor

    def among(self, n_blocks: int) -> Tensor:
        """Return `selected_XN`, True for the blocks that are selected."""
        # counted: a block that is not found may have the number of one that is
        count_XN = self.block_Xn.new_zeros(*self.block_Xn.shape[:-1], n_blocks, dtype=torch.int32)
        return count_XN.scatter_add(-1, self.block_Xn, self.is_found_Xn.int()) > 0


def best(score_XN: Tensor, is_open_N: Tensor, number: int) -> Selection:
    """Return the `number` open blocks of the highest score; of equal ones the most recent.

    `is_open` has the shape of the scores, or one that broadcasts to it.
    """
    n_blocks = score_XN.shape[-1]
    score_XN = score_XN.detach().masked_fill(~is_open_N, -torch.inf)
    order_XN = score_XN.flip(-1).sort(dim=-1, descending=True, stable=True).indices
    block_Xn = (n_blocks - 1 - order_XN)[..., :number]
    return Selection(block_Xn, is_open_N.expand_as(score_XN).gather(-1, block_Xn))


def block_means(x_BGTK: Tensor, size: int) -> Tensor:
    """Return `mean_BGNK` of the tokens of each block, computed in float32 or wider."""
    tokens = x_BGTK.shape[2]
    wide_BGTK = x_BGTK.to(torch.promote_types(x_BGTK.dtype, torch.float32))
    sum_BGNK = pad(wide_BGTK, (0, 0, 0, -tokens % size)).unflatten(2, (-1, size)).sum(3)
    start_N = torch.arange(0, tokens, size, device=x_BGTK.device)
    number_N1 = (tokens - start_N).clamp(max=size)[:, None]
    return (sum_BGNK / number_N1).to(x_BGTK.dtype)


def attend(
    q_BHTK: Tensor,
    k_BGTK: Tensor,
    v_BGTV: Tensor,
    selected_BXTN: Tensor,
    size: int,
    dropout: float = 0.0,
) -> Tensor:
    """Return `y_BHTV`. The softmax sums in float32 or wider.

    Args:
        q_BHTK: queries.
        k_BGTK: keys; each head is shared by H / G heads of queries.
        v_BGTV: values.
        selected_BXTN: True for the blocks that a query attends to, at least one of them with a
            token that is not later than the query.
        size: tokens per block.
        dropout: probability of dropping an attention weight.
    """
    tokens = q_BHTK.shape[2]
    unrolls = tokens <= UNROLLED * block_on(q_BHTK.device.type, tokens)
    # a compiler takes minutes for many blocks
    run = _by_rows if unrolls or not torch.compiler.is_compiling() else _opaque_by_rows
    words_BHT = None
    if dropout:  # drawn here, so that the backward pass finds the same masks
        words_BHT = torch.empty(q_BHTK.shape[:3], dtype=torch.int32, device=q_BHTK.device).random_()
    return run(q_BHTK, k_BGTK, v_BGTV, selected_BXTN, words_BHT, size, dropout)


def _by_rows(
    q_BHTK: Tensor,
    k_BGTK: Tensor,
    v_BGTV: Tensor,
    selected_BXTN: Tensor,
    words_BHT: Tensor | None,
    size: int,
    dropout: float,
) -> Tensor:
    outputs: list[Tensor] = []  # a compiler cannot trace list[Tensor]()
    for rows in blocks(q_BHTK.shape[2], q_BHTK.device.type):
        arguments: tuple[Any, ...] = (
            *(q_BHTK[:, :, rows], k_BGTK[:, :, : rows.stop], v_BGTV[:, :, : rows.stop]),
            *(selected_BXTN[:, :, rows], words_BHT, rows, size, dropout),
        )
        outputs.append(recomputed(_of_rows, *arguments))
    return torch.cat(outputs, 2)


_opaque_by_rows = opaque(_by_rows)


def _of_rows(  # noqa: PLR0913  what is recomputed takes each tensor as an argument
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSV: Tensor,
    selected_BXTN: Tensor,
    words_BHT: Tensor | None,
    rows: slice,
    size: int,
    dropout: float,
) -> Tensor:
    """Return `y_BHTV` of the queries `rows`, from the keys up to the last of them."""
    groups, keys = k_BGSK.shape[1:3]
    row_T = torch.arange(rows.start, rows.stop, device=q_BHTK.device)
    seen_BXTS = selected_BXTN.repeat_interleave(size, -1)[..., :keys]
    seen_BXTS = seen_BXTS & (row_T[:, None] >= torch.arange(keys, device=q_BHTK.device))
    scores_BHTS = products(q_BHTK * q_BHTK.shape[-1] ** -0.5, k_BGSK)
    scores_BGRTS = scores_BHTS.unflatten(1, (groups, -1))
    scores_BGRTS = scores_BGRTS.masked_fill(~seen_BXTS.unflatten(1, (groups, -1)), -torch.inf)
    wide = torch.promote_types(scores_BGRTS.dtype, torch.float32)
    weights_BGRTS = scores_BGRTS.softmax(-1, dtype=wide).to(v_BGSV.dtype)
    if (kept_BHTS := kept_weights(words_BHT, rows, dropout)) is not None:
        weights_BGRTS = weights_BGRTS * kept_BHTS.unflatten(1, (groups, -1)) / (1 - dropout)
    return products(weights_BGRTS.flatten(1, 2), v_BGSV.mT)


def gathered(
    k_BGSK: Tensor, v_BGSV: Tensor, selection_BXn: Selection, size: int, seen: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `k_BXMK, v_BXMV` of the selected blocks of a cache, and `is_seen_BXM`.

    `seen` is the number of tokens in the cache.
    """
    within = torch.arange(size, device=seen.device)
    position_BXM = (selection_BXn.block_Xn[..., None] * size + within).flatten(-2)
    is_seen_BXM = selection_BXn.is_found_Xn.repeat_interleave(size, -1) & (position_BXM < seen)
    groups, slots = k_BGSK.shape[1:3]
    slot_BGRM1 = position_BXM.clamp(max=slots - 1).unflatten(1, (groups, -1))[..., None]

    def taken(x_BGSK: Tensor) -> Tensor:
        repeats, width = slot_BGRM1.shape[2], x_BGSK.shape[-1]
        x_BGRSK = x_BGSK[:, :, None].expand(-1, -1, repeats, -1, -1)
        return x_BGRSK.gather(3, slot_BGRM1.expand(-1, -1, -1, -1, width)).flatten(1, 2)

    return taken(k_BGSK), taken(v_BGSV), is_seen_BXM
