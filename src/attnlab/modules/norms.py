"""Norms that keep their precision under autocast, and the gated norm of memories' outputs.

    y = rms(y) w * activation(g)

On CUDA the gated norm is one kernel: flash-linear-attention's, or what torch compiles from the
definition.

Qin et al. 2022 (arXiv:2210.10340).
Shapes: H heads, V value width, C = H V channels.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu

from attnlab.kernels import flash_linear_attention as fla
from attnlab.kernels.compiled import fused, opaque
from attnlab.kernels.flash_linear_attention import Kernel, through_fla

Activation = Literal["silu", "sigmoid"]
_ACTIVATIONS = {"silu": silu, "sigmoid": torch.sigmoid}


def widened(x: Tensor) -> Tensor:
    """Return `x` in float32, or unchanged if its dtype is wider.

    Gates, norms and long sums lose too much precision in bfloat16.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


class RMSNorm(nn.RMSNorm):
    """RMS norm that computes in the dtype of its weight and returns the dtype of its input."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


def gated_norm(
    y_HV: Tensor,
    norm: nn.RMSNorm,
    gate_C: Tensor | None,
    kernel: Kernel,
    activation: Activation = "silu",
) -> Tensor:
    """Return `y_C`: each head normalised, then multiplied by the activated gate unless it is None.

    The result is in float32 or wider, or in the dtype of `y` where flash-linear-attention runs.
    """
    if gate_C is None or not through_fla(kernel, y_HV, "rms_norm_gated"):
        return _definition(y_HV, norm.weight, norm.eps, gate_C, activation)
    return _through_fla(y_HV, norm, gate_C.view_as(y_HV), activation).flatten(-2)


@fused
def _definition(
    y_HV: Tensor, weight_V: Tensor, eps: float | None, gate_C: Tensor | None, activation: Activation
) -> Tensor:
    weight_V = widened(weight_V)
    y_C = rms_norm(widened(y_HV), weight_V.shape, weight_V, eps).flatten(-2)
    return y_C if gate_C is None else y_C * _ACTIVATIONS[activation](widened(gate_C))


@opaque
def _through_fla(y_HV: Tensor, norm: nn.RMSNorm, gate_HV: Tensor, activation: str) -> Tensor:
    run = fla.function("rms_norm_gated")
    return run(y_HV, gate_HV, norm.weight, None, activation=activation, eps=norm.eps)
