"""Elementwise work as few kernels on CUDA, without compiling the model around it.

A short run is not worth compiling as a whole. Its small functions are: what they compile to is kept
for the life of the process and shared by every model of the same shapes.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from attnlab.kernels.compiled import compile_once

P = ParamSpec("P")
R = TypeVar("R")


def fused(function: Callable[P, R]) -> Callable[P, R]:
    """`function` of tensors, compiled where its first argument lies on CUDA.

    Inside a compiled model it is part of that, and on a CPU it runs as written.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        first = args[0]
        if torch.compiler.is_compiling() or not (isinstance(first, Tensor) and first.is_cuda):
            return function(*args, **kwargs)
        return compile_once(function)(*args, **kwargs)

    return run
