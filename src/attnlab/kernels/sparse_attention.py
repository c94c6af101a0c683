"""Attention over the positions that a lightning indexer selects, and the loss it learns from.

    I_ts = sum_j w_tj ReLU(q_tj . k_s)                            index scores
    S_t  = the top_k positions s <= t by I_ts                     selection
    y_t  = sum_{s in S_t} a_ts v_s      a_t = softmax_s(q_t . k_s / sqrt(K)) over S_t, by head
    p_t  = sum_heads a_t / |sum_heads a_t|_1                      target, not differentiated
    L    = mean_t KL(p_t || softmax of I_t over S_t)              the indexer's own loss

The scores of all pairs exist at once, T x T. Everything is branch-free and of static shape, so that
it can be recorded in a CUDA graph. DeepSeek-AI 2025 (DeepSeek-V3.2).

Shapes: B batch, T queries, S keys (the last query is at the last key), H heads, K key width,
V value width, J index heads, I index width.
"""

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop


def index_scores(q_BTJI: Tensor, k_BSI: Tensor, weights_BTJ: Tensor) -> Tensor:
    """`index_BTS`, of future keys too. 2 B T S J (I + 1) FLOPs."""
    tokens, heads = q_BTJI.shape[1:3]
    products_BTJS = (q_BTJI.flatten(1, 2) @ k_BSI.mT).unflatten(1, (tokens, heads))
    return (weights_BTJ[:, :, None] @ products_BTJS.relu()).squeeze(2)


def causal(index_BTS: Tensor) -> Tensor:
    """`causal_TS`: which keys are not in the future."""
    tokens, keys = index_BTS.shape[-2:]
    return index_BTS.new_ones(tokens, keys, dtype=torch.bool).tril(keys - tokens)


def select(index_BTS: Tensor, top_k: int) -> Tensor:
    """`selected_BTS`: exactly min(t + 1, top_k) causal positions of each query t.

    Of equal scores the most recent positions win: ReLU makes many exact zeros, and which of them
    `torch.topk` returns is anybody's guess. Scores must not be NaN; infinities are fine.
    """
    causal_TS = causal(index_BTS)
    if top_k >= index_BTS.shape[-1]:
        return causal_TS.expand_as(index_BTS)
    masked_BTS = index_BTS.detach().masked_fill(~causal_TS, -torch.inf)
    lowest_BT1 = masked_BTS.topk(top_k, sorted=False).values.amin(-1, keepdim=True)
    above_BTS = masked_BTS > lowest_BT1
    tied_BTS = (masked_BTS == lowest_BT1) & causal_TS  # a future position never ties
    room_BT1 = top_k - above_BTS.sum(-1, dtype=torch.int32, keepdim=True)
    oldest_first_BTS = tied_BTS.cumsum(-1, dtype=torch.int32)
    return above_BTS | (tied_BTS & (oldest_first_BTS > oldest_first_BTS[..., -1:] - room_BT1))


def attend(
    q_BHTK: Tensor, k_BHSK: Tensor, v_BHSV: Tensor, selected_BTS: Tensor, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """`y_BHTV` and the attention weights before dropout, `weights_BHTS`.

    The softmax adds up in float32 or wider; its result keeps the dtype of the scores.
    """
    scores_BHTS = (q_BHTK * q_BHTK.shape[-1] ** -0.5) @ k_BHSK.mT
    bias_BTS = _bias(selected_BTS, scores_BHTS.dtype)
    weights_BHTS = (scores_BHTS + bias_BTS[:, None]).softmax(-1)
    return drop(weights_BHTS, dropout) @ v_BHSV, weights_BHTS


def target(weights_BHTS: Tensor) -> Tensor:
    """`target_BTS`: what the heads look at together. Each query's sum is 1."""
    wide = torch.promote_types(weights_BHTS.dtype, torch.float32)
    sum_BTS = weights_BHTS.detach().sum(1, dtype=wide)
    return sum_BTS / sum_BTS.sum(-1, keepdim=True)


def kl_divergence(target_BTS: Tensor, index_BTS: Tensor, selected_BTS: Tensor) -> Tensor:
    """KL(target || softmax of the index scores over the selected positions), mean over queries.

    In nats. The target must be zero elsewhere.
    """
    # sum_s p log p - sum_s p (I - log Z), where sum_s p = 1
    log_z_BT = (index_BTS + _bias(selected_BTS, index_BTS.dtype)).logsumexp(-1)
    negentropy_BT = torch.xlogy(target_BTS, target_BTS).sum(-1)
    return (negentropy_BT - (target_BTS * index_BTS).sum(-1) + log_z_BT).mean()


def _bias(selected_BTS: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where selected and -inf elsewhere: unlike a mask, adding it costs the backward nothing."""
    return torch.zeros_like(selected_BTS, dtype=dtype).masked_fill(~selected_BTS, -torch.inf)
