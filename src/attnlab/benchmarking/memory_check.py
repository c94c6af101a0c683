"""A check, before a point is measured, that it can fit into memory.

On a CPU the operating system may kill a process that asks for too much memory, and nothing would be
recorded. The check compares with the least that any implementation needs: a point that may fit is
measured.
"""

from pathlib import Path

import torch

from attnlab.analysis import numbers
from attnlab.benchmarking.conditions import Conditions
from attnlab.benchmarking.point import Point
from attnlab.benchmarking.targets import Setup

_MEMORY = Path("/proc/meminfo")


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
