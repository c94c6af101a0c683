"""The lightning indexer's scores, the selection by them, and the indexer's loss.

    I_ts = sum_j w_tj ReLU(q_tj . k_s)                            index scores
    S_t  = the top_k positions s <= t by I_ts                     selection
    p_t  = sum_heads a_t / |sum_heads a_t|_1                      target, without gradient
    L    = mean_t KL(p_t || softmax of I_t over S_t)              loss

a are the weights of attention over S_t (`sparse_attention`). The code has no data-dependent
branches or shapes, so that it can be recorded in a CUDA graph.

DeepSeek-AI 2025 (DeepSeek-V3.2).
Shapes: B batch, T queries, S keys (the last query is at the last key), H heads of attention, J
index heads, I index width, N = T J.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

COUNTED = 1024  # scores of a row that a compiled kernel on CUDA holds while it counts them
_AS_INTEGER = {16: torch.int16, 32: torch.int32, 64: torch.int64}


class Index(NamedTuple):
    """Queries, keys and head weights that the indexer computes from the tokens."""

    q_BTJI: Tensor
    k_BSI: Tensor  # shared by the index heads
    weights_BTJ: Tensor

    def part(self, rows: slice) -> "Index":
        """Return the queries `rows`, and the keys up to the last of them."""
        return Index(self.q_BTJI[:, rows], self.k_BSI[:, : rows.stop], self.weights_BTJ[:, rows])


class Cutoff(NamedTuple):
    """The end of each query's selection."""

    score_BT1: Tensor  # lowest selected score
    position_BT1: Tensor  # of equal scores, those at this position and later are selected


class IndexLoss(NamedTuple):
    """The loss in nats, and its gradients."""

    value: Tensor  # scalar
    by_q_BTJI: Tensor
    by_k_BSI: Tensor
    by_weights_BTJ: Tensor


def index_scores(index: Index) -> Tensor:
    """Return `index_BTS`, future keys included. 2 B T S J (I + 1) FLOPs."""
    return weighted(index, active_products(index))


def active_products(index: Index) -> Tensor:
    """Return ReLU(q . k) of every index head, by one product per sequence: they share the key."""
    products_BNS = index.q_BTJI.flatten(1, 2) @ index.k_BSI.mT
    return products_BNS.relu_().unflatten(1, index.q_BTJI.shape[1:3])


def weighted(index: Index, active_BTJS: Tensor) -> Tensor:
    """Return `index_BTS`, the sum of the active products by the weights of the index heads."""
    # compiled, a sum is one pass with the ReLU, where a product is a kernel apart; one of two heads
    # would be computed again, and rounded otherwise, wherever scores are compared
    if torch.compiler.is_compiling() and active_BTJS.shape[2] > 2:
        return (index.weights_BTJ[..., None] * active_BTJS).sum(2)
    return (index.weights_BTJ[:, :, None] @ active_BTJS).squeeze(2)


def causal(index_BTS: Tensor) -> Tensor:
    """Return `causal_TS`: True where a key is not in a query's future."""
    tokens, keys = index_BTS.shape[-2:]
    return index_BTS.new_ones(tokens, keys, dtype=torch.bool).tril(keys - tokens)


def cutoff(index_BTS: Tensor, top_k: int) -> Cutoff:
    """Return where the selection of min(t + 1, top_k) causal positions of each query t ends.

    Among equal scores the most recent positions are selected: ReLU makes many exact zeros, and the
    order in which `torch.topk` returns equal ones is undefined. Scores may be infinite, not NaN.
    """
    batch, tokens, keys = index_BTS.shape
    early = top_k - (keys - tokens)  # queries that have no more than top_k causal positions
    if early >= tokens:
        score_BT1 = index_BTS.new_full((batch, tokens, 1), -torch.inf)
        return Cutoff(score_BT1, torch.zeros_like(score_BT1, dtype=torch.int64))
    early = max(0, early)
    causal_TS = causal(index_BTS)[early:]
    late_BTS = index_BTS[:, early:].masked_fill(~causal_TS, -torch.inf)
    counts = torch.compiler.is_compiling() and late_BTS.is_cuda and keys <= COUNTED
    end = (bisected if counts else by_sorting)(late_BTS, causal_TS, top_k)
    at_start = 0, 0, early, 0
    return Cutoff(pad(end.score_BT1, at_start, value=-torch.inf), pad(end.position_BT1, at_start))


def by_sorting(late_BTS: Tensor, causal_TS: Tensor, top_k: int) -> Cutoff:
    """Return the end of the selection of queries with at least `top_k` causal positions.

    `late_BTS` are their index scores, -inf at future positions.
    """
    lowest_BT1 = late_BTS.topk(top_k, sorted=False).values.amin(-1, keepdim=True)
    above_BT1 = (late_BTS > lowest_BT1).sum(-1, dtype=torch.int32, keepdim=True)
    tied_BTS = (late_BTS == lowest_BT1) & causal_TS  # not future positions
    oldest_first_BTS = tied_BTS.cumsum(-1, dtype=torch.int32)
    left_out_BT1 = oldest_first_BTS[..., -1:] - (top_k - above_BT1)
    return Cutoff(lowest_BT1, torch.searchsorted(oldest_first_BTS, left_out_BT1 + 1))


def bisected(late_BTS: Tensor, causal_TS: Tensor, top_k: int) -> Cutoff:
    """Return the same by counting alone, which a compiler can fuse with what makes the scores.

    The bits of the lowest score, and then of the oldest position, are found from the highest on: a
    bit is set if enough scores, or positions, are as high with it.
    """
    bits = 8 * late_BTS.element_size()
    integer_BTS = late_BTS.masked_fill(late_BTS == 0, 0.0).view(_AS_INTEGER[bits])  # no -0.0
    ordered_BTS = _reordered(integer_BTS, bits)  # ascending as the scores are
    lowest_BT1 = torch.full_like(ordered_BTS[..., :1], -(1 << (bits - 1)))
    for bit in range(bits):
        candidate_BT1 = _with_bit(lowest_BT1, bits, bit)
        enough_BT1 = _count(ordered_BTS >= candidate_BT1) >= top_k
        lowest_BT1 = torch.where(enough_BT1, candidate_BT1, lowest_BT1)
    tied_BTS = (ordered_BTS == lowest_BT1) & causal_TS
    missing_BT1 = top_k - _count(ordered_BTS > lowest_BT1)
    position_S = torch.arange(late_BTS.shape[-1], device=late_BTS.device)
    position_BT1 = torch.zeros_like(missing_BT1, dtype=torch.int64)
    for bit in reversed(range((late_BTS.shape[-1] - 1).bit_length())):
        candidate_BT1 = position_BT1 + (1 << bit)
        enough_BT1 = _count(tied_BTS & (position_S >= candidate_BT1)) >= missing_BT1
        position_BT1 = torch.where(enough_BT1, candidate_BT1, position_BT1)
    return Cutoff(_reordered(lowest_BT1, bits).view(late_BTS.dtype), position_BT1)


def _with_bit(lowest_BT1: Tensor, bits: int, bit: int) -> Tensor:
    """Return the number with its `bit`-th highest bit flipped: the sign first."""
    return lowest_BT1 ^ (-(1 << (bits - 1)) if bit == 0 else 1 << (bits - 1 - bit))


def _reordered(integer: Tensor, bits: int) -> Tensor:
    """Return integers ordered as the floats with their bits are, and the inverse."""
    return integer ^ ((integer >> (bits - 1)) & ((1 << (bits - 1)) - 1))


def _count(is_counted_BTS: Tensor) -> Tensor:
    return is_counted_BTS.sum(-1, dtype=torch.int32, keepdim=True)


def select(index_BTS: Tensor, end: Cutoff) -> Tensor:
    """Return `selected_BTS`: True for exactly min(t + 1, top_k) causal positions of each query."""
    position_S = torch.arange(index_BTS.shape[-1], device=index_BTS.device)
    tied_BTS = (index_BTS == end.score_BT1) & (position_S >= end.position_BT1)
    return ((index_BTS > end.score_BT1) | tied_BTS) & causal(index_BTS)


def loss_of_block(
    index: Index,
    active_BTJS: Tensor,
    index_BTS: Tensor,
    bias_BTS: Tensor,
    weights_BHTS: Tensor,
) -> IndexLoss:
    """Return the loss of a block, whose gradient by the scores is g = softmax(I) - p.

    With h_tjs = g_ts [q_tj . k_s > 0],

        dL/dq_tj = w_tj u_tj      dL/dw_tj = q_tj . u_tj      dL/dk_s = sum_tj h_tjs w_tj q_tj

    where u_tj = sum_s h_tjs k_s.
    """
    dtype = weights_BHTS.dtype
    wide = torch.promote_types(dtype, torch.float32)
    sum_BTS = weights_BHTS.sum(1, dtype=wide)
    target_BTS = sum_BTS.div_(sum_BTS.sum(-1, keepdim=True))
    selected_BTS = index_BTS + bias_BTS
    g_BTS = selected_BTS.softmax(-1, dtype=wide).sub_(target_BTS).to(dtype)
    # finite where the target is 0: their product is then 0, and kernels of CPUs are slow at limits
    limits = torch.finfo(wide)
    log_BTS = selected_BTS.log_softmax(-1, dtype=wide).clamp_(min=limits.min)
    log_target_BTS = target_BTS.clamp(min=limits.tiny).log_()
    value = log_target_BTS.sub_(log_BTS).mul_(target_BTS).sum()

    q_BTJI, k_BSI, weights_BTJ = (x.to(dtype) for x in index)
    g_BTJS = g_BTS[:, :, None].expand_as(active_BTJS)
    # ReLU's own backward kernel: one pass over T x S x J instead of three
    h_BNS = torch.ops.aten.threshold_backward(g_BTJS, active_BTJS.to(dtype), 0).flatten(1, 2)
    u_BTJI = (h_BNS @ k_BSI).view_as(q_BTJI)
    by_k_BSI = h_BNS.mT @ (weights_BTJ[..., None] * q_BTJI).flatten(1, 2)
    return IndexLoss(value, weights_BTJ[..., None] * u_BTJI, by_k_BSI, (q_BTJI * u_BTJI).sum(-1))


def mean_loss(losses: Sequence[IndexLoss], index: Index) -> IndexLoss:
    """Return the mean over all queries, with gradients in the dtypes of the index."""
    of_queries, by_k_BSI = 1 / index.weights_BTJ[..., 0].numel(), None
    for loss in losses:
        by_k_BSI = added(by_k_BSI, loss.by_k_BSI, index.k_BSI)
    assert by_k_BSI is not None
    values, by_q, _, by_weights = zip(*losses, strict=True)
    gradients = torch.cat(by_q, 1), by_k_BSI, torch.cat(by_weights, 1)
    scaled = (x.to(of.dtype) * of_queries for x, of in zip(gradients, index, strict=True))
    return IndexLoss(torch.stack(values).sum() * of_queries, *scaled)


def added(total: Tensor | None, part: Tensor, whole: Tensor) -> Tensor:
    """Return `total` plus the gradient by the first keys, in the shape of all; float32 or wider."""
    if total is None:
        total = torch.zeros_like(whole, dtype=torch.promote_types(whole.dtype, torch.float32))
    total[..., : part.shape[-2], :] += part
    return total


def with_gradient(loss: IndexLoss, index: Index) -> Tensor:
    """Return the value of the loss, differentiable with respect to `index` by its gradients."""
    return _WithGradient.apply(*index, *loss)


class _WithGradient(torch.autograd.Function):
    """A scalar whose gradient by an `Index` is known."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        *_, value, by_q_BTJI, by_k_BSI, by_weights_BTJ = tensors
        ctx.save_for_backward(by_q_BTJI, by_k_BSI, by_weights_BTJ)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  the decorator is untyped
        ctx: Any, grad: Tensor
    ) -> Any:
        return *(by * grad.to(by.dtype) for by in ctx.saved_tensors), *[None] * 4
