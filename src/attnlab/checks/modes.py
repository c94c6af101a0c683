"""The ways to run a mechanism: modes, the place of one run, and how exact its numbers are.

Shapes: B batch, T tokens, D model width.
"""

import sys
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, suppress
from linecache import getlines
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from attnlab.config.own_code import is_users
from attnlab.kernels.compiled import as_written, compiler_is_loaded, without_compiler
from attnlab.mechanism import Mechanism

Build = Callable[[], tuple[Mechanism[Any], int]]  # a mechanism, and its model width
LATE = 1_000_000  # a training step after the end of every schedule


class Mode(NamedTuple):
    """One way to run a mechanism."""

    name: str
    training: bool
    step: int = LATE
    dropout: float = 0.0
    autocast: bool = False  # to bfloat16: inputs in it, parameters in float32
    float32: bool = False  # inputs and parameters, as in training on a CPU

    def autocast_on(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.autocast)


EVAL = Mode("eval", training=False)
TRAIN = Mode("train", training=True)
FIRST_STEP = Mode("train at step 0", training=True, step=0)
DROPOUT = Mode("train with dropout", training=True, dropout=0.5)
BFLOAT16_DROPOUT = Mode("train with some dropout in bfloat16", True, dropout=0.1, autocast=True)
BFLOAT16_EVAL = Mode("eval in bfloat16", training=False, autocast=True)
BFLOAT16_TRAIN = Mode("train in bfloat16", training=True, autocast=True)
FLOAT32_EVAL = Mode("eval", training=False, float32=True)
FLOAT32_TRAIN = Mode("train", training=True, float32=True)
WITHIN_SCHEDULES = (1, 5, 10, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)  # training steps


class Place(NamedTuple):
    """The mode and the shape in which a mechanism was run."""

    mode: str
    batch: int
    tokens: int
    more: str = ""

    def __str__(self) -> str:
        tokens = f"{self.tokens} {'token' if self.tokens == 1 else 'tokens'}"
        return f"{self.mode}, batch {self.batch}, {tokens}{self.more}"


class NotJudgedError(Exception):
    """A property cannot be judged; the message says why."""


def narrowest_dtype(call: Callable[[], object], dtype: torch.dtype) -> torch.dtype | None:
    """Return the narrowest dtype of numbers inside a call, `dtype` if that is narrower.

    Compiled code runs as Python, so that its operations are seen. None if the call fails.
    """
    loaded, ended = compiler_is_loaded(), False
    with torch.no_grad(), as_written(), _NarrowestDtype(dtype) as seen, suppress(Exception):
        call()
        ended = True
    if compiler_is_loaded() and not loaded:
        return narrowest_dtype(call, dtype)
    return seen.dtype if ended else None


@without_compiler
class _NarrowestDtype(TorchDispatchMode):
    """Records the narrowest dtype of real or complex tensors that operations return."""

    supports_higher_order_operators = True  # torch's FlexAttention is one

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, Tensor) and (each.is_floating_point() or each.is_complex()):
                dtype = each.dtype.to_real() if each.is_complex() else each.dtype
                if torch.finfo(dtype).eps > torch.finfo(self.dtype).eps:
                    self.dtype = dtype
        return result


def require_tensor(y_BTD: object) -> Tensor:
    """Return what a mechanism returned. Raises TypeError unless it is a tensor."""
    if isinstance(y_BTD, Tensor):
        return y_BTD
    raise TypeError(f"forward returned {type(y_BTD).__name__}, not a tensor (B, T, D)")


def tolerance(dtype: torch.dtype) -> float:
    """Return the relative deviation that roundings may cause.

    >>> f"{tolerance(torch.float64):.0e}", f"{tolerance(torch.bfloat16):.0e}"
    ('4e-11', '4e-02')
    """
    return torch.finfo(dtype).eps ** (2 / 3)


class EmptyAs(TorchFunctionMode):
    """A context in which memory that nothing has written holds one number, the same every time."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _UNWRITTEN and (result.is_floating_point() or result.is_complex()):
            result.detach().fill_(self.number)
        return result


_UNWRITTEN = (
    *(torch.empty, torch.empty_like, torch.empty_strided),
    *(Tensor.new_empty, Tensor.new_empty_strided),
)


class Elsewhere(TorchFunctionMode):
    """A context that shows what stays on the CPU when a module and its inputs move from there.

    Tensors that are made on no stated device, or on one that is named, are on torch's meta device,
    and so must be those that do not move. An operation of them with others raises. Numbers without
    dimension go with every device.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if any(isinstance(each, Tensor) and each.is_meta and not each.ndim for each in args):
            raise NotJudgedError("a number that was read there")
        result = func(*args, **kwargs)
        is_named = any(isinstance(each, str) for each in (*args[1:], kwargs.get("device")))
        is_made = func in _MADE and (is_named or kwargs.get("device") is None)
        is_moved = func is Tensor.cpu or (func is Tensor.to and is_named)
        return result.to("meta") if (is_made or is_moved) and result.ndim else result


_MADE = (
    *(torch.arange, torch.empty, torch.eye, torch.full, torch.linspace, torch.ones, torch.rand),
    *(torch.randint, torch.randn, torch.randperm, torch.tensor, torch.zeros),
)


@contextmanager
def seeded(seed: int) -> Generator[None]:
    """Seed torch's random streams inside, and restore the caller's afterwards."""
    cuda = torch.cuda.is_initialized()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if cuda else ()):
        # torch.manual_seed also queues a call for a device that is not in use, which is slow
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed_all(seed)
        yield


def contexts_of(mechanism: Mechanism[Any]) -> dict[str, Callable[[], AbstractContextManager[Any]]]:
    """Return the contexts in which a call must compute the same, by name."""
    names = {type(part).__module__ for part in mechanism.modules()}
    files = {getattr(sys.modules.get(name), "__file__", None) for name in names}
    lines = (line for file in files if is_users(file) for line in getlines(str(file)))
    contexts: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "torch.enable_grad": torch.enable_grad,
        "torch.no_grad": torch.no_grad,
        "torch.inference_mode": torch.inference_mode,
    }
    if any("is_compiling" in line for line in lines):
        contexts["a compiled model (`is_compiling`)"] = _as_if_compiled
    return contexts


@contextmanager
def _as_if_compiled() -> Generator[None]:
    """Let `torch.compiler.is_compiling` return True inside."""
    before = torch.compiler.is_compiling
    torch.compiler.is_compiling = lambda: True
    try:
        yield
    finally:
        torch.compiler.is_compiling = before


@torch.no_grad()
def enliven(mechanism: Mechanism[Any], seed: int) -> None:
    """Give every trainable parameter a value at which nothing is hidden, the same every time."""
    for i, (name, parameter) in enumerate(mechanism.named_parameters()):
        if not parameter.requires_grad:
            continue
        generator = torch.Generator().manual_seed(1000 * seed + i)
        noise = torch.randn(parameter.shape, generator=generator)
        value = mechanism.initial_value(name, generator)
        if value is not None:
            parameter.copy_(value + 0.1 * noise)
        elif parameter.ndim >= 2:
            parameter.copy_(noise * max(parameter.shape[-2:]) ** -0.5)
        else:
            parameter.add_(0.1 * noise)


def placed(
    mechanism: Mechanism[Any], device: torch.device | str, dtype: torch.dtype, mode: Mode
) -> Mechanism[Any]:
    """Return the module on a device, in a mode, its real and complex numbers in this precision."""
    mechanism = mechanism.to(device).train(mode.training)
    if dtype != torch.float32:
        for tensor in (*mechanism.parameters(), *mechanism.buffers()):
            if tensor.is_complex():
                tensor.data = tensor.data.to(dtype.to_complex())
            elif tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)
    mechanism.at_step(mode.step)
    return mechanism


def first_that_runs(
    build: Build, computes_in: torch.dtype | None
) -> tuple[torch.device, torch.dtype]:
    """Return the first device and dtype on which the mechanism runs.

    The CPU comes before CUDA, and float64 before narrower dtypes. A mechanism that states its dtype
    is tried in it alone, on CUDA if there is a device. One that runs nowhere gets the first place
    that its kernel does not refuse, where the check then reports why it fails.
    """
    cuda = torch.cuda.is_available()
    cpu = [("cpu", dtype) for dtype in (torch.float64, torch.float32, torch.bfloat16)]
    on_cuda = [("cuda", torch.float32), ("cuda", torch.bfloat16)]  # some kernels have no float32
    places = [*cpu[:2], *on_cuda * cuda, *cpu[2:]]
    if computes_in is not None:
        places = [("cuda" if cuda else "cpu", computes_in)]
    found = (place for place in places if _runs(build, *place))
    place = next(found, None) or next((p for p in places if _serves(build, *p)), places[0])
    return torch.device(place[0]), place[1]


def needs_cuda(build: Build, computes_in: torch.dtype | None) -> bool:
    """Return whether there is a CUDA device, and the CPU does not run the mechanism."""
    if not torch.cuda.is_available():
        return False
    dtypes = (torch.float64, torch.float32) if computes_in is None else ()
    return not any(_runs(build, "cpu", dtype) for dtype in dtypes)


def _runs(build: Build, device: str, dtype: torch.dtype) -> bool:
    """Return whether the mechanism builds, reads a sequence and decodes there without an error."""
    try:
        with torch.no_grad(), seeded(0):
            built, d_model = build()
            mechanism = placed(built, device, dtype, EVAL)
            x_BTD = torch.zeros(2, 5, d_model, device=device, dtype=dtype)
            mechanism(x_BTD)
            if mechanism.decodes:
                _, state = mechanism.prefill(x_BTD[:, :3], 5)
                mechanism.step(x_BTD[:, 3], state)
    except Exception:
        return False
    return True


def _serves(build: Build, device: str, dtype: torch.dtype) -> bool:
    """Return whether the kernel of the mechanism does not refuse the device or the dtype."""
    with suppress(Exception), seeded(0):
        build()[0].kernel_on(torch.device(device), dtype)
        return True
    return False
