"""Time and peak memory of work on a device.

The time of a call is the median of many calls after a warm-up, with their interquartile range. On
CUDA an event is recorded between calls, and the host waits only after the last one. On other
devices the clock is read between calls.

Peak memory is that of a section of work, in bytes above the memory in use before it. The baseline
is taken when a `PeakMemory` is made, after memory of earlier work is released. On CUDA it counts
the bytes allocated by torch's allocator, including recorded graphs, excluding the workspaces that
matrix products keep for each stream. On Linux without CUDA it counts the resident set. On other
systems it is unknown.
"""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch

LEAST, MOST = 5, 200  # number of calls that are timed
WARM_UP = 3  # calls before those that are timed
PATIENCE = 10  # a call that takes longer than this many budgets is not repeated

MOST_CALLS = WARM_UP + 1 + MOST  # of one `time_calls`

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")  # writing 5 resets the peak of the resident set: proc(5)


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


class PeakMemory:
    """The highest peak of all sections of work under `measuring`; None if it is unknown."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak_bytes: int | None = None
        gc.collect()  # a model and its optimizer reference each other
        self.baseline = 0
        if device.type == "cuda":
            _make_workspaces(device)
            torch.cuda.empty_cache()
            self.baseline = torch.cuda.memory_allocated(device)
        elif device.type == "cpu" and _STATUS.exists():
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
            if trim is not None:
                trim(0)
            self.baseline = _resident("VmRSS") or 0

    @contextmanager
    def measuring(self) -> Generator[None, None, None]:
        """Measure the work in this context."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self.device.type == "cpu":
            _reset_resident_peak()
        yield
        if self.device.type == "cuda":
            self._note(torch.cuda.max_memory_allocated(self.device))
        elif self.device.type == "cpu" and (resident := _resident("VmHWM")):
            self._note(resident)

    def _note(self, peak: int) -> None:
        self.peak_bytes = max(0, peak - self.baseline, self.peak_bytes or 0)


def gpu_bytes(devices: Sequence[str]) -> int | None:
    """Return the memory of the smallest of some GPUs of this machine; None without one."""
    here = [name for name in devices if name.startswith("cuda") and torch.cuda.is_available()]
    return min((torch.cuda.get_device_properties(n).total_memory for n in here), default=None)


@cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """Return a second stream, always the same: each stream costs a workspace of matrix products."""
    return torch.cuda.Stream(device)


@contextmanager
def beside(device: torch.device) -> Generator[None, None, None]:
    """Run the work in this context on the side stream, ordered with the current stream.

    The steps before the recording of a CUDA graph run here, so that nothing they allocate belongs
    to the stream that is recorded later.
    """
    side, current = side_stream(device), torch.cuda.current_stream(device)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        yield
    current.wait_stream(side)


def _make_workspaces(device: torch.device) -> None:
    """Allocate the workspaces of both streams of a run, so that they are in every baseline."""
    for stream in (torch.cuda.current_stream(device), side_stream(device)):
        with torch.cuda.stream(stream):
            for dtype in (torch.float32, torch.bfloat16):
                square = torch.ones(16, 16, device=device, dtype=dtype)
                _ = square @ square
    wait_for_device(device)


def _resident(field: str) -> int | None:
    if not _STATUS.exists():
        return None
    lines = (line.split() for line in _STATUS.read_text().splitlines())
    return next((int(words[1]) * 1024 for words in lines if words[0] == f"{field}:"), None)


def _reset_resident_peak() -> None:
    try:
        _CLEAR.write_text("5")
    except OSError:  # not Linux, or not permitted: the peak is then that of the whole process
        return
