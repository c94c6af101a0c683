"""Norms of heads around a matrix memory: keys of length 1 before it, outputs of RMS 1 after it.

Qin et al. 2022 (arXiv:2210.10340); Yang et al. 2024 (arXiv:2406.06484).
Shapes: H heads, K key width, V value width, C = H V channels.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu

from attnlab.blocks.widened import widened
from attnlab.kernels.fused import fused


def unit(x_HK: Tensor) -> Tensor:
    """x / sqrt(|x|^2 + 1e-6) over the last dimension, through the RMS norm, which is one kernel."""
    width = x_HK.shape[-1]
    return rms_norm(x_HK, (width,), eps=1e-6 / width) * width**-0.5


@fused
def gated_norm(
    y_HV: Tensor,
    norm: nn.RMSNorm,
    gate_C: Tensor | None,
    activation: Callable[[Tensor], Tensor] = silu,
) -> Tensor:
    """`y_C`: the norm of each head, times the activated gate if any. In float32 or wider."""
    weight_V = widened(norm.weight)
    y_C = rms_norm(widened(y_HV), weight_V.shape, weight_V, norm.eps).flatten(-2)
    return y_C if gate_C is None else y_C * activation(widened(gate_C))
