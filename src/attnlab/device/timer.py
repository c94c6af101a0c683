"""Time of a call: the median of many calls after a warm-up, and their interquartile range.

On CUDA an event is recorded between calls, and the host waits only after the last one. On other
devices the clock is read between calls.
"""

import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch

LEAST, MOST = 5, 200  # number of calls that are timed
WARM_UP = 3  # calls before those that are timed
PATIENCE = 10  # a call that takes longer than this many budgets is not repeated

MOST_CALLS = WARM_UP + 1 + MOST  # of one `time_calls`


class Times(NamedTuple):
    """The time of a call."""

    seconds: float  # the median
    spread_seconds: float | None  # interquartile range; None for a single call
    repeats: int


def time_calls(call: Callable[[], object], device: torch.device, budget: float) -> Times:
    """Time repeated calls for about `budget` seconds, at least 5 and at most 200 times.

    A call that takes over ten times the budget is made twice, and the second one is timed.
    """
    for warm_up in range(WARM_UP):
        seconds = _one(call, device)
        if warm_up and seconds > PATIENCE * budget:  # the first may have compiled something
            return Times(seconds, None, 1)
    repeats = min(MOST, max(LEAST, round(budget / max(_one(call, device), 1e-9))))
    lower, median, upper = statistics.quantiles(time_each(call, device, repeats), n=4)
    return Times(median, upper - lower, repeats)


def _one(call: Callable[[], object], device: torch.device) -> float:
    wait_for_device(device)
    started = time.perf_counter()
    call()
    wait_for_device(device)
    return time.perf_counter() - started


def time_each(call: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    """Return the seconds of each of some calls, after all of them are done."""
    if device.type != "cuda":
        clock = [time.perf_counter()]
        for _ in range(repeats):
            call()
            clock.append(time.perf_counter())
        return [after - before for before, after in pairwise(clock)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    wait_for_device(device)
    return [before.elapsed_time(after) / 1000 for before, after in pairwise(events)]


def wait_for_device(device: torch.device) -> None:
    """Return when the device has done all work that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
