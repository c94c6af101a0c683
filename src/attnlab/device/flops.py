"""FLOPs that run, counted; and the measured peak rates of a device, in FLOP/s and byte/s.

FLOPs are those of matrix products, 2 per multiply-add; pairs that a fused kernel of attention masks
are included. No program reaches the rates of a datasheet, so fractions are given of measured ones.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch.utils import flop_counter as of_torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from attnlab.device.timer import time_calls
from attnlab.kernels.compiled import without_compiler

if (_mode := getattr(of_torch, "_FlopCounterMode", None)) is not None:
    without_compiler(_mode)


class Ceilings(NamedTuple):
    """The highest measured rates of a device."""

    matrix_flops_per_second: float  # of one large product, 2 per multiply-add
    matrix_dtype: str
    matrix_size: int  # rows and columns
    copy_bytes_per_second: float  # of one large copy, bytes read and bytes written together
    copy_bytes: int  # read


def measure_ceilings(device: torch.device, budget: float) -> Ceilings:
    """Measure in bfloat16 on CUDA and in float32 elsewhere, for `budget` seconds each."""
    cuda = device.type == "cuda"
    dtype, size, copied = (
        (torch.bfloat16, 8192, 1 << 30) if cuda else (torch.float32, 512, 32 << 20)
    )
    source = torch.ones(copied, device=device, dtype=torch.int8)
    sink = torch.empty_like(source)
    by_copies = time_calls(lambda: sink.copy_(source), device, budget)
    return Ceilings(
        matrix_flops_per_second=matrix_rate(size, dtype, device, budget),
        matrix_dtype=str(dtype).removeprefix("torch."),
        matrix_size=size,
        copy_bytes_per_second=2 * copied / by_copies.seconds,
        copy_bytes=copied,
    )


@cache
def matrix_rate(size: int, dtype: torch.dtype, device: torch.device, budget: float) -> float:
    """Return FLOP/s of a product of two `size` x `size` matrices, measured once per process."""
    a, b, product = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(3))
    timed = time_calls(lambda: torch.mm(a, b, out=product), device, budget)
    return 2 * size**3 / timed.seconds


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
