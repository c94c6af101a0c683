"""Measured peak rates of a device: of matrix products (FLOP/s) and of memory copies (byte/s).

No program reaches the rates of a datasheet, so fractions are given of these.
"""

from functools import cache
from typing import NamedTuple

import torch

from attnlab.device.timer import time_calls


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
