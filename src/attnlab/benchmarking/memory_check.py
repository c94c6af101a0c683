"""Whether a point has a chance to fit into memory, before it is started.

On a CPU the system may end a process that asks for too much, so that there is nobody left to record
it. What is reckoned is the least that any implementation needs, so that what may fit is tried.
"""

from pathlib import Path

import torch

from attnlab.analysis.numbers import size
from attnlab.benchmarking.conditions import Conditions
from attnlab.benchmarking.point import Point
from attnlab.benchmarking.targets import Setup

_MEMORY = Path("/proc/meminfo")


def require_room(setup: Setup, point: Point, under: Conditions) -> None:
    """Raises MemoryError where the point cannot fit."""
    least, there = least_bytes(setup, point, under), available_bytes(under.device)
    if there is not None and least > there:
        words = f"{size(least)} at least, of {size(there)}"
        raise MemoryError(f"not tried: it needs {words}")


def least_bytes(setup: Setup, point: Point, under: Conditions) -> int:
    """Weights and states; in training gradients, moments, and one activation a layer."""
    model, itemsize = setup.model, under.serving_dtype.itemsize
    cost = model.cost(setup.vocab_size, point.context, itemsize)
    if point.what != "train":
        return itemsize * cost.params + point.batch * cost.state_bytes
    activation = point.batch * point.context * model.d_model * itemsize
    return 4 * 4 * cost.params + model.n_layers * activation


def available_bytes(device: torch.device) -> int | None:
    """Memory that could be had; None where that is not known."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != "cpu" or not _MEMORY.exists():
        return None
    lines = (line.split() for line in _MEMORY.read_text().splitlines())
    return next((int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:"), None)
