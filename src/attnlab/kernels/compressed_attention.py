"""Attention to compressed tokens, and the blocks that its weights select for a head group.

    y_t  = sum_i w_ti v_i        w_t = softmax_i(q_t . k_i / sqrt(K)) over i with d i + l <= t + 1
    p_tj = sum_heads of the group sum_i w_ti o_ij
    S_t  = the first block, that of t and the one before it, and the best by p, `top_k` in all

Compressed token i stands for the l tokens from d i on, and is seen once all of them are. o_ij is
the number of strides of d tokens that it shares with block j: l and the size of a block are
multiples of d. Where nothing is seen, y is zero, and of equal p the most recent are selected.

A block of queries is computed at a time, again in the backward pass, so that memory grows linearly
with T. Products are in float32 or wider: a selection must not depend on how many tokens are
computed at once.

Yuan et al. 2025 (arXiv:2502.11089).
Shapes: B batch, T tokens, H query heads, G key-value heads, R = H / G, K key width, V value width,
C compressed tokens, N blocks, n selected blocks, U strides.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from attnlab.kernels.block_attention import Selection, best
from attnlab.kernels.compiled import opaque, recomputed
from attnlab.kernels.scores import products
from attnlab.kernels.sparse_attention import UNROLLED, block_on, blocks, kept_weights


class Scheme(NamedTuple):
    """Sizes of the compression and of the blocks that are selected from."""

    size: int  # l, tokens that are compressed to one
    stride: int  # d, tokens from one to the next
    block_size: int  # tokens per block that is selected
    top_k: int  # number of selected blocks

    def compressed(self, tokens: int) -> int:
        """Return the number of compressed tokens.

        >>> [Scheme(32, 16, 64, 4).compressed(tokens) for tokens in (31, 32, 47, 48)]
        [0, 1, 1, 2]
        """
        return max(0, (tokens - self.size) // self.stride + 1)

    def blocks(self, tokens: int) -> int:
        """Return the number of blocks, the last of which may be partial."""
        return -(-tokens // self.block_size)


class Read(NamedTuple):
    """Result of queries: the values that they read, and the blocks that they select."""

    y_BHTV: Tensor
    selection_BGTn: Selection


def attend(
    q_BHTK: Tensor, k_BGCK: Tensor, v_BGCV: Tensor, scheme: Scheme, dropout: float = 0.0
) -> Read:
    """Return what all queries of a sequence read and select. The selection has no gradient."""
    tokens = q_BHTK.shape[2]
    unrolls = tokens <= UNROLLED * block_on(q_BHTK.device.type, tokens)
    # a compiler takes minutes for many blocks
    run = _by_rows if unrolls or not torch.compiler.is_compiling() else _opaque_by_rows
    words_BHT = None
    if dropout:  # drawn here, so that the backward pass finds the same masks
        words_BHT = torch.empty(q_BHTK.shape[:3], dtype=torch.int32, device=q_BHTK.device).random_()
    return run(q_BHTK, k_BGCK, v_BGCV, words_BHT, scheme, dropout)


def pairs(tokens: int, scheme: Scheme) -> int:
    """Return the pairs of query and compressed token that `attend` computes on a CPU."""
    return sum(
        (rows.stop - rows.start) * scheme.compressed(rows.stop) for rows in blocks(tokens, "cpu")
    )


def _by_rows(
    q_BHTK: Tensor,
    k_BGCK: Tensor,
    v_BGCV: Tensor,
    words_BHT: Tensor | None,
    scheme: Scheme,
    dropout: float,
) -> Read:
    parts: list[Any] = []  # a compiler cannot trace list[Any]()
    tokens = q_BHTK.shape[2]
    n_blocks = scheme.blocks(tokens)
    for rows in blocks(tokens, q_BHTK.device.type):
        number = scheme.compressed(rows.stop)
        kept_BHTC = kept_weights(words_BHT, rows, dropout)
        arguments: tuple[Any, ...] = (
            *(q_BHTK[:, :, rows], k_BGCK[:, :, :number], v_BGCV[:, :, :number]),
            *(rows.start, scheme, n_blocks),
            None if kept_BHTC is None else kept_BHTC[..., :number] / (1 - dropout),
        )
        parts.append(recomputed(_flat, *arguments))
    y_BHTV, *selection = (torch.cat(each, 2) for each in zip(*parts, strict=True))
    return Read(y_BHTV, Selection(*selection))


_opaque_by_rows = opaque(_by_rows)


def _flat(*arguments: Any) -> tuple[Tensor, ...]:
    y_BHTV, selection_BGTn = attend_from(*arguments)
    return y_BHTV, *selection_BGTn


def attend_from(
    q_BHTK: Tensor,
    k_BGCK: Tensor,
    v_BGCV: Tensor,
    start: int | Tensor,
    scheme: Scheme,
    n_blocks: int,
    factor_BHTC: Tensor | None = None,
) -> Read:
    """Return what queries read and select whose first is at position `start`.

    `factor` multiplies the weights that read, and not those that select.
    """
    groups, number = k_BGCK.shape[1:3]
    dtype, wide = q_BHTK.dtype, torch.promote_types(q_BHTK.dtype, torch.float32)
    position_T = start + torch.arange(q_BHTK.shape[2], device=q_BHTK.device)
    end_C = scheme.stride * torch.arange(number, device=q_BHTK.device) + scheme.size
    seen_TC = end_C <= position_T[:, None] + 1
    with torch.autocast(q_BHTK.device.type, enabled=False):
        scores_BHTC = products(q_BHTK.to(wide) * q_BHTK.shape[-1] ** -0.5, k_BGCK.to(wide))
        scores_BGRTC = scores_BHTC.unflatten(1, (groups, -1))
        # a finite number: the softmax of no number at all has no gradient
        masked_BGRTC = scores_BGRTC.masked_fill(~seen_TC, torch.finfo(wide).min)
        weights_BGRTC = masked_BGRTC.softmax(-1).masked_fill(~seen_TC, 0.0)
        score_BGTN = importance(weights_BGRTC.detach().sum(2), scheme, n_blocks)
        if factor_BHTC is not None:
            weights_BGRTC = weights_BGRTC * factor_BHTC.unflatten(1, (groups, -1))
        y_BHTV = products(weights_BGRTC.flatten(1, 2), v_BGCV.to(wide).mT).to(dtype)
    own_T1 = position_T[:, None] // scheme.block_size
    block_N = torch.arange(n_blocks, device=q_BHTK.device)
    is_fixed_TN = (block_N == 0) | (block_N == own_T1) | (block_N == own_T1 - 1)
    score_BGTN = score_BGTN.masked_fill(is_fixed_TN, torch.inf)
    return Read(y_BHTV, best(score_BGTN, block_N <= own_T1, scheme.top_k))


def importance(weights_BGTC: Tensor, scheme: Scheme, n_blocks: int) -> Tensor:
    """Return `p_BGTN` of summed weights: each block gets those of the strides that it shares."""
    overlaps, per_block = scheme.size // scheme.stride, scheme.block_size // scheme.stride
    strides, number = n_blocks * per_block, weights_BGTC.shape[-1]
    if not number:
        return weights_BGTC.new_zeros(*weights_BGTC.shape[:-1], n_blocks)
    per_stride_BGTU = sum(pad(weights_BGTC, (n, strides - number - n)) for n in range(overlaps))
    assert isinstance(per_stride_BGTU, Tensor)
    return per_stride_BGTU.unflatten(-1, (n_blocks, per_block)).sum(-1)
