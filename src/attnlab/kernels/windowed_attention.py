"""Causal attention to a window: a token attends to itself and the `window - 1` tokens before it.

    y_t = sum_{t - window < s <= t} softmax_s(q_t . k_s / sqrt(K)) v_s

With `kept` tokens, it attends to the first ones of the text, s < kept, too.

| kernel   | implementation                                                       | where       |
|----------|----------------------------------------------------------------------|-------------|
| `plain`  | the definition: scores of T x T                                      | anywhere    |
| `banded` | blocks of `window` queries, each with its own keys and those of the  | anywhere    |
|          | block before, by torch's scaled_dot_product_attention; O(T window)   |             |
| `flex`   | torch's FlexAttention, compiled, with a block mask; O(T window)      | CUDA,       |
|          |                                                                      | no dropout  |

`auto` is `banded` on a CPU and with dropout of attention weights, which FlexAttention does not
support, and `flex` on CUDA otherwise. All serve the changes of scores of `scores.py`; `banded`
writes capped and penalised scores out, block by block.

Shapes: B batch, H query heads, G key-value heads (G divides H), T tokens, K key width,
V value width, W window, N blocks, M keys of a block: the kept ones and 2 W.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop
from torch.nn.functional import pad

from attnlab.kernels import attention, flex
from attnlab.kernels.scores import UNCHANGED, Scores, with_sink

Kernel = Literal["auto", "plain", "banded", "flex"]


def resolve(kernel: Kernel, device: torch.device, dropout: float) -> Kernel:
    """Return the kernel that runs: `auto` by the rule above, any other as named.

    Raises:
        ValueError: `flex` was named and cannot run; the message says why.
    """
    if kernel == "auto":
        return "flex" if device.type == "cuda" and not dropout else "banded"
    if kernel == "flex":
        flex.require(device, dropout, instead="banded")
    return kernel


def flops(  # noqa: PLR0913  one parameter per option
    tokens: int,
    key: int,
    value: int,
    window: int,
    kernel: Kernel,
    *,
    products: bool = True,
    sinks: bool = False,
    kept: int = 0,
) -> int:
    """Return the FLOPs of one head of key and value width for a sequence.

    Masked pairs are included, except in blocks that `banded` and `flex` skip. For `auto` they are
    those of `banded`, whatever the device.

    >>> flops(10, 3, 2, 4, "banded"), flops(10, 3, 2, 4, "plain")
    (832, 1000)
    """
    if kernel == "flex":
        return 2 * sum(flex.padded_widths(key, value)) * flex.pairs(tokens, window, kept)
    if kernel == "plain":
        return 2 * (key + value) * tokens**2
    first = min(tokens, window)
    of_first = attention.flops(first, key, value, "auto", products=products, sinks=sinks)
    later_blocks = -(-tokens // window) - 1
    more = 1 if sinks and products else 0  # the key of the sink, and its column
    keys = min(kept, tokens) + 2 * window + more
    return of_first + 2 * (key + more + value) * later_blocks * window * keys


def windowed_attention(  # noqa: PLR0913  one parameter per option
    q_BHTK: Tensor,
    k_BGTK: Tensor,
    v_BGTV: Tensor,
    *,
    window: int,
    kernel: Kernel,
    dropout: float = 0.0,
    scores: Scores = UNCHANGED,
    kept: int = 0,
) -> Tensor:
    """Return `y_BHTV`. `dropout` is the probability of dropping an attention weight.

    The first `kept` tokens are seen by all later ones.
    """
    if kernel == "flex":
        return flex.attention(q_BHTK, k_BGTK, v_BGTV, window, scores, kept)
    repeats = q_BHTK.shape[1] // k_BGTK.shape[1]
    k_BHTK, v_BHTV = (
        x.repeat_interleave(repeats, 1) if repeats > 1 else x for x in (k_BGTK, v_BGTV)
    )
    form = definition if kernel == "plain" else _banded
    return form(q_BHTK, k_BHTK, v_BHTV, window, dropout, scores, kept)


def definition(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    window: int,
    dropout: float = 0.0,
    scores: Scores = UNCHANGED,
    kept: int = 0,
) -> Tensor:
    """Return `y_BHTV` by the definition."""
    scores_BHTS = (q_BHTK * q_BHTK.shape[-1] ** -0.5) @ k_BHTK.mT
    position_T = torch.arange(q_BHTK.shape[2], device=q_BHTK.device)
    age_TS = position_T[:, None] - position_T
    unseen_TS = (age_TS < 0) | ((age_TS >= window) & (position_T >= kept))
    weights_BHTS = scores.weights(scores.changed(scores_BHTS, age_TS), unseen_TS)
    return drop(weights_BHTS, dropout).to(v_BHTV.dtype) @ v_BHTV


def _banded(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    window: int,
    dropout: float,
    scores: Scores,
    kept: int,
) -> Tensor:
    """Return `y_BHTV` in blocks: the first is causal attention, later ones have M keys."""
    heads, tokens = q_BHTK.shape[1:3]
    first_BHWV = attention.attention(
        *(x[:, :, :window] for x in (q_BHTK, k_BHTK, v_BHTV)),
        kernel=attention.auto(q_BHTK.device, dropout, products=scores.are_products),
        dropout=dropout,
        scores=scores,
    )
    if tokens <= window:
        return first_BHWV
    # padding comes last: only padded queries attend to padded keys, and those rows are cut off
    q_BHNWK, k_BHNWK, v_BHNWV = (
        pad(x, (0, 0, 0, -tokens % window)).unflatten(2, (-1, window))
        for x in (q_BHTK, k_BHTK, v_BHTV)
    )
    blocks = q_BHNWK.shape[2] - 1
    k_BHNMK, v_BHNMV = (
        torch.cat([x[:, :, :-1], x[:, :, 1:]], 3) for x in (k_BHNWK, v_BHNWV)
    )  # the block before, and the block itself
    position_M = torch.arange(2 * window, device=q_BHTK.device)
    age_WM = position_M[window:, None] - position_M
    seen_WM = (age_WM >= 0) & (age_WM < window)
    if kept:
        k_BHNMK, v_BHNMV = (
            torch.cat([x[:, :, None, :kept].expand(-1, -1, blocks, -1, -1), of_blocks], 3)
            for x, of_blocks in ((k_BHTK, k_BHNMK), (v_BHTV, v_BHNMV))
        )
        age_WM, seen_WM = _with_kept(age_WM, seen_WM, min(kept, tokens), blocks, heads)
    later_BHNWV = _in_band(
        q_BHNWK[:, :, 1:].flatten(1, 2),  # blocks are independent, like heads
        k_BHNMK.flatten(1, 2),
        v_BHNMV.flatten(1, 2),
        dropout,
        scores.per_block(blocks),
        (age_WM, seen_WM),
    ).unflatten(1, (heads, -1))
    return torch.cat([first_BHWV, later_BHNWV.flatten(2, 3)[:, :, : tokens - window]], 2)


def _with_kept(
    age_WM: Tensor, seen_WM: Tensor, kept: int, blocks: int, heads: int
) -> tuple[Tensor, Tensor]:
    """Return ages and visibility (1, H N, W, M), with those of the kept keys before the others.

    A kept key is seen where the band does not reach it: it has one weight.
    """
    window = len(age_WM)
    query_NW = torch.arange(window, (blocks + 1) * window, device=age_WM.device).view(blocks, -1)
    age_NWS = query_NW[..., None] - torch.arange(kept, device=age_WM.device)
    of_band = (x.expand(blocks, -1, -1) for x in (age_WM, seen_WM))
    age_NWM, seen_NWM = (
        torch.cat(pair, -1) for pair in zip((age_NWS, age_NWS >= window), of_band, strict=True)
    )
    return age_NWM.repeat(heads, 1, 1)[None], seen_NWM.repeat(heads, 1, 1)[None]


def _in_band(
    q_BHWK: Tensor,
    k_BHMK: Tensor,
    v_BHMV: Tensor,
    dropout: float,
    scores: Scores,
    age_and_seen: tuple[Tensor, Tensor],
) -> Tensor:
    """Return `y_BHWV` of blocks of W queries and M keys: their ages, and which are seen."""
    age_WM, seen_WM = age_and_seen
    scale = q_BHWK.shape[-1] ** -0.5
    if not scores.are_products:
        scores_BHWM = scores.changed((q_BHWK * scale) @ k_BHMK.mT, age_WM)
        return drop(scores.weights(scores_BHWM, ~seen_WM), dropout).to(v_BHMV.dtype) @ v_BHMV
    if scores.sinks_H is not None:
        q_BHWK, k_BHMK, v_BHMV = with_sink(q_BHWK, k_BHMK, v_BHMV, scores.sinks_H)
        seen_WM = pad(seen_WM, (1, 0), value=True)
    settings = {"attn_mask": seen_WM, "dropout_p": dropout, "scale": scale}
    return attention.fused_attention(q_BHWK, k_BHMK, v_BHMV, **settings)
