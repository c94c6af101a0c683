"""The work of a point in FLOPs, as stated and as counted.

Stated FLOPs are those of the mechanisms per token, independent of the kernel: a token attends to
itself and to those before it; `Cost` gives them in decoding, `forward_flops` for tokens that are
read at once. Counted FLOPs are those that torch's counter sees: it counts the whole square of
causal attention, or the blocks that FlexAttention does not skip, counts recomputation, and does not
see inside other libraries' kernels. A backward pass is stated as twice its forward pass.
"""

from collections.abc import Callable

from attnlab.benchmarking.point import Point
from attnlab.benchmarking.targets import Setup
from attnlab.device.flops import flop_counter


def stated_flops(setup: Setup, point: Point) -> int | None:
    """Return the FLOPs of one training step, one prefill, or one decoded token per sequence.

    None if a mechanism states no cost.
    """
    model, vocab_size = setup.model, setup.vocab_size
    if not model.states_cost:
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
