"""RMS norms, which keep their precision under autocast, and the gated norm of memories' outputs.

    rms(x) w = x / sqrt(mean(x^2) + eps) * w          y = rms(y) w * activation(g)

On a CPU, torch differentiates its RMS norm operation by operation, eleven of which pass over all of
x. The backward pass of `rms_norm` has seven there. On CUDA the gated norm is one kernel:
flash-linear-attention's, or what torch compiles from the definition.

Zhang and Sennrich 2019 (arXiv:1910.07467); Qin et al. 2022 (arXiv:2210.10340).
Shapes: N rows, D width of the norm; H heads, V value width, C = H V channels.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import rms_norm as torch_rms_norm
from torch.nn.functional import silu

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
        return rms_norm(x.to(self.weight.dtype), self.weight, self.eps).to(x.dtype)


def rms_norm(x_D: Tensor, weight_D: Tensor | None, eps: float | None) -> Tensor:
    """Return `rms(x) w` over the last dimension, for a weight in the dtype of x, or None for w = 1.

    As written on a CPU, it is differentiable once.
    """
    if x_D.device.type == "cpu" and not torch.compiler.is_compiling():
        if not torch.is_grad_enabled():  # a third of a small one
            return torch.ops.aten._fused_rms_norm(x_D, x_D.shape[-1:], weight_D, eps)[0]
        return _RMSNorm.apply(x_D, weight_D, eps)  # pyright: ignore[reportReturnType]
    return torch_rms_norm(x_D, x_D.shape[-1:], weight_D, eps)


class _RMSNorm(torch.autograd.Function):
    """With n = rms(x) and r = n / x:  dx = r (w dy - n mean(w dy n))  and  dw = sum_N dy n."""

    @staticmethod
    def forward(ctx: Any, x_D: Tensor, weight_D: Tensor | None, eps: float | None) -> Tensor:
        y_D, r_1 = torch.ops.aten._fused_rms_norm(x_D, x_D.shape[-1:], weight_D, eps)
        ctx.save_for_backward(x_D, r_1, weight_D)
        return y_D

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  the decorator is untyped
        ctx: Any, grad_D: Tensor
    ) -> tuple[Tensor, Tensor | None, None]:
        x_D, r_1, weight_D = ctx.saved_tensors
        normed_D = x_D * r_1
        product_ND = (grad_D * normed_D).flatten(0, -2)
        if weight_D is None:
            dweight_D, sums_N = None, product_ND.sum(-1)
        else:
            dweight_D, sums_N = product_ND.sum(0), product_ND @ weight_D
            grad_D = grad_D * weight_D
        dx_D = torch.addcmul(grad_D, normed_D, sums_N.view_as(r_1), value=-1 / x_D.shape[-1])
        return dx_D.mul_(r_1), dweight_D, None


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
    y_C = rms_norm(widened(y_HV), widened(weight_V), eps).flatten(-2)
    return y_C if gate_C is None else y_C * _ACTIVATIONS[activation](widened(gate_C))


@opaque
def _through_fla(y_HV: Tensor, norm: nn.RMSNorm, gate_HV: Tensor, activation: str) -> Tensor:
    run = fla.function("rms_norm_gated")
    return run(y_HV, gate_HV, norm.weight, None, activation=activation, eps=norm.eps)
