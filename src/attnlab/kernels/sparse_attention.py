"""Attention to the positions that a lightning indexer selects, and the indexer's loss.

    y_t = sum_{s in S_t} a_ts v_s      a_t = softmax_s(q_t . k_s / sqrt(K)) over S_t, by head

S_t is the selection of the `lightning_indexer`, whose loss comes beside the output.

Scores exist for a block of queries at a time and the keys up to the last of them, forward and
backward: memory grows linearly with T. The backward pass computes scores and weights again. It
finds the selection by two numbers per query, the lowest score in it and the oldest position with
that score. The weights of one or two blocks are kept, and computed once; of more blocks, those of
the last. The gradient of the loss needs no other, and is computed in the forward pass. A block has
`BLOCK` queries; on CUDA, where small ones wait for launches, up to `WIDEST`.

On CUDA, longer sequences without dropout run `selected_attention`, which computes the same.

The code has no data-dependent branches or shapes, so that it can be recorded in a CUDA graph.

DeepSeek-AI 2025 (DeepSeek-V3.2).
Shapes: B batch, T queries, S keys (the last query is at the last key), H query heads, G key-value
heads, R = H / G, K key width, V value width, J index heads, I index width, N = R T.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from attnlab.kernels.compiled import opaque
from attnlab.kernels.lightning_indexer import (
    Cutoff,
    Index,
    IndexLoss,
    active_products,
    added,
    causal,
    cutoff,
    index_scores,
    loss_of_block,
    mean_loss,
    select,
    weighted,
    with_gradient,
)
from attnlab.kernels.scores import grouped, products

BLOCK = 256  # queries whose scores exist at once
WIDEST = 512  # the same on CUDA, or fewer if they have more than `PAIRS` scores per head
PAIRS = 1 << 20
KEPT = 2  # largest number of blocks of which all weights are kept for the backward pass
_WIDEST_HEAD = 128  # of keys or values, for which FlexAttention with bits has been tried
UNROLLED = 4  # largest number of blocks in a compiled graph


def pairs(tokens: int) -> int:
    """Return the number of pairs of a query and a key whose scores are computed on a CPU.

    >>> pairs(10) == 10 * 10, pairs(2 * BLOCK) == BLOCK * BLOCK + BLOCK * 2 * BLOCK
    (True, True)
    """
    return sum((rows.stop - rows.start) * rows.stop for rows in blocks(tokens, "cpu"))


def block_on(device_type: str, tokens: int) -> int:
    """Return the number of queries whose scores exist at once, in a sequence of `tokens`.

    >>> [block_on("cuda", tokens) for tokens in (128, 2048, 16_384)], block_on("cpu", 1024)
    ([512, 512, 256], 256)
    """
    return max(BLOCK, min(WIDEST, PAIRS // tokens)) if device_type == "cuda" else BLOCK


def attend(
    q_BHTK: Tensor,
    k_BGTK: Tensor,
    v_BGTV: Tensor,
    index: Index,
    *,
    top_k: int,
    is_dense: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Return `y_BHTV`.

    The softmax sums in float32 or wider; its result has the dtype of the scores.

    Args:
        q_BHTK: queries.
        k_BGTK: keys; each head is shared by H / G heads of queries.
        v_BGTV: values.
        index: what the index scores are computed from. It gets no gradient.
        top_k: positions that a query attends to.
        is_dense: bool without dimension; if True, queries attend to all causal positions.
        dropout: probability of dropping an attention weight.
    """
    heads = q_BHTK, k_BGTK, v_BGTV
    return _run(heads, index, is_dense, top_k, dropout, with_loss=False)[0]


def attend_with_loss(
    q_BHTK: Tensor,
    k_BGTK: Tensor,
    v_BGTV: Tensor,
    index: Index,
    *,
    top_k: int,
    is_dense: Tensor | None = None,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return `y_BHTV` as `attend` does, and the indexer's loss.

    The loss is KL(target || softmax of the index scores over the selected positions) in nats, the
    mean over queries, a scalar in float32 or wider. It is differentiable with respect to `index`
    alone; the matrix products of its gradient have the dtype of the attention weights.
    """
    heads = q_BHTK, k_BGTK, v_BGTV
    y_BHTV, *loss = _run(heads, index, is_dense, top_k, dropout, with_loss=True)
    return y_BHTV, with_gradient(IndexLoss(*loss), index)


def _run(
    heads: tuple[Tensor, Tensor, Tensor],
    index: Index,
    is_dense: Tensor | None,
    top_k: int,
    dropout: float,
    *,
    with_loss: bool,
) -> Any:
    q_BHTK, *_ = heads
    if _by_bits(heads, dropout):
        run = _opaque_selected if torch.compiler.is_compiling() else _selected
        return run(*heads, index, top_k=top_k, is_dense=is_dense, with_loss=with_loss)
    words_BHT = None
    if dropout:  # drawn for whole sequences, so that the backward pass finds the same masks
        words_BHT = torch.empty(q_BHTK.shape[:3], dtype=torch.int32, device=q_BHTK.device).random_()
    # a compiler unrolls the blocks: of many, that takes minutes
    tokens = q_BHTK.shape[2]
    unrolls = tokens <= UNROLLED * block_on(q_BHTK.device.type, tokens)
    run = _attention if unrolls or not torch.compiler.is_compiling() else _opaque_attention
    detached = (x.detach() for x in index)
    return run(*heads, *detached, is_dense, words_BHT, top_k, dropout, with_loss)


def _by_bits(heads: tuple[Tensor, Tensor, Tensor], dropout: float) -> bool:
    """Return whether `selected_attention` runs: where blocks would be scored twice, on CUDA."""
    q_BHTK, _, v_BGTV = heads
    device, tokens = q_BHTK.device.type, q_BHTK.shape[2]
    is_served = device == "cuda" and not dropout and q_BHTK.dtype != torch.float64
    fits = max(q_BHTK.shape[3], v_BGTV.shape[3]) <= _WIDEST_HEAD
    return is_served and fits and tokens > KEPT * block_on(device, tokens)


class _Attention(torch.autograd.Function):
    """Attention, differentiable with respect to q, k and v, beside the loss and its gradients."""

    @staticmethod
    def forward(  # noqa: PLR0913  autograd needs each tensor as an argument
        ctx: Any,
        q_BHTK: Tensor,
        k_BGTK: Tensor,
        v_BGTV: Tensor,
        q_BTJI: Tensor,
        k_BSI: Tensor,
        weights_BTJ: Tensor,
        is_dense: Tensor | None,
        words_BHT: Tensor | None,
        top_k: int,
        dropout: float,
        with_loss: bool,
    ) -> Any:
        index, heads = Index(q_BTJI, k_BSI, weights_BTJ), _Heads(q_BHTK, k_BGTK, v_BGTV)
        outputs: list[Tensor] = []  # a compiler cannot trace list[Tensor]()
        ends: list[Cutoff] = []
        losses: list[IndexLoss] = []
        weights: list[Tensor] = []
        for rows in (of_blocks := blocks(q_BHTK.shape[2], q_BHTK.device.type)):
            of_rows = index.part(rows)
            active_BTJS = active_products(of_rows)
            index_BTS = weighted(of_rows, active_BTJS)
            ends.append(cutoff(index_BTS, top_k))
            bias_BTS = _bias(select(index_BTS, ends[-1]), is_dense, heads.dtype)
            weights_BHTS = heads.weights(rows, bias_BTS)
            if len(of_blocks) > KEPT:
                weights.clear()
            weights.append(weights_BHTS)
            if with_loss:
                losses.append(
                    loss_of_block(of_rows, active_BTJS, index_BTS, bias_BTS, weights_BHTS)
                )
            kept_BHTS = kept_weights(words_BHT, rows, dropout)
            outputs.append(heads.averages(rows, _product(weights_BHTS, kept_BHTS)))
        end = (torch.cat(parts, 1) for parts in zip(*ends, strict=True))
        saved = *index, *end, is_dense, words_BHT, *weights
        ctx.save_for_backward(q_BHTK, k_BGTK, v_BGTV, *saved)
        ctx.top_k, ctx.dropout = top_k, dropout
        y_BHTV = torch.cat(outputs, 2) / (1 - dropout) if dropout else torch.cat(outputs, 2)
        beside = mean_loss(losses, index) if with_loss else ()
        ctx.mark_non_differentiable(*beside)
        return y_BHTV, *beside

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  the decorator is untyped
        ctx: Any, grad_BHTV: Tensor, *_: Any
    ) -> Any:
        q_BHTK, k_BGTK, v_BGTV, *saved = ctx.saved_tensors
        (*saved, score_BT1, position_BT1, is_dense, words_BHT), weights = saved[:7], saved[7:]
        with torch.autocast(q_BHTK.device.type, enabled=False):
            index, heads = Index(*saved), _Heads(q_BHTK, k_BGTK, v_BGTV)
            grad_BHTV = grad_BHTV / (1 - ctx.dropout) if ctx.dropout else grad_BHTV
            of_blocks = blocks(q_BHTK.shape[2], q_BHTK.device.type)
            kept = [None] * (len(of_blocks) - len(weights)) + weights
            for rows, weights_BHTS in zip(of_blocks, kept, strict=True):
                if weights_BHTS is None:
                    end = Cutoff(score_BT1[:, rows], position_BT1[:, rows])
                    selected_BTS = select(index_scores(index.part(rows)), end)
                    weights_BHTS = heads.weights(rows, _bias(selected_BTS, is_dense, heads.dtype))
                kept_BHTS = kept_weights(words_BHT, rows, ctx.dropout)
                heads.add_gradient(rows, grad_BHTV[:, :, rows], weights_BHTS, kept_BHTS)
        return *heads.gradients(), *[None] * 8


def _attention(*arguments: Any) -> Any:
    return _Attention.apply(*arguments)


def _selected(*arguments: Any, **options: Any) -> Any:
    from attnlab.kernels import selected_attention  # which loads Triton

    return selected_attention.attend(*arguments, **options)


_opaque_attention = opaque(_attention)
_opaque_selected = opaque(_selected)


class _Heads:
    """Queries, keys and values of all heads, block by block, and the sums of their gradients."""

    def __init__(self, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTV: Tensor) -> None:
        self.scale, self.groups = q_BHTK.shape[-1] ** -0.5, k_BGTK.shape[1]
        self.q_BHTK, self.k_BGTK, self.v_BGTV = q_BHTK * self.scale, k_BGTK, v_BGTV
        self.dtype = q_BHTK.dtype
        self.by_q: list[Tensor] = []
        self.by_k_BGTK: Tensor | None = None
        self.by_v_BGTV: Tensor | None = None

    def weights(self, rows: slice, bias_BTS: Tensor) -> Tensor:
        """Return `weights_BHTS`, in the dtype of the scores."""
        scores_BHTS = products(self.q_BHTK[:, :, rows], self.k_BGTK[:, :, : rows.stop])
        return scores_BHTS.add_(bias_BTS[:, None]).softmax(-1)

    def averages(self, rows: slice, weights_BHTS: Tensor) -> Tensor:
        """Return the weighted sums of the values, `y_BHTV`."""
        return products(weights_BHTS, self.v_BGTV[:, :, : rows.stop].mT)

    def add_gradient(
        self, rows: slice, grad_BHTV: Tensor, weights_BHTS: Tensor, kept_BHTS: Tensor | None
    ) -> None:
        """Add the gradients of one block of queries. Sums are of float32 or wider."""
        grad_BHTV = grad_BHTV.to(weights_BHTS.dtype)
        by_v_BGSV = self._summed(_product(weights_BHTS, kept_BHTS), grad_BHTV)
        by_weights_BHTS = products(grad_BHTV, self.v_BGTV[:, :, : rows.stop])
        if kept_BHTS is not None:
            by_weights_BHTS = by_weights_BHTS.mul_(kept_BHTS)
        by_scores_BHTS = torch.ops.aten._softmax_backward_data(
            by_weights_BHTS, weights_BHTS, -1, weights_BHTS.dtype
        )
        self.by_q.append(products(by_scores_BHTS, self.k_BGTK[:, :, : rows.stop].mT))
        by_k_BGSK = self._summed(by_scores_BHTS, self.q_BHTK[:, :, rows])
        self.by_k_BGTK = added(self.by_k_BGTK, by_k_BGSK, self.k_BGTK)
        self.by_v_BGTV = added(self.by_v_BGTV, by_v_BGSV, self.v_BGTV)

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients by q, k and v."""
        assert self.by_k_BGTK is not None
        assert self.by_v_BGTV is not None
        by_q_BHTK = torch.cat(self.by_q, 2) * self.scale
        return by_q_BHTK, self.by_k_BGTK.to(self.k_BGTK.dtype), self.by_v_BGTV.to(self.v_BGTV.dtype)

    def _summed(self, x_BHTS: Tensor, y_BHTX: Tensor) -> Tensor:
        return grouped(x_BHTS, self.groups).mT @ grouped(y_BHTX, self.groups)


def blocks(tokens: int, device_type: str) -> list[slice]:
    """Return the queries of each block."""
    block = block_on(device_type, tokens)
    return [slice(start, min(start + block, tokens)) for start in range(0, tokens, block)]


def _bias(selected_BTS: Tensor, is_dense: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return -inf where a query does not attend to a key, and 0 where it does."""
    if is_dense is not None:
        selected_BTS = selected_BTS | (causal(selected_BTS) & is_dense)
    bias_BTS = torch.zeros_like(selected_BTS, dtype=dtype)
    # adding it takes less time than a masked fill of the scores of all heads
    return bias_BTS.masked_fill_(~selected_BTS, -torch.inf)


def kept_weights(words_BHT: Tensor | None, rows: slice, dropout: float) -> Tensor | None:
    """Return `kept_BHTS`: False with probability `dropout`, by a hash of a query's word and a key.

    The hash is `lowbias32` (C. Wellons) without its first and last steps. None without dropout.
    """
    if words_BHT is None:
        return None
    words_S = torch.arange(rows.stop, dtype=torch.int32, device=words_BHT.device) * -1640531527
    hash_BHTS = (words_BHT[:, :, rows, None] ^ words_S).mul_(0x7FEB352D)
    hash_BHTS = hash_BHTS.bitwise_xor_(hash_BHTS >> 15).mul_(0x846CA68B - 2**32)
    return hash_BHTS >= round(dropout * 2**32) - 2**31


def _product(weights_BHTS: Tensor, kept_BHTS: Tensor | None) -> Tensor:
    return weights_BHTS if kept_BHTS is None else weights_BHTS * kept_BHTS
