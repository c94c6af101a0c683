"""Which form of a recurrence runs: its definition, its chunks, or flash-linear-attention's kernel.

| form        | what it is                                                         | where    |
|-------------|--------------------------------------------------------------------|----------|
| `recurrent` | the definition, token by token                                     | anywhere |
| `chunked`   | matrix products within chunks of tokens, one step between them     | anywhere |
| `fla`       | flash-linear-attention's function, in the dtype of the values      | CUDA     |

`auto` is `fla` where it can run (CUDA, and what kernels/fla.py asks of that function) on bfloat16
or float16 with keys of at most 256, and `chunked` everywhere else. The first two compute in
float32, or float64 if that is given, also under autocast.
"""

from typing import Literal

import torch
from torch import Tensor

from attnlab.kernels import flash_linear_attention as fla

Kernel = Literal["auto", "recurrent", "chunked", "fla"]
Form = Literal["recurrent", "chunked", "fla"]
Gate = Literal["none", "head", "channel"]  # one decay for each; a channel is one of a key


def form_that_runs(
    kernel: Kernel, device: torch.device, dtype: torch.dtype, key_width: int, function: str
) -> Form:
    """`auto` by the rule above, any other as named; `function` is what flash-linear-attention has.

    Raises:
        ValueError: `fla` was named and cannot run on this device; says why.
    """
    if kernel == "auto":
        fits = dtype in (torch.bfloat16, torch.float16) and key_width <= 256
        return "fla" if fits and fla.unusable_because(device.type, function) is None else "chunked"
    if kernel == "fla" and (reason := fla.unusable_because(device.type, function)):
        raise ValueError(f"kernel 'fla' cannot run here: {reason}. 'chunked' runs anywhere")
    return kernel


def through_fla(kernel: Kernel, x: Tensor, function: str) -> bool:
    """Whether what stands beside a recurrence runs through flash-linear-attention too: a function
    of `x` whose definition is no other form, where it can and no other form was named.
    """
    fits = kernel in ("auto", "fla") and x.dtype in (torch.bfloat16, torch.float16)
    return fits and fla.unusable_because(x.device.type, function) is None


def gate_of(g_BTH: Tensor | None, k_BTHK: Tensor) -> Gate:
    """The gate by the shape of its log decays, beside keys."""
    if g_BTH is None:
        return "none"
    return "channel" if g_BTH.ndim == k_BTHK.ndim else "head"
