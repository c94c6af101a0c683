"""Attention to the positions that a lightning indexer selects, and the indexer's loss.

    I_ts = sum_j w_tj ReLU(q_tj . k_s)                            index scores
    S_t  = the top_k positions s <= t by I_ts                     selection
    y_t  = sum_{s in S_t} a_ts v_s      a_t = softmax_s(q_t . k_s / sqrt(K)) over S_t, by head
    p_t  = sum_heads a_t / |sum_heads a_t|_1                      target, without gradient
    L    = mean_t KL(p_t || softmax of I_t over S_t)              the indexer's loss

The scores of all pairs exist at once, T x T. The code has no data-dependent branches or shapes, so
that it can be recorded in a CUDA graph.

DeepSeek-AI 2025 (DeepSeek-V3.2).
Shapes: B batch, T queries, S keys (the last query is at the last key), H heads, K key width,
V value width, J index heads, I index width, N = T J.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import dropout as drop
from torch.nn.functional import kl_div


class Index(NamedTuple):
    """Queries, keys and head weights that the indexer computes from the tokens."""

    q_BTJI: Tensor
    k_BSI: Tensor  # shared by the index heads
    weights_BTJ: Tensor


def index_scores(index: Index) -> Tensor:
    """Return `index_BTS`, future keys included. 2 B T S J (I + 1) FLOPs."""
    active_BTJS = _products(index.q_BTJI, index.k_BSI).relu_()
    return (index.weights_BTJ[:, :, None] @ active_BTJS).squeeze(2)


def causal(index_BTS: Tensor) -> Tensor:
    """Return `causal_TS`: True where a key is not in a query's future."""
    tokens, keys = index_BTS.shape[-2:]
    return index_BTS.new_ones(tokens, keys, dtype=torch.bool).tril(keys - tokens)


def select(index_BTS: Tensor, top_k: int) -> Tensor:
    """Return `selected_BTS`: True for exactly min(t + 1, top_k) causal positions of each query t.

    Among equal scores the most recent positions are selected: ReLU makes many exact zeros, and the
    order in which `torch.topk` returns equal ones is undefined. Scores may be infinite, not NaN.
    """
    tokens, keys = index_BTS.shape[-2:]
    causal_TS = causal(index_BTS)
    if top_k >= keys:
        return causal_TS.expand_as(index_BTS)
    early = max(0, top_k - (keys - tokens))  # queries that have no more than top_k causal positions
    late_TS = causal_TS[early:]
    late_BTS = index_BTS[:, early:].masked_fill(~late_TS, -torch.inf)

    lowest_BT1 = late_BTS.topk(top_k, sorted=False).values.amin(-1, keepdim=True)
    above_BTS = late_BTS > lowest_BT1
    tied_BTS = (late_BTS == lowest_BT1) & late_TS  # not future positions
    missing_BT1 = top_k - above_BTS.sum(-1, dtype=torch.int32, keepdim=True)
    oldest_first_BTS = tied_BTS.cumsum(-1, dtype=torch.int32)
    recent_BTS = oldest_first_BTS > oldest_first_BTS[..., -1:] - missing_BT1
    early_BTS = causal_TS[:early].expand(len(index_BTS), -1, -1)
    return torch.cat([early_BTS, above_BTS | (tied_BTS & recent_BTS)], 1)


def attend(
    q_BHTK: Tensor, k_BHSK: Tensor, v_BHSV: Tensor, selected_BTS: Tensor, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return `y_BHTV`, and the attention weights before dropout, `weights_BHTS`.

    The softmax sums in float32 or wider; its result has the dtype of the scores.
    """
    scores_BHTS = (q_BHTK * q_BHTK.shape[-1] ** -0.5) @ k_BHSK.mT
    # adding, unlike a masked fill, has no cost in the backward pass
    bias_BTS = torch.zeros_like(selected_BTS, dtype=scores_BHTS.dtype)
    bias_BTS = bias_BTS.masked_fill_(~selected_BTS, -torch.inf)
    weights_BHTS = (scores_BHTS + bias_BTS[:, None]).softmax(-1)
    return drop(weights_BHTS, dropout) @ v_BHSV, weights_BHTS


def target(weights_BHTS: Tensor) -> Tensor:
    """Return `target_BTS`: the heads' mean attention weights. They sum to 1 per query."""
    wide = torch.promote_types(weights_BHTS.dtype, torch.float32)
    sum_BTS = weights_BHTS.detach().sum(1, dtype=wide)
    return sum_BTS / sum_BTS.sum(-1, keepdim=True)


def index_loss(
    index: Index,
    index_BTS: Tensor,
    selected_BTS: Tensor,
    target_BTS: Tensor,
    gradient_dtype: torch.dtype,
) -> Tensor:
    """Return KL(target || softmax of the index scores over the selected positions).

    The result is a scalar in nats, the mean over queries, in float32 or wider. It is differentiable
    with respect to `index` alone.

    Args:
        index: what the scores were computed from.
        index_BTS: `index_scores(index)`; autograd need not have recorded it.
        selected_BTS: True at selected positions.
        target_BTS: zero where nothing is selected.
        gradient_dtype: dtype of the matrix products of the backward pass.
    """
    return _IndexLoss.apply(*index, index_BTS, selected_BTS, target_BTS, gradient_dtype)


class _IndexLoss(torch.autograd.Function):
    """Index loss, whose gradient g by the scores is softmax(I) - p.

    With h_tjs = g_ts [q_tj . k_s > 0],

        dL/dq_tj = w_tj u_tj      dL/dw_tj = q_tj . u_tj      dL/dk_s = sum_tj h_tjs w_tj q_tj

    where u_tj = sum_s h_tjs k_s. No tensor of T x S x J is saved: the backward pass computes h.
    """

    @staticmethod
    def forward(  # noqa: PLR0913  autograd needs each tensor as an argument
        ctx: Any,
        q_BTJI: Tensor,
        k_BSI: Tensor,
        weights_BTJ: Tensor,
        index_BTS: Tensor,
        selected_BTS: Tensor,
        target_BTS: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        unseen_BTS = ~selected_BTS
        log_BTS = index_BTS.masked_fill(unseen_BTS, -torch.inf)
        log_BTS = log_BTS.log_softmax(-1, dtype=target_BTS.dtype)
        gradient_BTS = (log_BTS.exp() - target_BTS).to(dtype)
        ctx.save_for_backward(q_BTJI, k_BSI, weights_BTJ, gradient_BTS)
        finite_BTS = log_BTS.masked_fill_(
            unseen_BTS, 0
        )  # the target is 0 there, so the term is 0, not NaN
        return kl_div(finite_BTS, target_BTS, reduction="sum") / log_BTS[..., 0].numel()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  the decorator is untyped
        ctx: Any, *grad_outputs: Any
    ) -> Any:
        *index, g_BTS = ctx.saved_tensors
        q_BTJI, k_BSI, weights_BTJ = (x.to(g_BTS.dtype) for x in index)
        with torch.autocast(g_BTS.device.type, enabled=False):
            products_BTJS = _products(q_BTJI, k_BSI)
            g_BTJS = g_BTS[:, :, None].expand_as(products_BTJS)
            # ReLU's own backward kernel: one pass over T x S x J instead of three
            h_BNS = torch.ops.aten.threshold_backward(g_BTJS, products_BTJS, 0).flatten(1, 2)
            u_BTJI = (h_BNS @ k_BSI).view_as(q_BTJI)
            weighted_BTJI = weights_BTJ[..., None] * q_BTJI
            by_k_BSI = h_BNS.mT @ weighted_BTJI.flatten(1, 2)
        by_index = weights_BTJ[..., None] * u_BTJI, by_k_BSI, (q_BTJI * u_BTJI).sum(-1)
        scale = grad_outputs[0] / g_BTS[..., 0].numel()
        gradients = (x.to(like.dtype) * scale for x, like in zip(by_index, index, strict=True))
        return *gradients, None, None, None, None


def _products(q_BTJI: Tensor, k_BSI: Tensor) -> Tensor:
    """Return q . k of every index head, by one product per sequence: the heads share the key."""
    tokens_heads = q_BTJI.shape[1:3]
    return (q_BTJI.flatten(1, 2) @ k_BSI.mT).unflatten(1, tokens_heads)
