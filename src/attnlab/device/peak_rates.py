"""Measured peak rates of a device: FLOPs/second of matrix products and bytes/second of copies.

Unlike the numbers of a datasheet, programs can reach them.
"""

from functools import cache
from typing import NamedTuple

import torch

from attnlab.device.timer import time_calls


class Ceilings(NamedTuple):
    matrix_flops_per_second: float  # of one large product, 2 per multiply-add
    matrix_dtype: str
    matrix_size: int  # rows and columns
    copy_bytes_per_second: float  # of one large copy, bytes read and bytes written together
    copy_bytes: int  # read


def measure_ceilings(device: torch.device, budget: float) -> Ceilings:
    """Measure a device for `budget` seconds per rate, in bfloat16 on CUDA, else in float32."""
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
    """Return the FLOPs/second of a product of two `size` x `size` matrices, measured once."""
    a, b, product = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(3))
    timed = time_calls(lambda: torch.mm(a, b, out=product), device, budget)
    return 2 * size**3 / timed.seconds
