"""Causal attention over a window, or over everything, through torch's FlexAttention.

It is compiled, looks at blocks of queries and keys, and leaves out those that no query sees. It
needs CUDA and has no dropout on attention weights. Dong et al. 2024 (arXiv:2412.05496).

Shapes: B batch, H query heads, G key-value heads (G divides H), T tokens, K key width,
V value width, N blocks.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from attnlab.config import ConfigError, Problem
from attnlab.kernels.compiled import compile_once

_BLOCK = 128  # queries and keys of one block of the mask
_NARROWEST = 16  # head that it takes
_WIDE = 128  # values up to here fit on chip in blocks that torch picks by the keys' width alone


def require(device: torch.device, dropout: float, instead: str) -> None:
    """Raises ValueError, saying why, where it cannot run. `instead` is a kernel that can."""
    require_no_dropout(dropout, instead)
    if device.type != "cuda":
        raise ValueError(
            f"kernel 'flex' needs CUDA, and this is {device.type}: name {instead!r} or 'auto'"
        )


def require_no_dropout(dropout: float, instead: str) -> None:
    """Raises ConfigError, which is a ValueError, where weights are to be dropped."""
    if dropout:
        message = (
            f"kernel 'flex' has no dropout on attention weights, and {dropout} is asked for: "
            f"name {instead!r} or 'auto', or set the dropout to 0"
        )
        raise ConfigError([Problem("kernel", message)])


def attention(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTV: Tensor, window: int | None = None) -> Tensor:
    """`y_BHTV`: a token sees itself and the `window - 1` tokens before it; None: all of them."""
    from torch.nn.attention.flex_attention import flex_attention

    tokens, device = q_BHTK.shape[2], q_BHTK.device
    key, value = q_BHTK.shape[-1], v_BGTV.shape[-1]
    key_width = max(key, _NARROWEST if value <= _WIDE else value)
    inside = torch.compiler.is_compiling()  # then it is part of what is compiled around it
    run = flex_attention if inside else compile_once(flex_attention, fullgraph=True)
    y_BHTV = run(
        widened(q_BHTK, key_width),
        widened(k_BGTK, key_width),
        widened(v_BGTV, max(value, _NARROWEST)),
        block_mask=_block_mask(tokens, tokens if window is None else window, device),
        scale=key**-0.5,
        enable_gqa=q_BHTK.shape[1] != k_BGTK.shape[1],
    )
    return y_BHTV[..., :value]


def widened(x_BHTK: Tensor, width: int) -> Tensor:
    """Zeros after each head: of queries and keys they change no score, of values they stay."""
    missing = width - x_BHTK.shape[-1]
    return pad(x_BHTK, (0, missing)) if missing else x_BHTK


@cache
def _block_mask(tokens: int, window: int, device: torch.device) -> Any:
    """Which blocks of keys a block of queries sees: in part, or whole. Never of T x T."""
    from torch.nn.attention.flex_attention import BlockMask

    row_N = torch.arange(-(-tokens // _BLOCK), device=device)
    age_NN = (row_N[:, None] - row_N) * _BLOCK  # of a block's first key to the first query
    touched_NN = (age_NN >= 0) & (age_NN - _BLOCK + 1 < window)
    whole_NN = (age_NN > 0) & (age_NN + _BLOCK - 1 < window)

    width = torch.tensor(window, device=device)  # as a tensor: one compilation for all windows

    def inside(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        del batch, head
        return (query >= key) & (query - key < width)

    def listed(blocks_NN: Tensor) -> tuple[Tensor, Tensor]:
        number_N = blocks_NN.sum(-1, dtype=torch.int32)
        which_NN = blocks_NN.int().argsort(dim=-1, descending=True, stable=True).int()
        return number_N[None, None], which_NN[None, None]

    return BlockMask.from_kv_blocks(
        *listed(touched_NN & ~whole_NN),
        *listed(whole_NN),
        BLOCK_SIZE=_BLOCK,
        mask_mod=inside,
        seq_lengths=(tokens, tokens),
    )
