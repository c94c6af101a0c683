"""A learned decay of a memory: how much it forgets at a token, as a logarithm.

    g_t = -exp(A_log) softplus(a_t + dt_bias)

`a` is projected from the token; A, a rate, and dt, a length of time, begin as in Mamba-2.

Dao and Gu 2024 (arXiv:2405.21060). Shapes: H heads, of which an entry of A_log is one.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from attnlab.modules.widened import widened


def log_decay(a_H: Tensor, A_log_H: Tensor, dt_bias_H: Tensor) -> Tensor:
    """g, of the shape that the three broadcast to. In float32 or wider."""
    return -widened(A_log_H).exp() * softplus(widened(a_H) + widened(dt_bias_H))


def initial_A_log(
    heads: int, generator: torch.Generator | None = None, lowest: float = 0.0
) -> Tensor:
    """log A for A uniform in (lowest, 16)."""
    A_H = torch.rand(heads, generator=generator).clamp_min(1e-4).mul(16 - lowest).add(lowest)
    return A_H.log()


def initial_dt_bias(number: int, generator: torch.Generator | None = None) -> Tensor:
    """softplus^-1(dt) for dt log-uniform in (0.001, 0.1)."""
    spread = torch.rand(number, generator=generator) * math.log(0.1 / 0.001)
    return (0.001 * spread.exp()).expm1().log()
