"""Functions compiled by torch, once for all that a process does with them.

Torch compiles a function anew for each kind of input: shapes, dtypes, classes of modules. Past
eight kinds it gives up and, without a word, runs the function as written; a study has more.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])

KINDS = 256  # of inputs, each compiled once


@cache
def compile_once(
    function: Callable[..., Any], *, dynamic: bool | None = None, fullgraph: bool = False
) -> Any:
    """`function` compiled, with the options of `torch.compile`: the same one at every call."""
    import torch._dynamo  # takes seconds to load

    settings: Any = torch._dynamo.config
    for limit in ("recompile_limit", "accumulated_recompile_limit"):
        setattr(settings, limit, max(KINDS, getattr(settings, limit)))
    return torch.compile(function, dynamic=dynamic, fullgraph=fullgraph)


def opaque(function: Function) -> Function:
    """`function` as it stands, also where what calls it is compiled: one graph ends before it and
    another begins after it.
    """
    # torch.compiler.disable, but for that it loads the compiler at the first call and not here
    return torch._disable_dynamo(function)  # pyright: ignore


def constant(function: Function) -> Function:
    """`function` is called while what calls it is compiled, and its result is taken for good.

    This is torch.compiler.assume_constant_result, which would load the compiler here.
    """
    function._dynamo_marked_constant = True  # pyright: ignore
    return function
