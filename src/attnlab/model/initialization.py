"""Common random numbers: the initial values of a model's parameters.

The initial value of a parameter is a function of the seed, its qualified name, its shape and what
its class does with it. Two variants that share a parameter initialise it with the same bits.

A mechanism begins with what its constructor sets. `nn.Linear` and `nn.Embedding` that a constructor
leaves alone are drawn from N(0, 0.02), with biases of zero. Each draw of a constructor comes from a
random stream that is named after the parameter or buffer that it fills, so that it depends neither
on the order of construction nor on the global generators.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from attnlab.kernels.compiled import without_compiler
from attnlab.mechanism import Mechanism

INITIAL_STD = 0.02

_Mechanism = TypeVar("_Mechanism", bound=Mechanism[Any])
_EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_UNFILLED = frozenset(getattr(torch.ops.aten, name) for name in _EMPTY)


def stream(seed: int, name: str) -> int:
    """Return the seed of a random stream for this name.

    >>> stream(0, "embed.weight") == stream(0, "embed.weight") != stream(1, "embed.weight")
    True
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1  # a generator's seed is a signed 64-bit number


def constructed(build: Callable[[], _Mechanism], prefix: str, seed: int) -> _Mechanism:
    """Return the mechanism that `build` constructs, with its initial values.

    `build` is called twice: the first call shows which parameter or buffer each draw fills, and in
    the second one each draw has its own stream. A parameter that `Mechanism.initial_value` gives
    begins with that, one in uninitialised memory by the rule of `fill`.

    Args:
        build: the constructor, the same at each call.
        prefix: what precedes the mechanism's own names in the model, such as `blocks.0.mix.`.
        seed: the seed of the run.

    Raises ValueError for lazy parameters, whose shape is not known yet.
    """
    with torch.random.fork_rng(devices=()):
        first, draws = _constructed(build, [])
        names = draws.names(first)
        earlier = Counter[str]()
        seeds = list[int]()
        for name in names:
            again = f"/{earlier[name]}" if earlier[name] else ""
            seeds.append(stream(seed, f"{prefix}{name}{again}"))
            earlier[name] += 1
        mechanism, _ = _constructed(build, seeds)
    for name, parameter in mechanism.named_parameters():
        if is_lazy(parameter):
            raise ValueError(
                f"parameter {prefix}{name} is lazy: its shape is not known before the first "
                "forward pass; give it in the constructor, as nn.Linear does"
            )
        generator = torch.Generator().manual_seed(stream(seed, prefix + name))
        value = mechanism.initial_value(name, generator)
        if value is not None:
            with torch.no_grad():
                parameter.copy_(value)
        elif parameter.is_floating_point() and bool(parameter.isnan().all()):
            fill(name, parameter, generator)
    return mechanism


def initialise(parameters: Mapping[str, nn.Parameter], seed: int) -> None:
    """Set the parameters, given by their qualified names, by the rule of `fill`."""
    for name, parameter in parameters.items():
        fill(name, parameter, torch.Generator().manual_seed(stream(seed, name)))


@torch.no_grad()
def fill(name: str, parameter: Tensor, generator: torch.Generator | None = None) -> None:
    """Fill a parameter in place: N(0, 0.02) for matrices, ones for norms, zeros for biases."""
    if parameter.ndim >= 2:
        parameter.normal_(0, INITIAL_STD, generator=generator)
    else:
        parameter.fill_(0 if name.endswith("bias") else 1)


@contextmanager
def linear_default(reset: Callable[[nn.Module], None]) -> Generator[None]:
    """Let `nn.Linear` and `nn.Embedding` call `reset` in place of torch's initialisation."""
    classes: tuple[Any, ...] = (nn.Linear, nn.Embedding)
    originals = [cls.reset_parameters for cls in classes]
    for cls in classes:
        cls.reset_parameters = reset
    try:
        yield
    finally:
        for cls, original in zip(classes, originals, strict=True):
            cls.reset_parameters = original


def _by_the_rule(layer: nn.Module) -> None:
    for name, parameter in layer.named_parameters():
        if not is_lazy(parameter):
            fill(name, parameter)


def _constructed(
    build: Callable[[], _Mechanism], seeds: Sequence[int]
) -> tuple[_Mechanism, "_Draws"]:
    draws = _Draws(seeds)
    with ExitStack() as stack:
        for hook in (
            hooks.register_module_parameter_registration_hook(draws.register),
            hooks.register_module_buffer_registration_hook(draws.register),
        ):
            stack.callback(hook.remove)
        stack.enter_context(linear_default(_by_the_rule))
        stack.enter_context(draws)
        return build(), draws


@without_compiler
class _Draws(TorchDispatchMode):
    """A context in which the k-th draw is seeded by `seeds[k]`, and `torch.empty` is not a number.

    It remembers the draws, and the parameters and buffers that are registered, in their order.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        super().__init__()
        self._seeds = iter(seeds)
        self._events = list[tuple[bool, Tensor]]()  # (is a draw, its result or what is registered)

    def register(self, module: nn.Module, name: str, tensor: Tensor | None) -> None:
        del module, name
        if tensor is not None:
            self._events.append((False, tensor))

    def names(self, mechanism: nn.Module) -> list[str]:
        """Return the name of the parameter or buffer that each draw fills.

        It is the one that shares the memory of the draw, else the next one to be registered.
        """
        owners = [*mechanism.named_buffers(), *mechanism.named_parameters()]
        name_at = {_memory(tensor): name for name, tensor in reversed(owners)}
        names, following = list[str](), ""
        for is_draw, tensor in reversed(self._events):
            name = name_at.get(_memory(tensor), following)
            if is_draw:
                names.append(name)
            else:
                following = name
        return names[::-1]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None:
            torch.default_generator.manual_seed(next(self._seeds, len(self._events)))
            result = func(*args, **kwargs)
            self._events.append((True, result))
            return result
        result = func(*args, **kwargs)
        if func.overloadpacket in _UNFILLED and result.is_floating_point():
            result.fill_(torch.nan)
        return result


def _memory(tensor: Tensor) -> int:
    return 0 if is_lazy(tensor) or tensor.is_meta else tensor.untyped_storage().data_ptr()
