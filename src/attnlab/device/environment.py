"""Record of a run's environment: code, packages, device, time."""

import os
import platform
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
