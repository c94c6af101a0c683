"""In single precision or wider: gates, norms and long sums lose too much in bfloat16."""

import torch
from torch import Tensor


def widened(x: Tensor) -> Tensor:
    """x in float32, or as it is where it is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
