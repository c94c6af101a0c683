"""Peak memory of a section of work, in bytes above the memory in use before it.

The baseline is taken when a `PeakMemory` is made, after memory of earlier work is released. On CUDA
it counts the bytes allocated by torch's allocator, including recorded graphs, excluding the
workspaces that matrix products keep for each stream. On Linux without CUDA it counts the resident
set. On other systems it is unknown.
"""

import ctypes
import gc
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from attnlab.device.timer import wait_for_device

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")  # writing 5 resets the peak of the resident set: proc(5)


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
