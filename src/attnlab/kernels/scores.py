"""Changes of attention scores between the product of query and key and the weights.

    s_ts = q_t . k_s / sqrt(K)
    s_ts <- c tanh(s_ts / c)                  `softcap` c: scores stay within -c and c
    s_ts <- s_ts - m_h (t - s)                `slopes` m_h: ALiBi, a penalty on distance
    w_ts = exp(s_ts) / (exp(b_h) + sum_s' exp(s_ts'))      `sinks` b_h: a logit without a value

Softcap: Gemma Team 2024, Gemma 2 (arXiv:2408.00118). ALiBi: Press et al. 2022 (arXiv:2108.12409).
Sinks: OpenAI 2025, gpt-oss (arXiv:2508.10925); a logit of 0 is the softmax of Miller 2023 that may
attend to nothing.

A sink is a first key whose product with every query is its logit, and whose value is zero. So every
kernel serves it, with one token and one column more. A softcap and slopes are served by
FlexAttention and by the forms that are written out.

Shapes: B batch, H query heads, G key-value heads, R = H / G, T queries, S keys, K key width,
V value width, U = T + 1, N = R T.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad


class Scores(NamedTuple):
    """The changes; by default there are none."""

    softcap: float | None = None
    slopes_H: Tensor | None = None
    sinks_H: Tensor | None = None

    @property
    def are_unchanged(self) -> bool:
        """True without any change."""
        return self.are_products and self.sinks_H is None

    @property
    def are_products(self) -> bool:
        """True if the scores are products of queries and keys, which every kernel serves."""
        return self.softcap is None and self.slopes_H is None

    def per_block(self, blocks: int) -> "Scores":
        """Return the changes for heads that are repeated, one after another, for each block."""
        slopes_H, sinks_H = (
            x if x is None else x.repeat_interleave(blocks) for x in (self.slopes_H, self.sinks_H)
        )
        return Scores(self.softcap, slopes_H, sinks_H)

    def changed(self, scores_BHTS: Tensor, age_TS: Tensor) -> Tensor:
        """Return capped and penalised scores, in float32 or wider if they change.

        `age` is the distance of query and key in tokens, of shape (T, S) or (B, 1, T, S).
        """
        if self.are_products:
            return scores_BHTS
        scores_BHTS = scores_BHTS.to(torch.promote_types(scores_BHTS.dtype, torch.float32))
        if self.softcap is not None:
            scores_BHTS = self.softcap * (scores_BHTS / self.softcap).tanh()
        if self.slopes_H is not None:
            scores_BHTS = scores_BHTS - self.slopes_H.to(scores_BHTS)[:, None, None] * age_TS
        return scores_BHTS

    def weights(self, scores_BHTS: Tensor, unseen_TS: Tensor) -> Tensor:
        """Return the weights of changed scores in float32 or wider, zero where keys are unseen."""
        wide = torch.promote_types(scores_BHTS.dtype, torch.float32)
        scores_BHTS = scores_BHTS.masked_fill(unseen_TS, -torch.inf)
        if self.sinks_H is None:
            return scores_BHTS.softmax(-1, dtype=wide)
        sinks_BHT1 = self.sinks_H.to(wide)[:, None, None].expand(*scores_BHTS.shape[:-1], 1)
        return torch.cat([scores_BHTS.to(wide), sinks_BHT1], -1).softmax(-1)[..., :-1]


UNCHANGED = Scores()


def grouped(x_BHTX: Tensor, groups: int) -> Tensor:
    """Return `x_BGNX`: the R heads of queries that share a head of keys, one below the other."""
    return x_BHTX.unflatten(1, (groups, -1)).flatten(2, 3)


def products(q_BHTK: Tensor, k_BGSK: Tensor) -> Tensor:
    """Return `scores_BHTS`, the products of queries and keys; shared keys are read once."""
    scores_BGNS = grouped(q_BHTK, k_BGSK.shape[1]) @ k_BGSK.mT
    return scores_BGNS.unflatten(2, (-1, q_BHTK.shape[2])).flatten(1, 2)


def with_sink(
    q_BHTK: Tensor, k_BHSK: Tensor, v_BHSV: Tensor, sinks_H: Tensor
) -> tuple[Tensor, ...]:
    """Return `q_BHTC, k_BHUC, v_BHUV`: a first key with the sinks' logits, and C = K + 1.

    Scores are products of the wider queries and keys, divided by the root of the old width K.
    """
    width = k_BHSK.shape[-1]
    logits_H11 = (sinks_H * width**0.5).to(k_BHSK)[:, None, None]
    sink_BH1C = pad(logits_H11, (width, 0)).expand(len(k_BHSK), *k_BHSK.shape[1:2], -1, -1)
    k_BHUC = torch.cat([sink_BH1C, pad(k_BHSK, (0, 1))], 2)
    return pad(q_BHTK, (0, 1), value=1.0), k_BHUC, pad(v_BHSV, (0, 0, 1, 0))


def alibi_slopes(n_heads: int) -> Tensor:
    """Return `slopes_H` in float32: a geometric sequence that ends at 2^-8, as in the paper.

    Where the number of heads is no power of two, the rest are every second one of twice as many.

    >>> alibi_slopes(4).tolist()
    [0.25, 0.0625, 0.015625, 0.00390625]
    >>> alibi_slopes(3).tolist()
    [0.0625, 0.00390625, 0.25]
    """
    whole = 1 << (n_heads.bit_length() - 1)
    number_H = torch.arange(1, whole + 1, dtype=torch.float32)
    between_H = torch.arange(1, 2 * (n_heads - whole) + 1, 2, dtype=torch.float32)
    return torch.cat([2 ** (-8 * number_H / whole), 2 ** (-4 * between_H / whole)])


def for_flex(scores: Scores, device: torch.device) -> Any:
    """Return the function of one score that FlexAttention compiles, or None without a change."""
    if scores.are_products:
        return None
    slopes_H = scores.slopes_H
    # a tensor: torch takes a second number for a variable, with which it cannot compile
    cap = None if scores.softcap is None else torch.full((), scores.softcap, device=device)

    def change(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        del batch
        if cap is not None:
            score = cap * (score / cap).tanh()
        return score if slopes_H is None else score - slopes_H[head] * (query - key)

    return change
