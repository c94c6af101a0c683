"""How much work a point is: FLOPs as stated and as counted.

Stated is what the mechanisms say of each token, whatever the kernel does: a token attends to itself
and those before it; `Cost` in decoding, `forward_flops` where all tokens are read at once. Counted
is what torch's counter sees on the way: it takes causal attention for the whole square, sees what
is computed twice twice, and does not see into the kernels of others. A backward pass is stated as
twice its forward.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from attnlab.benchmarking.point import Point
from attnlab.benchmarking.targets import Setup


def stated_flops(setup: Setup, point: Point) -> int:
    """Of one training step, one prefill, or one decoded token of every sequence."""
    model, vocab_size = setup.model, setup.vocab_size
    if point.what == "decode":
        return point.batch * model.cost(vocab_size, point.context).flops
    projection = 2 * vocab_size * model.d_model
    tokens = summed(lambda context: model.forward_flops(vocab_size, context), 1, point.context)
    if point.what == "prefill":
        return point.batch * (tokens - (point.context - 1) * projection)  # of the last token alone
    return 3 * point.batch * tokens


def summed(flops: Callable[[int], int], first: int, last: int) -> int:
    """The sum over all contexts from `first` to `last`, of few of them.

    What bends one way alone, and meets its chord in the middle, is a straight line; a cost bends
    where a window or top-k is full, and always the same way.

    >>> summed(lambda context: min(context, 700), 1, 1000) == sum(range(700)) + 301 * 700
    True
    """
    middle, tokens = (first + last) // 2, last - first + 1
    at_first, at_last = flops(first), flops(last)
    climbed, climb = flops(middle) - at_first, at_last - at_first
    if climbed * (last - first) == climb * (middle - first):
        return (at_first + at_last) * tokens // 2
    return summed(flops, first, middle) + summed(flops, middle + 1, last)


def counted_flops(work: Callable[[], object], device: torch.device) -> int | None:
    """FLOPs of the matrix products of `work`, which is done once, nothing in it compiled.

    None where that cannot be done under torch's counter, as with FlexAttention.
    """
    # where nothing is compiled, the compiler need not be loaded
    eager = torch.compiler.set_stance("force_eager") if device.type == "cuda" else nullcontext()
    try:
        with eager, FlopCounterMode(display=False, custom_mapping=_UNKNOWN_TO_TORCH) as counter:
            work()
    except Exception:  # of all kinds; what is wrong with the work itself will show when it is timed
        return None
    return counter.get_total_flops()


def _forward(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _backward(grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, q, k, v)


def _grouped(a: Any, b: Any, *_: Any, **__: Any) -> int:
    """Rows by group: each row meets one matrix, whichever side the groups are of."""
    batch = a[0] if len(a) == len(b) == 3 else 1
    return 2 * batch * a[-2] * a[-1] * b[-1]


# torch's counter knows its fused attention on CUDA alone, and no product of groups
_UNKNOWN_TO_TORCH: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
    torch.ops.aten._grouped_mm: _grouped,
}
