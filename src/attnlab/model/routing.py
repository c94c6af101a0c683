"""Routing: the experts of each token, their weights, and the order of the experts' rows.

    p = softmax(x W_r)      chosen = the top_k of p + b      w = p over the chosen, made to sum to 1

That is softmax over the chosen logits (Mixtral; Jiang et al. 2024, arXiv:2401.04088). With top_k 1
the weight is p itself (Switch; Fedus et al. 2021, arXiv:2101.03961): a constant weight of 1 would
give the router no gradient. b is a bias for the choice alone (Wang et al. 2024, arXiv:2408.15664).
Of equal scores the expert with the lower number is chosen.

The input rows of the experts are the pairs of a token and a choice, sorted by expert, tokens in
order: row m is token_M[m], and the k-th choice of token n is row row_NK[n, k]. All shapes are
static. Both maps are gathers, each the gradient of the other, so that no atomic addition is needed.

Shapes: N tokens, K choices per token, M = N K rows, E experts, D model width.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from attnlab.kernels.compiled import fused


class Routing(NamedTuple):
    """The experts of every token, and the order of the rows."""

    weight_NK: Tensor  # weight of each chosen expert
    row_NK: Tensor  # sorted row of each choice, int64
    token_M: Tensor  # token of each sorted row, int64
    ends_E: Tensor  # one past the last row of each expert, int32
    balance: Tensor  # E sum_e f_e P_e of Switch, a scalar: 1 if the load is even
    entropy: Tensor  # of p, in nats, mean over the tokens
    mean_p_E: Tensor  # P_e: probability of each expert, mean over the tokens


@fused
def route(logits_NE: Tensor, bias_E: Tensor, top_k: int) -> Routing:
    """Return the choice of experts. Neither `bias_E` nor the choice has a gradient."""
    tokens, experts = logits_NE.shape
    log_p_NE = logits_NE.log_softmax(-1)
    p_NE = log_p_NE.exp()
    expert_NK = _best(p_NE.detach() + bias_E, top_k)
    weight_NK = p_NE.gather(-1, expert_NK)
    if top_k > 1:
        weight_NK = weight_NK / weight_NK.sum(-1, keepdim=True)

    # counting sort: a row's index is the number of rows of earlier experts and tokens
    expert_M, expert_E = expert_NK.flatten(), torch.arange(experts, device=logits_NE.device)
    taken_EM = expert_E[:, None] == expert_M
    count_EM = taken_EM.flatten().cumsum(0, dtype=torch.int32).view_as(taken_EM)
    ends_E = count_EM[:, -1].contiguous()
    row_M = count_EM.gather(0, expert_M[None])[0].long() - 1
    index_M = torch.arange(len(row_M), device=row_M.device)
    token_M = torch.empty_like(row_M).scatter_(0, row_M, index_M // top_k)

    load_E = ends_E.diff(prepend=ends_E.new_zeros(1)) / len(row_M)
    mean_p_E = p_NE.mean(0)
    balance = experts * (load_E * mean_p_E).sum()
    entropy = -(p_NE * log_p_NE).detach().sum(-1).mean()
    row_NK = row_M.view(tokens, top_k)
    return Routing(weight_NK, row_NK, token_M, ends_E, balance, entropy, mean_p_E)


def _best(score_NE: Tensor, top_k: int) -> Tensor:
    """Return `expert_NK`, best first; written so that a compiler can fuse it."""
    expert_E = torch.arange(score_NE.shape[-1], device=score_NE.device)
    chosen: list[Tensor] = []
    for _ in range(top_k):
        best_N1 = score_NE.argmax(-1, keepdim=True)
        score_NE = score_NE.masked_fill(expert_E == best_N1, -torch.inf)
        chosen.append(best_N1)
    return torch.cat(chosen, -1)


def dispatch(x_ND: Tensor, routing: Routing) -> Tensor:
    """Return `x_MD`: each token once per choice, sorted by expert."""
    return _Dispatch.apply(x_ND, routing.token_M, routing.row_NK)  # pyright: ignore[reportReturnType]


def combine(y_MD: Tensor, routing: Routing) -> Tensor:
    """Return `y_ND`: the weighted sum of each token's experts, in float32 or wider."""
    return _Combine.apply(y_MD, routing.weight_NK, routing.token_M, routing.row_NK)  # pyright: ignore[reportReturnType]


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, token_M: Tensor, row_NK: Tensor) -> Tensor:
        ctx.save_for_backward(row_NK)
        return x_ND.index_select(0, token_M)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None, None]:
        (row_NK,) = ctx.saved_tensors
        return _sum_of_rows(grad_outputs[0], row_NK), None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, y_MD: Tensor, weight_NK: Tensor, token_M: Tensor, row_NK: Tensor
    ) -> Tensor:
        ctx.save_for_backward(y_MD, weight_NK, token_M, row_NK)
        return _weighted_sum(y_MD, weight_NK, row_NK)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, Tensor, None, None]:
        return *_weighted_sum_gradients(grad_outputs[0], *ctx.saved_tensors), None, None


@fused
def _sum_of_rows(y_MD: Tensor, row_NK: Tensor) -> Tensor:
    return y_MD[row_NK].sum(1)


@fused
def _weighted_sum(y_MD: Tensor, weight_NK: Tensor, row_NK: Tensor) -> Tensor:
    return (y_MD[row_NK] * weight_NK[..., None]).sum(1).to(y_MD.dtype)


@fused
def _weighted_sum_gradients(
    grad_ND: Tensor, y_MD: Tensor, weight_NK: Tensor, token_M: Tensor, row_NK: Tensor
) -> tuple[Tensor, Tensor]:
    by_weight_NK = (y_MD[row_NK].to(weight_NK.dtype) * grad_ND[:, None]).sum(-1)
    weight_M = (
        torch.empty_like(weight_NK).flatten().scatter_(0, row_NK.flatten(), weight_NK.flatten())
    )
    by_y_MD = (grad_ND[token_M] * weight_M[:, None]).to(y_MD.dtype)
    return by_y_MD, by_weight_NK
