"""FLOPs that run, counted; and the measured peak rates of a device, in FLOP/s and byte/s.

FLOPs are those of matrix products, 2 per multiply-add; pairs that a fused kernel of attention masks
are included, except in blocks that it skips. No program reaches the rates of a datasheet, so
fractions are given of measured ones.
"""

from collections.abc import Generator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import (
    FlopCounterMode,
    _FlopCounterMode,  # pyright: ignore  the dispatch mode, for which operators register handlers
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from attnlab.device.measuring import time_calls
from attnlab.kernels.compiled import as_written, without_compiler

without_compiler(_FlopCounterMode)


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


@contextmanager
def flop_counter() -> Generator[FlopCounterMode]:
    """Yield a counter of the FLOPs inside; its `get_total_flops()` returns the sum.

    Compiled functions run as written, so that their operations are seen.
    """
    _handle_flex_attention()
    with (
        as_written(),
        FlopCounterMode(display=False, custom_mapping=_UNKNOWN_TO_TORCH) as counter,
    ):
        yield counter


def counts_flex_attention(counter: FlopCounterMode) -> bool:
    """Return whether torch's FlexAttention was among what was counted."""
    return _FLEX in counter.get_flop_counts().get("Global", {})


@cache
def _handle_flex_attention() -> None:
    """Register how the counter treats torch's FlexAttention: as one operator, as other kernels.

    It is an operator on functions, and torch's counter refuses those that it does not know.
    """

    def run(operator: Any, mode: Any, *args: Any, **kwargs: Any) -> Any:
        result = operator(*args, **kwargs)  # the mode is off in here
        return mode.counter._count_flops(operator, result, args, kwargs)

    for operator in (_FLEX, _FLEX_BACKWARD):
        if _FlopCounterMode not in operator.python_key_table:
            operator.py_impl(_FlopCounterMode)(partial(run, operator))


def _forward(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _backward(grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, q, k, v)


def _grouped(a: Any, b: Any, *_: Any, **__: Any) -> int:
    """Count a grouped product: each row meets one matrix, whichever side has the groups."""
    batch = a[0] if len(a) == len(b) == 3 else 1
    return 2 * batch * a[-2] * a[-1] * b[-1]


def _flex_forward(query: Tensor, key: Tensor, value: Tensor, *args: Any, **_: Any) -> int:
    return 2 * (query.shape[-1] + value.shape[-1]) * _flex_pairs(query, key, args)


def _flex_backward(query: Tensor, key: Tensor, value: Tensor, *args: Any, **_: Any) -> int:
    # the scores again, and the gradients of queries and keys; those of weights and values
    return 2 * (3 * query.shape[-1] + 2 * value.shape[-1]) * _flex_pairs(query, key, args)


def _flex_pairs(query_BHTK: Tensor, key_BGSK: Tensor, args: tuple[Any, ...]) -> int:
    """Return the pairs of queries and keys in the blocks that the mask lists, over all heads."""
    mask = next(arg for arg in args if isinstance(arg, tuple) and len(arg) > 8)
    rows, columns = mask[-3:-1]  # of a block
    batch, heads, queries = query_BHTK.shape[:3]
    pairs = 0
    for number_BHN, which_BHNM in (mask[2:4], mask[4:6]):  # partly and fully visible blocks
        if number_BHN is None:
            continue
        start_N = torch.arange(number_BHN.shape[-1], device=number_BHN.device) * rows
        rows_N1 = (queries - start_N).clamp(0, rows)[:, None]
        columns_BHNM = (key_BGSK.shape[2] - which_BHNM.long() * columns).clamp(0, columns)
        rank_M = torch.arange(which_BHNM.shape[-1], device=which_BHNM.device)
        listed_BHNM = rank_M < number_BHN[..., None]
        copies = batch * heads // number_BHN[..., 0].numel()  # a mask may serve all heads
        pairs += copies * int((rows_N1 * columns_BHNM * listed_BHNM).sum())
    return pairs


_flex_forward._get_raw = _flex_backward._get_raw = True  # pyright: ignore  tensors, not shapes
_FLEX, _FLEX_BACKWARD = (
    torch.ops.higher_order.flex_attention,
    torch.ops.higher_order.flex_attention_backward,
)

# torch's counter knows fused attention only on CUDA, no grouped product and no FlexAttention
_UNKNOWN_TO_TORCH: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
    torch.ops.aten._grouped_mm: _grouped,
    _FLEX: _flex_forward,
    _FLEX_BACKWARD: _flex_backward,
}
