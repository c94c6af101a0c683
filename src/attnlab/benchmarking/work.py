"""The work of a point in FLOPs, as stated and as counted, and the memory that it needs.

Stated FLOPs are those of the mechanisms per token, independent of the kernel: a token attends to
itself and to those before it; `Cost` gives them in decoding, `forward_flops` for tokens that are
read at once. Counted FLOPs are those that torch's counter sees: it counts the whole square of
causal attention, or the blocks that FlexAttention does not skip, counts recomputation, and does not
see inside other libraries' kernels. A backward pass is stated as twice its forward pass.

Before a point is measured, a check finds out whether it can fit into memory. On a CPU the operating
system may kill a process that asks for too much, and nothing would be recorded. The check compares
with the least that any implementation needs: a point that may fit is measured.
"""

from collections.abc import Callable
from pathlib import Path

import torch

from attnlab.analysis import numbers
from attnlab.benchmarking.point import Conditions, Point
from attnlab.benchmarking.targets import Setup
from attnlab.device.flops import flop_counter

_MEMORY = Path("/proc/meminfo")


def stated_flops(setup: Setup, point: Point) -> int | None:
    """Return the FLOPs of one training step, one prefill, or one decoded token per sequence.

    None if those of a mechanism are not known.
    """
    model, vocab_size = setup.model, setup.vocab_size
    if not model.states_flops:
        return None
    if point.what == "decode":
        return point.batch * model.cost(vocab_size, point.context).flops
    projection = 2 * vocab_size * model.d_model
    tokens = summed(lambda context: model.forward_flops(vocab_size, context), 1, point.context)
    if point.what == "prefill":
        return point.batch * (tokens - (point.context - 1) * projection)  # of the last token alone
    return 3 * point.batch * tokens


def summed(flops: Callable[[int], int], first: int, last: int) -> int:
    """Return the sum of `flops` over all contexts from `first` to `last`, from few evaluations.

    An interval of more than 64 contexts is not divided further if the function meets its chord in
    the middle, up to a thousandth. Costs are nearly linear in between: they bend where a window or
    top-k is full, and forms that read by chunks cost a little more where the last is incomplete.

    >>> exact = sum(range(700)) + 301 * 700
    >>> round(summed(lambda context: min(context, 700), 1, 1000) / exact, 3)
    1.0
    """
    middle, tokens = (first + last) // 2, last - first + 1
    if tokens <= 64:
        return sum(map(flops, range(first, last + 1)))
    at_first, at_last = flops(first), flops(last)
    climbed, climb = flops(middle) - at_first, at_last - at_first
    off_chord = abs(climbed * (last - first) - climb * (middle - first))
    if 1000 * off_chord <= at_first * (last - first):
        return (at_first + at_last) * tokens // 2
    return summed(flops, first, middle) + summed(flops, middle + 1, last)


def counted_flops(work: Callable[[], object]) -> int | None:
    """Return the FLOPs of the matrix products of `work`, which is called once, uncompiled.

    None if it cannot run under torch's counter, or uncompiled in the memory that there is.
    """
    try:
        with flop_counter() as counter:
            work()
    except Exception:  # an error in the work itself will be raised again when it is timed
        return None
    return counter.get_total_flops()


def check_memory(setup: Setup, point: Point, under: Conditions) -> None:
    """Raise MemoryError if the point cannot fit."""
    least, available = least_bytes(setup, point, under), available_bytes(under.device)
    if available is not None and least > available:
        there = f"{numbers.size(available)} available"
        raise MemoryError(f"not measured: needs at least {numbers.size(least)}, {there}")


def least_bytes(setup: Setup, point: Point, under: Conditions) -> int:
    """Return the bytes of weights and states; in training also of gradients, moments and one
    activation per layer.
    """
    model, itemsize = setup.model, under.serving_dtype.itemsize
    cost = model.cost(setup.vocab_size, point.context, itemsize)
    if point.what != "train":
        return itemsize * cost.params + point.batch * cost.state_bytes
    activation = point.batch * point.context * model.d_model * itemsize
    return 4 * 4 * cost.params + model.n_layers * activation


def available_bytes(device: torch.device) -> int | None:
    """Return the free memory of the device in bytes; None if it is unknown."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != "cpu" or not _MEMORY.exists():
        return None
    lines = (line.split() for line in _MEMORY.read_text().splitlines())
    return next((int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:"), None)
