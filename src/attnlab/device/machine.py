"""This machine: the devices and CPU threads of its workers, and the record of its environment.

A device is named `auto`, `cpu`, `cuda` or `cuda:1`. `auto` is every GPU, or the CPU if there is
none.
"""

import os
import platform
import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

from attnlab.kernels import flash_linear_attention as fla
from attnlab.version import __version__, git_state, package_version

_PACKAGES = (
    *("numpy", "torch", "triton", "tokenizers", "safetensors"),
    *("fla-core", "flash-linear-attention", "tilelang"),
)


@dataclass(frozen=True)
class Slot:
    """The devices of one worker, which train one run at a time, and its number of CPU threads."""

    devices: tuple[str, ...]  # cpu or cuda:INDEX; a run on several has a process per device
    threads: int  # of all its processes together


def worker_slots(
    device: str, runs: int, workers: int | None = None, gpus_per_run: int = 1
) -> list[Slot]:
    """Return one slot per worker: one per GPU (or group of GPUs), or one per CPU core.

    The slots depend on the size of the whole study, not on the runs that remain. A run that is
    resumed with another number of threads uses that of its checkpoint.

    Args:
        device: `auto`, `cpu`, `cuda` (every GPU) or `cuda:1`.
        runs: runs of the whole study; there are no more slots than runs.
        workers: number of slots; by default one per GPU or CPU core.
        gpus_per_run: devices of each slot. On CPUs a run has this number of processes.

    Raises:
        ValueError: the name is not a device, or there are not as many such devices.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ValueError(f"unknown device {device!r}: use auto, cpu, cuda or cuda:1")
    if workers is not None and workers < 1:
        raise ValueError(f"workers: must be at least 1, got {workers}")
    if gpus_per_run < 1:
        raise ValueError(f"gpus_per_run: must be at least 1, got {gpus_per_run}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        gpus = _gpus(device)
        if len(gpus) < gpus_per_run:
            raise ValueError(
                f"gpus_per_run: {gpus_per_run}, but {device!r} is {len(gpus)} here: use less"
            )
        groups = [tuple(gpus[i : i + gpus_per_run]) for i in range(0, len(gpus), gpus_per_run)]
        whole = [group for group in groups if len(group) == gpus_per_run]
        return [Slot(group, gpus_per_run) for group in whole[: max(1, min(runs, workers or runs))]]
    cores = usable_cores()
    count = max(1, min(runs, workers or cores // gpus_per_run))
    return [Slot((device,) * gpus_per_run, max(1, cores // count))] * count


@contextmanager
def one_worker(device: str) -> Generator[torch.device]:
    """Compute in this process as one worker does: on its device, with at most its CPU threads.

    The number of threads is restored afterwards. Raises ValueError as `choose_device` does.
    """
    chosen, before = choose_device(device), torch.get_num_threads()
    torch.set_num_threads(min(before, worker_slots(device, 1)[0].threads))
    try:
        yield chosen
    finally:
        torch.set_num_threads(before)


def choose_device(device: str) -> torch.device:
    """Return the device that one process computes on, and make it torch's current CUDA device.

    Raises:
        ValueError: the name is not a device, or there is no such device.
    """
    chosen = torch.device(worker_slots(device, 1)[0].devices[0])
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    return chosen


def _gpus(device: str) -> list[str]:
    """Return the names of the GPUs that `cuda` or `cuda:1` selects."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = [f"cuda:{index}" for index in range(count)]
    selected = found if device == "cuda" else [gpu for gpu in found if gpu == device]
    if not selected:
        raise ValueError(f"no device {device!r}: torch sees {count} CUDA devices")
    return selected


def cuda_is_broken() -> bool:
    """True if an error of a kernel has ended CUDA in this process, where every later call fails.

    It waits for the device: the error of a kernel shows at a later call.
    """
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def describe(device: torch.device) -> dict[str, Any]:
    """Return the environment as JSON values, with times in UTC."""
    return {
        "attnlab": __version__,
        "git": _git_state(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()} {' '.join(platform.libc_ver())}",
        "packages": {name: found for name in _PACKAGES if (found := package_version(name))},
        **fla.version(),
        "device": _device(device),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@cache
def _git_state() -> dict[str, Any] | None:
    """Return the git state of attnlab's source tree at the first run of this process."""
    return git_state(Path(__file__))


def usable_cores() -> int:
    """Return the number of CPU cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _device(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {
            "type": device.type,
            "name": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        }
    properties = torch.cuda.get_device_properties(device)
    return {
        "type": "cuda",
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
    }
