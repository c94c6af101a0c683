"""A count of the FLOPs of matrix products that run, by torch's counter and what it does not know.

2 per multiply-add; pairs that a fused kernel of attention masks are included.
"""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def flop_counter() -> FlopCounterMode:
    """Return a context that counts; `get_total_flops()` of it returns the sum."""
    return FlopCounterMode(display=False, custom_mapping=_UNKNOWN_TO_TORCH)


def _forward(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _backward(grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, q, k, v)


def _grouped(a: Any, b: Any, *_: Any, **__: Any) -> int:
    """Count a grouped product: each row meets one matrix, whichever side has the groups."""
    batch = a[0] if len(a) == len(b) == 3 else 1
    return 2 * batch * a[-2] * a[-1] * b[-1]


# torch's counter knows fused attention only on CUDA, and no grouped product
_UNKNOWN_TO_TORCH: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
    torch.ops.aten._grouped_mm: _grouped,
}
