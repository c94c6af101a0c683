"""Attention to the positions that a lightning indexer selects, by FlexAttention, on CUDA.

It computes what `sparse_attention` does, for long sequences without dropout. The selection of each
query is kept as bits, one per key, and FlexAttention reads them where it computes scores: scores of
the heads are never written to memory, and are computed again in the backward pass alone. Index
scores exist for a block of queries at a time. A kernel of this file finds the selection of a query
by counting: the bits of its lowest score, and then of its oldest position, from the highest on.

    for each block of queries   index scores -> selections, as bits
    for all                     y and the logarithms of the softmax's sums, by FlexAttention
    for each block of queries   index scores, weights of all heads -> loss, and its gradients

The code has no data-dependent branches or shapes, so that it can be recorded in a CUDA graph.

DeepSeek-AI 2025 (DeepSeek-V3.2); Dong et al. 2024 (arXiv:2412.05496).
Shapes: as in `sparse_attention`, and W words of 32 bits, one bit per key.
"""

# pyright: reportMissingParameterType=false, reportUntypedFunctionDecorator=false
from collections.abc import Iterator
from contextlib import suppress

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.kernels import flex
from attnlab.kernels.compiled import compile_once
from attnlab.kernels.lightning_indexer import (
    Index,
    IndexLoss,
    active_products,
    cutoff,
    index_scores,
    loss_of_block,
    mean_loss,
    select,
    weighted,
)
from attnlab.kernels.scores import products

BITS = 32  # of a word
ROWS = 512  # largest number of queries whose scores exist at once
PAIRS = 1 << 23  # largest number of their scores per head


def attend(
    q_BHTK: Tensor,
    k_BGTK: Tensor,
    v_BGTV: Tensor,
    index: Index,
    *,
    top_k: int,
    is_dense: Tensor | None = None,
    with_loss: bool,
) -> tuple[Tensor, *tuple[Tensor, ...]]:
    """Return `y_BHTV`, and the parts of the indexer's loss if `with_loss`.

    The arguments are those of `sparse_attention.attend`. `y_BHTV` is differentiable with respect to
    queries, keys and values; the loss comes with its gradients.
    """
    with torch.no_grad():
        words_BTW = selections(index, top_k)
        if is_dense is not None:
            words_BTW = torch.where(is_dense, causal_words(words_BTW), words_BTW)
    y_BHTV, sums_BHT = flex.selected(q_BHTK, k_BGTK, v_BGTV, words_BTW)
    if not with_loss:
        return (y_BHTV,)
    with torch.no_grad():
        q_BHTK = q_BHTK * q_BHTK.shape[-1] ** -0.5
        of_block = compile_once(_loss_of_block, dynamic=True)
        losses = [
            of_block(
                *index.part(rows),
                q_BHTK[:, :, rows],
                k_BGTK[:, :, : rows.stop],
                sums_BHT[:, :, rows],
                words_BTW[:, rows],
            )
            for rows in _blocks(q_BHTK.shape[2])
        ]
        return y_BHTV, *mean_loss(losses, index)


def selections(index: Index, top_k: int) -> Tensor:
    """Return `words_BTW`: bits of exactly min(t + 1, top_k) causal positions of each query t."""
    batch, tokens = index.q_BTJI.shape[:2]
    words_BTW = index.q_BTJI.new_zeros(batch, tokens, -(-tokens // BITS), dtype=torch.int32)
    of_block = compile_once(_index_scores, dynamic=True)
    for rows in _blocks(tokens):
        index_BTS = of_block(*index.part(rows))
        mark = _mark if index_BTS.is_cuda else _mark_as_defined
        mark(index_BTS.contiguous(), words_BTW[:, rows], top_k)
    return words_BTW


def packed(selected_BTS: Tensor) -> Tensor:
    """Return bits as words: bit s % 32 of word s // 32 stands for key s."""
    padded_BTS = F.pad(selected_BTS, (0, -selected_BTS.shape[-1] % BITS))
    bit_32 = torch.arange(BITS, device=selected_BTS.device)
    return (padded_BTS.unflatten(-1, (-1, BITS)).long() << bit_32).sum(-1).to(torch.int32)


def unpacked(words_BTW: Tensor, keys: int) -> Tensor:
    """Return `selected_BTS`, the bits of the first `keys` keys."""
    bit_32 = torch.arange(BITS, dtype=torch.int32, device=words_BTW.device)
    return ((words_BTW[..., None] >> bit_32) & 1).flatten(-2)[..., :keys] != 0


def causal_words(like_BTW: Tensor) -> Tensor:
    """Return words, in the shape of others, of which each query has all its causal positions."""
    tokens, words = like_BTW.shape[-2:]
    token_T1 = torch.arange(tokens, device=like_BTW.device)[:, None]
    first_W = torch.arange(words, device=like_BTW.device) * BITS
    seen_TW = (token_T1 + 1 - first_W).clamp(0, BITS)  # keys of a word: its first ones
    return ((1 << seen_TW) - 1).to(torch.int32).expand_as(like_BTW)


def _blocks(tokens: int) -> Iterator[slice]:
    rows = max(1, min(ROWS, PAIRS // tokens))
    for start in range(0, tokens, rows):
        yield slice(start, min(start + rows, tokens))


def _index_scores(*of_index: Tensor) -> Tensor:
    return index_scores(Index(*of_index))


def _loss_of_block(
    q_BTJI: Tensor,
    k_BSI: Tensor,
    weights_BTJ: Tensor,
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    sums_BHT: Tensor,
    words_BTW: Tensor,
) -> IndexLoss:
    index = Index(q_BTJI, k_BSI, weights_BTJ)
    active_BTJS = active_products(index)
    index_BTS = weighted(index, active_BTJS)
    selected_BTS = unpacked(words_BTW, k_BSI.shape[1])
    scores_BHTS = products(q_BHTK, k_BGSK)
    weights_BHTS = (scores_BHTS - sums_BHT[..., None]).exp() * selected_BTS[:, None]
    bias_BTS = torch.zeros_like(index_BTS).masked_fill(~selected_BTS, -torch.inf)
    weights_BHTS = weights_BHTS.to(scores_BHTS.dtype)
    return loss_of_block(index, active_BTJS, index_BTS, bias_BTS, weights_BHTS)


def _mark_as_defined(index_BTS: Tensor, words_BTW: Tensor, top_k: int) -> None:
    """Write the selections of a block, whose last query is at the last key, into its words."""
    words = packed(select(index_BTS, cutoff(index_BTS, top_k)))
    words_BTW[..., : words.shape[-1]] = words


def _mark(index_BTS: Tensor, words_BTW: Tensor, top_k: int) -> None:
    """Do the same by a kernel of Triton: one program per query, which holds all its scores."""
    batch, tokens, keys = index_BTS.shape
    strides = words_BTW.stride(0), words_BTW.stride(1)
    held = max(BITS, 1 << (keys - 1).bit_length())
    with torch.cuda.device(index_BTS.device):
        _marked[(batch * tokens,)](  # pyright: ignore[reportIndexIssue]
            *(index_BTS, words_BTW, *strides, tokens, keys, top_k),
            HELD=held,
            DIGITS=held.bit_length() - 1,
            num_warps=min(32, max(4, held // 1024)),
        )


with suppress(ModuleNotFoundError):  # Triton comes with torch for CUDA alone
    import triton  # pyright: ignore[reportMissingImports]
    import triton.language as tl  # pyright: ignore[reportMissingImports]

    @triton.jit
    def _marked(  # noqa: PLR0913  a kernel takes addresses, strides and sizes one by one
        scores,
        words,
        of_sequence,
        of_query,
        tokens,
        keys,
        top_k,
        HELD: tl.constexpr,  # number of scores that a program holds, a power of two
        DIGITS: tl.constexpr,  # its logarithm
    ):
        """Write one query's selection. Scores may be infinite, not NaN."""
        query = tl.program_id(0).to(tl.int64)
        causal = keys - tokens + query % tokens + 1  # number of its causal positions
        position = tl.arange(0, HELD)
        is_there = position < causal
        score = tl.load(scores + query * keys + position, mask=is_there, other=0.0).to(tl.float32)
        bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)  # no -0.0
        order = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # ascending as the scores are
        order = tl.where(is_there, order, -2147483648)
        one = tl.full((), 1, tl.int32)
        lowest = tl.full((), -2147483648, tl.int32)
        oldest = tl.full((), 0, tl.int32)
        if causal > top_k:
            lowest = tl.where(tl.sum((order >= 0).to(tl.int32), 0) >= top_k, 0, lowest)
            for digit in range(31):
                candidate = lowest | (one << (30 - digit))
                enough = tl.sum((order >= candidate).to(tl.int32), 0) >= top_k
                lowest = tl.where(enough, candidate, lowest)
            missing = top_k - tl.sum((order > lowest).to(tl.int32), 0)
            is_tied = (order == lowest) & is_there
            if tl.sum(is_tied.to(tl.int32), 0) > missing:
                for digit in range(DIGITS):
                    candidate = oldest + (one << (DIGITS - 1 - digit))
                    enough = tl.sum((is_tied & (position >= candidate)).to(tl.int32), 0) >= missing
                    oldest = tl.where(enough, candidate, oldest)
        is_last = (order == lowest) & (position >= oldest)
        is_selected = ((order > lowest) | is_last) & is_there
        bit = tl.arange(0, 32)
        bits = tl.reshape(is_selected.to(tl.int32), (HELD // 32, 32)) << bit[None, :]
        word = tl.arange(0, HELD // 32)
        row = words + (query // tokens) * of_sequence + (query % tokens) * of_query
        tl.store(row + word, tl.sum(bits, 1), mask=word * 32 < keys)
