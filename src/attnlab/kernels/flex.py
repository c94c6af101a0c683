"""Causal attention, to all earlier tokens, a window or selected ones, by torch's FlexAttention.

It is compiled, works on blocks of queries and keys, and skips blocks without a visible key. It
needs CUDA and does not support dropout of attention weights.

Dong et al. 2024 (arXiv:2412.05496).
Shapes: B batch, H query heads, G key-value heads (G divides H), T tokens, K key width,
V value width, N blocks, W words of 32 bits.
"""

from copy import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from attnlab.config import ConfigError, Problem
from attnlab.kernels.compiled import compile_once
from attnlab.kernels.scores import UNCHANGED, Scores, for_flex

_BLOCK = 128  # queries and keys per block of the mask
_NARROWEST = 16  # head width that it supports
_WIDE = 128  # values up to this width fit on chip in the blocks that torch selects by key width
# torch's kernel for fewer than 128 queries has no blocks for 128 or more of them per KV head
_ONE_KERNEL: Any = {"FORCE_USE_FLEX_ATTENTION": True}
# words of bits lie on chip beside keys and values: the blocks that torch selects do not fit
_WITH_BITS: Any = _ONE_KERNEL | {
    **dict.fromkeys(("fwd_BLOCK_M", "fwd_BLOCK_N"), 64),
    "fwd_num_stages": 2,
    "bwd_num_stages": 1,
    "bwd_num_warps": 8,
}


def require(device: torch.device, dropout: float, instead: str) -> None:
    """Raise ValueError with the reason if it cannot run. `instead` is a kernel that can."""
    require_no_dropout(dropout, instead)
    if device.type != "cuda":
        raise ValueError(
            f"kernel 'flex' needs CUDA, and the device is {device.type}: use {instead!r} or 'auto'"
        )


def require_no_dropout(dropout: float, instead: str) -> None:
    """Raise ConfigError, which is a ValueError, if `dropout` is not 0."""
    if dropout:
        message = (
            f"kernel 'flex' does not support dropout of attention weights, and it is {dropout}: "
            f"use {instead!r} or 'auto', or set the dropout to 0"
        )
        raise ConfigError([Problem("kernel", message)])


def attention(
    q_BHTK: Tensor,
    k_BGTK: Tensor,
    v_BGTV: Tensor,
    window: int | None = None,
    scores: Scores = UNCHANGED,
    kept: int = 0,
) -> Tensor:
    """Return `y_BHTV`: attention to the last `window` tokens, the query's included, or to all.

    The first `kept` tokens are seen by all later ones.
    A sink with logit b multiplies y by Z / (Z + exp(b)), Z being the sum of a row's exponentials.
    """
    tokens, device = q_BHTK.shape[2], q_BHTK.device
    mask = _block_mask(tokens, tokens if window is None else window, device, kept)
    options = {"score_mod": for_flex(scores, device), "kernel_options": _ONE_KERNEL}
    if scores.sinks_H is None:
        return _run(q_BHTK, k_BGTK, v_BGTV, mask, **options)[0]
    y_BHTV, sums_BHT = _run(q_BHTK, k_BGTK, v_BGTV, mask, with_sums=True, **options)
    share_BHT = (sums_BHT - scores.sinks_H[:, None]).sigmoid()
    return y_BHTV * share_BHT[..., None].to(y_BHTV.dtype)


def selected(
    q_BHTK: Tensor, k_BGTK: Tensor, v_BGTV: Tensor, words_BTW: Tensor
) -> tuple[Tensor, Tensor]:
    """Return `y_BHTV`, attention to selected tokens, and the logarithms of sums of exponentials.

    Bit s % 32 of word s // 32 of a query says whether it attends to key s, at or before it. The
    second result, `sums_BHT`, is in float32 or wider and gets no gradient.
    """

    def is_selected(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        del head
        return ((words_BTW[batch, query, key >> 5] >> (key & 31)) & 1) == 1

    mask = copy(_causal_blocks(q_BHTK.shape[2], q_BHTK.device))
    mask.mask_mod = is_selected
    y_BHTV, sums_BHT = _run(q_BHTK, k_BGTK, v_BGTV, mask, with_sums=True, kernel_options=_WITH_BITS)
    return y_BHTV, sums_BHT.detach()


def _run(
    q_BHTK: Tensor,
    k_BGTK: Tensor,
    v_BGTV: Tensor,
    mask: Any,
    *,
    with_sums: bool = False,
    **options: Any,
) -> tuple[Tensor, Any]:
    """Return `y_BHTV`, and the logarithms of sums of exponentials, `sums_BHT`, or None."""
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    key, value = q_BHTK.shape[-1], v_BGTV.shape[-1]
    key_width, value_width = padded_widths(key, value)
    is_compiling = torch.compiler.is_compiling()  # then it is part of the caller's graph
    run = flex_attention if is_compiling else compile_once(flex_attention, fullgraph=True)
    found: Any = run(
        padded(q_BHTK, key_width),
        padded(k_BGTK, key_width),
        padded(v_BGTV, value_width),
        block_mask=mask,
        scale=key**-0.5,
        enable_gqa=q_BHTK.shape[1] != k_BGTK.shape[1],
        return_aux=AuxRequest(lse=True) if with_sums else None,
        **options,
    )
    y_BHTV, sums_BHT = (found[0], found[1].lse) if with_sums else (found, None)
    return y_BHTV[..., :value], sums_BHT


def padded_widths(key: int, value: int) -> tuple[int, int]:
    """Return the widths of keys and values that it computes with.

    >>> padded_widths(8, 8), padded_widths(64, 192)
    ((16, 16), (192, 192))
    """
    return max(key, _NARROWEST if value <= _WIDE else value), max(value, _NARROWEST)


def pairs(tokens: int, window: int, kept: int = 0) -> int:
    """Return the number of scores in the blocks that are not skipped, masked ones included.

    >>> pairs(100, 100), pairs(256, 256), pairs(512, 1) == 4 * 128**2
    (10000, 49152, True)
    """
    reach = (window + _BLOCK - 2) // _BLOCK  # earlier blocks of keys that a block of queries sees
    first = kept + -kept % _BLOCK  # keys in the blocks with kept ones
    return sum(
        min(_BLOCK, tokens - at) * (min(at + _BLOCK, tokens) - max(0, at - reach * _BLOCK - first))
        for at in range(0, tokens, _BLOCK)
    )


def padded(x_BHTK: Tensor, width: int) -> Tensor:
    """Return heads padded with zeros to `width`. Zeros in queries and keys change no score."""
    missing = width - x_BHTK.shape[-1]
    return pad(x_BHTK, (0, missing)) if missing else x_BHTK


@cache
def _causal_blocks(tokens: int, device: torch.device) -> Any:
    """Return the blocks of keys up to each block of queries, each to be masked."""
    from torch.nn.attention.flex_attention import BlockMask

    row_N = torch.arange(-(-tokens // _BLOCK), device=device)
    blocks = _listed(row_N[:, None] >= row_N)
    return BlockMask.from_kv_blocks(*blocks, BLOCK_SIZE=_BLOCK, seq_lengths=(tokens, tokens))


def _listed(blocks_NN: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of marked blocks of each row, and which, the marked ones first."""
    number_N = blocks_NN.sum(-1, dtype=torch.int32)
    which_NN = blocks_NN.int().argsort(dim=-1, descending=True, stable=True).int()
    return number_N[None, None], which_NN[None, None]


@cache
def _block_mask(tokens: int, window: int, device: torch.device, kept: int = 0) -> Any:
    """Return the blocks of keys that each block of queries attends to, partly or fully."""
    from torch.nn.attention.flex_attention import BlockMask

    row_N = torch.arange(-(-tokens // _BLOCK), device=device)
    age_NN = (row_N[:, None] - row_N) * _BLOCK  # distance of a block's first key and first query
    kept_N = (kept - row_N * _BLOCK).clamp(0, _BLOCK)  # kept keys of a block: its first ones
    visible_NN = (age_NN >= 0) & ((age_NN - _BLOCK + 1 < window) | (kept_N > 0))
    full_NN = (age_NN > 0) & ((age_NN + _BLOCK - 1 - kept_N < window) | (kept_N == _BLOCK))

    # tensors, so that one compilation serves all windows
    width, first = (torch.tensor(number, device=device) for number in (window, kept))

    def inside(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        del batch, head
        return (query >= key) & (query - key < width)

    def inside_or_kept(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return inside(batch, head, query, key) | ((query >= key) & (key < first))

    return BlockMask.from_kv_blocks(
        *_listed(visible_NN & ~full_NN),
        *_listed(full_NN),
        BLOCK_SIZE=_BLOCK,
        mask_mod=inside_or_kept if kept else inside,
        seq_lengths=(tokens, tokens),
    )
