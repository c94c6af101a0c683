"""Several linear layers of one input as one matrix product.

    y_i = W_i x + b_i        [y_1; y_2; ...] = [W_1; W_2; ...] x + [b_1; b_2; ...]

One product over all rows fills a GPU better than one for each, and its gradient by x is one product
in place of several and their sum. The matrices remain parameters of their own, with their names and
initial values; a compiled graph joins them where it rounds them to the precision of autocast.

Shapes: ... any, D width of the input, N_i width of an output.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


def joint_linear(x_D: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
    """Return the output of each layer, `y_N`, in order.

    The product is one where gradients are computed. Decoding reads every matrix once per token, so
    that joining them there would cost more than it saves. Layers that are no `nn.Linear`, or of
    which only some have a bias, are called one by one.
    """
    linears: Any = layers
    alike = {(type(layer), getattr(layer, "bias", None) is None) for layer in layers}
    if not torch.is_grad_enabled() or alike not in ({(nn.Linear, True)}, {(nn.Linear, False)}):
        return tuple(layer(x_D) for layer in layers)
    weight_ND = torch.cat([layer.weight for layer in linears])
    bias_N = None if linears[0].bias is None else torch.cat([layer.bias for layer in linears])
    return linear(x_D, weight_ND, bias_N).split([layer.out_features for layer in linears], -1)
