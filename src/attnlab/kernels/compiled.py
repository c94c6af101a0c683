"""Functions compiled by torch, once per process, and functions that its compiler leaves alone.

Torch compiles a function again for each kind of input: shapes, dtypes, classes of modules. Past
eight kinds it silently runs the function as written; a study has more, so the limit is raised.
"""

import os
import sys
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import cache, wraps
from importlib import import_module
from inspect import unwrap
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import TorchDispatchMode

Function = TypeVar("Function", bound=Callable[..., Any])
DispatchMode = TypeVar("DispatchMode", bound=TorchDispatchMode)
P = ParamSpec("P")
R = TypeVar("R")

KINDS = 256  # of inputs, each compiled once
TUNED: dict[str, Any] = {  # on CUDA; nothing changes on a CPU
    "coordinate_descent_tuning": True,
    "triton.enable_pdl": True,  # programmatic dependent launch, from Hopper on
}


@cache
def compile_once(
    function: Callable[..., Any],
    *,
    dynamic: bool | None = None,
    fullgraph: bool = False,
    tuned: bool = False,
) -> Any:
    """Return `function` compiled with these options of `torch.compile`, the same at every call.

    With `tuned`, kernels are timed while they are compiled, products of one row are reductions,
    which are fused with what surrounds them, and a kernel starts while the one before it ends.
    """
    import torch._dynamo  # takes seconds to load

    settings: Any = torch._dynamo.config
    for limit in ("recompile_limit", "accumulated_recompile_limit"):
        setattr(settings, limit, max(KINDS, getattr(settings, limit)))
    options = TUNED if tuned else None
    return torch.compile(function, dynamic=dynamic, fullgraph=fullgraph, options=options)


def keep_compiled(folder: Path) -> None:
    """Have torch keep what it compiles in a folder, for later processes, unless the user named one.

    Call it before the first compilation. torch's own default is a temporary folder, which ends with
    the machine or the container. A folder that cannot be written is left to torch.
    """
    for variable, name in (("TORCHINDUCTOR_CACHE_DIR", "inductor"), ("TRITON_CACHE_DIR", "triton")):
        with suppress(OSError):
            (folder / name).mkdir(parents=True, exist_ok=True)
            if os.access(folder / name, os.W_OK):
                os.environ.setdefault(variable, str(folder / name))


@contextmanager
def as_written() -> Generator[None]:
    """Run compiled functions as written inside, so that torch's modes observe their operations.

    Torch does not compile while a mode observes; it would mark the function as one that is never
    compiled, and run it as written ever after.
    """
    if not compiler_is_loaded() and not torch.cuda.is_available():
        yield  # nothing is compiled, and the compiler takes seconds to load
        return
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        # FlexAttention warns that it is not compiled
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        yield


def fused(function: Callable[P, R]) -> Callable[P, R]:
    """Return `function`, compiled for elementwise work where its first argument is on CUDA.

    It saves kernels where the model as a whole is not compiled. Within a compiled model it is part
    of that graph, and on a CPU it runs as written.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        first = args[0]
        if torch.compiler.is_compiling() or not (isinstance(first, Tensor) and first.is_cuda):
            return function(*args, **kwargs)
        return compile_once(function)(*args, **kwargs)

    return run


def opaque(function: Function) -> Function:
    """Return `function` such that a compiled caller runs it as written, between two graphs.

    Its first call loads the compiler, unless there is one already: call `function` itself where
    nothing is compiled (`torch.compiler.is_compiling`).
    """
    # as torch.compiler.disable, which would load the compiler here
    return torch._disable_dynamo(function)  # pyright: ignore


def recomputed(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return `function(*arguments)`, a tensor or a tuple; the backward pass computes it again.

    It draws nothing at random. Where gradients are off, it is called as it is.
    """
    if not torch.is_grad_enabled():
        return function(*arguments)
    if torch.compiler.is_compiling() or compiler_is_loaded():
        from torch.utils.checkpoint import checkpoint  # which loads the compiler

        return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return _Recomputed.apply(function, *arguments)


class _Recomputed(torch.autograd.Function):
    """A function of which the arguments alone are kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        is_tensor = [isinstance(it, Tensor) for it in arguments]
        ctx.save_for_backward(*(it for it in arguments if isinstance(it, Tensor)))
        ctx.others = [
            None if tensor else it for it, tensor in zip(arguments, is_tensor, strict=True)
        ]
        ctx.function, ctx.is_tensor = function, is_tensor
        device = next(it.device.type for it in arguments if isinstance(it, Tensor))
        enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        ctx.autocast = torch.autocast(device, dtype, enabled=enabled)
        found = function(*arguments)
        parts = (found,) if isinstance(found, Tensor) else found
        ctx.mark_non_differentiable(*(part for part in parts if not part.is_floating_point()))
        return found

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  the decorator is untyped
        ctx: Any, *grads: Any
    ) -> Any:
        kept, arguments = iter(ctx.saved_tensors), list[Any]()
        needed = ctx.needs_input_grad[1:]
        for other, tensor, needs in zip(ctx.others, ctx.is_tensor, needed, strict=True):
            arguments.append(next(kept).detach().requires_grad_(needs) if tensor else other)
        with torch.enable_grad(), ctx.autocast:
            found = ctx.function(*arguments)
        parts = (found,) if isinstance(found, Tensor) else found
        pairs = [(y, g) for y, g in zip(parts, grads, strict=True) if y.requires_grad]
        wanted = [it for it, needs in zip(arguments, needed, strict=True) if needs]
        outputs, of_outputs = zip(*pairs, strict=True)
        gradients = iter(torch.autograd.grad(outputs, wanted, of_outputs, allow_unused=True))
        return None, *(next(gradients) if needs else None for needs in needed)


def constant(function: Function) -> Function:
    """Return `function` such that a compiled caller calls it once, while compiling."""
    # as torch.compiler.assume_constant_result, which would load the compiler here
    function._dynamo_marked_constant = True  # pyright: ignore
    return function


def load_compiler() -> None:
    """Load what compiles functions for CUDA, which takes seconds, before there is one."""
    for name in ("torch._dynamo", "torch._inductor.compile_fx"):
        import_module(name)


def compiler_is_loaded() -> bool:
    """Return whether this process has loaded the compiler; without it nothing is compiled."""
    return sys.modules.get("torch._dynamo") is not None


def without_compiler(mode: type[DispatchMode]) -> type[DispatchMode]:
    """Return the class of a dispatch mode that does not load the compiler: a second per process.

    torch wraps `__torch_dispatch__` so that compiled code runs it as written.
    """
    wrapped: Any = mode.__torch_dispatch__
    written: Any = unwrap(wrapped)

    @wraps(written)
    def dispatch(*args: Any, **kwargs: Any) -> Any:
        return (wrapped if compiler_is_loaded() else written)(*args, **kwargs)

    mode.__torch_dispatch__ = dispatch
    return mode
