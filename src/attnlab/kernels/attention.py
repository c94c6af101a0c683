"""Causal softmax attention, with key-value heads shared by groups of query heads.

    y_t = sum_{s <= t} softmax_s(q_t . k_s / sqrt(K)) v_s

| kernel    | what it is                                                             | where     |
|-----------|------------------------------------------------------------------------|-----------|
| `plain`   | the definition: scores of T x T, softmax in float32                    | anywhere  |
| `sdpa`    | torch's scaled_dot_product_attention: its fused kernels, O(T) memory   | anywhere  |
| `blocked` | the definition for a block of queries at a time                        | anywhere  |

`auto` is `sdpa`, but `blocked` on a CPU with dropout: torch's fused CPU kernel has no dropout, and
what it falls back to makes a T x T mask.

Shapes: B batch, H query heads, G key-value heads (G divides H), T tokens, K key width,
V value width.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop
from torch.nn.functional import pad, scaled_dot_product_attention

Kernel = Literal["auto", "plain", "sdpa", "blocked"]

_BLOCK = 128  # queries at a time


def resolve(kernel: Kernel, device: torch.device, dropout: float) -> Kernel:
    """The kernel that runs: `auto` by the rule above, any other as named."""
    if kernel != "auto":
        return kernel
    return "blocked" if device.type == "cpu" and dropout else "sdpa"


def attention(
    q_BHTK: Tensor, k_BGTK: Tensor, v_BGTV: Tensor, *, kernel: Kernel, dropout: float = 0.0
) -> Tensor:
    """`y_BHTV`; `dropout` is the probability of dropping an attention weight."""
    repeats = q_BHTK.shape[1] // k_BGTK.shape[1]
    k_BHTK, v_BHTV = (
        x.repeat_interleave(repeats, 1) if repeats > 1 else x for x in (k_BGTK, v_BGTV)
    )
    if kernel == "plain":
        return definition(q_BHTK, k_BHTK, v_BHTV, dropout)
    if kernel == "blocked":
        starts = range(0, q_BHTK.shape[2], _BLOCK)
        return torch.cat([_block(q_BHTK, k_BHTK, v_BHTV, dropout, start) for start in starts], 2)
    # the fused kernels want one head width; zeros appended to the values come out as zeros
    missing = q_BHTK.shape[-1] - v_BHTV.shape[-1]
    y_BHTV = scaled_dot_product_attention(
        q_BHTK,
        k_BHTK,
        pad(v_BHTV, (0, missing)) if missing > 0 else v_BHTV,
        dropout_p=dropout,
        is_causal=True,
    )
    return y_BHTV[..., : v_BHTV.shape[-1]]


def definition(
    q_BHTK: Tensor, k_BHSK: Tensor, v_BHSV: Tensor, dropout: float = 0.0, start: int = 0
) -> Tensor:
    """Causal attention written out; the first query is at position `start` of the keys."""
    scores_BHTS = (q_BHTK * q_BHTK.shape[-1] ** -0.5) @ k_BHSK.mT
    tokens, keys = scores_BHTS.shape[-2:]
    row_T = torch.arange(start, start + tokens, device=q_BHTK.device)
    future_TS = torch.arange(keys, device=q_BHTK.device) > row_T[:, None]
    wide = torch.promote_types(scores_BHTS.dtype, torch.float32)
    weights_BHTS = scores_BHTS.masked_fill(future_TS, -torch.inf).softmax(-1, dtype=wide)
    return drop(weights_BHTS, dropout).to(v_BHSV.dtype) @ v_BHSV


def _block(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTV: Tensor, dropout: float, start: int) -> Tensor:
    stop = min(start + _BLOCK, q_BHTK.shape[2])
    return definition(
        q_BHTK[:, :, start:stop], k_BHTK[:, :, :stop], v_BHTV[:, :, :stop], dropout, start
    )
