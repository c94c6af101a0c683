"""Common random numbers: the initial values of a model's parameters.

The initial value of a parameter is a function of the seed, its qualified name and its shape alone.
Two variants that share a parameter initialise it with the same bits.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from attnlab.mechanism import Mechanism

INITIAL_STD = 0.02


def initialise(model: nn.Module, owners: Mapping[str, Mechanism[Any]], seed: int) -> None:
    """Set all parameters: N(0, 0.02) for matrices, ones for norms, zeros for biases.

    A mechanism may set others through `Mechanism.initial_value`; `owners` are the mechanisms by the
    prefix of the names of their parameters.
    """
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(stream(seed, name))
        value = None
        for prefix, mechanism in owners.items():
            if name.startswith(prefix):
                value = mechanism.initial_value(name.removeprefix(prefix), generator)
        with torch.no_grad():
            if value is not None:
                parameter.copy_(value)
            elif parameter.ndim >= 2:
                parameter.normal_(0, INITIAL_STD, generator=generator)
            else:
                parameter.fill_(0 if name.endswith("bias") else 1)


def stream(seed: int, name: str) -> int:
    """Return the seed of a random stream for this name.

    >>> stream(0, "embed.weight") == stream(0, "embed.weight") != stream(1, "embed.weight")
    True
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1  # a generator's seed is a signed 64-bit number


class LinearUnfilled(TorchFunctionMode):
    """A context in which `nn.Linear` leaves its weight uninitialised, since `initialise` sets it.

    That halves the time in which a large model is built.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is nn.init.kaiming_uniform_ and kwargs.get("a") == math.sqrt(5):
            return kwargs.get("tensor", args[0] if args else None)
        return func(*args, **kwargs)
