"""Any layer of flash-linear-attention as a mechanism: `fla:GatedLinearAttention`.

The settings of a layer are the arguments of its constructor, with its defaults, and are checked as
those of any mechanism. The layer gets the model's width, and a cache of its own.

    parameters   counted exactly, on torch's meta device
    FLOPs        not stated, since products inside its kernels cannot be counted; plans use those of
                 its linear projections
    state bytes  measured on the device: the size of its cache after `context` tokens

It runs on CUDA or, where there is none, on the CPU if it is one of the layers with plain
definitions (kernels/flash_linear_attention_plain.py). Its kernels are made for bfloat16, so it runs
under autocast to bfloat16 for every input dtype. It begins with its own initial values: all that
its constructor sets, and those of torch where it leaves a linear layer alone.

Decoding uses the layer's own cache. Where that does not work, or where the setting `decode` says
so, it recomputes: the inputs are stored, and each step runs `forward` over all of them.

Yang and Zhang 2024 (github.com/fla-org/flash-linear-attention).
Shapes: B batch, T tokens, S slots for tokens, D model width.
"""

import inspect
import logging
import sys
import warnings
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, make_dataclass, replace
from functools import cache, lru_cache
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from attnlab.config import Problem
from attnlab.config.values import settings_of
from attnlab.kernels import flash_linear_attention as fla
from attnlab.mechanism import Cost, Mechanism, MechanismConfig, state_bytes, without_memory
from attnlab.modules.kv_cache import none_seen

_NO_SETTINGS = frozenset(("hidden_size", "d_model", "layer_idx", "device", "dtype"))
_NARROWEST_HEAD = 16  # least width that a GPU's matrix units multiply
_HEADS = ("head_dim", "head_k_dim", "head_v_dim", "head_f_dim", "head_i_dim")
# torch's own, for which a model's rule stands in while its mechanisms are built
_RESET: dict[Any, Any] = {cls: cls.reset_parameters for cls in (nn.Linear, nn.Embedding)}


@dataclass(frozen=True, kw_only=True)
class FlaLayer(MechanismConfig):
    """Base of the configs of all layers; `fla_layer` creates the config class of one layer."""

    computes_in: ClassVar[torch.dtype | None] = torch.bfloat16
    counts_flops: ClassVar[bool] = False
    layer: ClassVar[str] = ""

    decode: Literal["auto", "cache", "recomputation"] = "auto"  # auto: by the cache if it works

    @classmethod
    def name(cls) -> str:
        return f"fla:{cls.layer}"

    def problems_at(self, d_model: int) -> Iterator[Problem]:
        try:
            layer = _on_meta(self, d_model)
        except Exception as error:  # of any kind: about shapes, or about a package it needs
            message = (str(error) or type(error).__name__).splitlines()[0]
            yield Problem("", f"{self.kind()} does not support d_model {d_model}: {message}")
            return
        widths = {name: getattr(layer, name, None) for name in _HEADS}
        for name, width in widths.items():
            if isinstance(width, int) and width < _NARROWEST_HEAD:
                least = f"its kernels need at least {_NARROWEST_HEAD}"
                yield Problem("", f"{self.kind()} at d_model {d_model}: {name} {width}; {least}")
        heads, width, inner = (
            getattr(layer, name, 0) or 0 for name in ("num_heads", "head_dim", "intermediate_size")
        )
        if inner and heads * width not in (0, inner):  # a state space model splits it into heads
            sizes = f"{heads} heads of {width} do not make up its inner width of {inner}"
            yield Problem("", f"{self.kind()} at d_model {d_model}: {sizes}")

    def cost(self, d_model: int, context: int, itemsize: int = 2) -> Cost:
        """Return the cost of one decode step; `flops` are those of linear projections alone.

        Raises:
            ValueError: the layer cannot decode on this machine.
        """
        layer = _on_meta(self, d_model)
        weights = [m.weight.numel() for m in layer.modules() if isinstance(m, nn.Linear)]
        inputs = context * d_model * itemsize
        return Cost(
            params=sum(parameter.numel() for parameter in layer.parameters()),
            flops=2 * sum(weights),
            state_bytes=_cache_bytes(self, d_model, context) if self.caches(d_model) else inputs,
        )

    def build(self, d_model: int, dropout: float = 0.0) -> "FlaMixer":
        del dropout  # there are no attention weights
        return FlaMixer(self, d_model)

    def new_layer(self, d_model: int) -> nn.Module:
        """Return the layer; the global random streams stay as they were."""
        cls = fla.layer_class(self.layer)
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "decode"}
        if "layer_idx" in inspect.signature(cls).parameters:
            settings["layer_idx"] = 0
        with _quietly(), _own_values(), torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(0)  # CUDA generators stay unused
            return cls(hidden_size=d_model, **settings)

    def caches(self, d_model: int) -> bool:
        """True if decoding uses the layer's own cache."""
        return _cache_works(self, d_model) if self.decode == "auto" else self.decode == "cache"


@cache
def fla_layer(layer: str) -> type[FlaLayer]:
    """A layer of flash-linear-attention: return the class of its settings.

    `fla_layer("GatedLinearAttention")(expand_k=1.0)` in a study is `fla:GatedLinearAttention` with
    `expand_k=1.0` on a command line.

    Raises:
        ValueError: flash-linear-attention has no such layer, or it cannot run here.
    """
    try:
        cls = fla.layer_class(layer)
    except ValueError as error:
        raise ValueError(f"fla:{layer}: {error}") from None
    inputs = list(inspect.signature(cls.forward).parameters.values())[2:]  # after self and x
    needed = [i.name for i in inputs if i.default is i.empty and i.kind is i.POSITIONAL_OR_KEYWORD]
    needed = [name for name in needed if name != "attention_mask"]  # None: there is no padding
    if needed:
        raise ValueError(f"fla:{layer} is part of another layer: it also needs {', '.join(needed)}")
    namespace = {"layer": layer, "__module__": __name__, "__doc__": inspect.getdoc(cls)}
    made = make_dataclass(
        layer,
        settings_of(cls, _NO_SETTINGS),
        bases=(FlaLayer,),
        namespace=namespace,
        frozen=True,
        kw_only=True,
    )
    return cast("type[FlaLayer]", made)


MechanismConfig.elsewhere["fla"] = fla_layer


class SeenState(NamedTuple):
    """Decode state for recomputation."""

    x_BSD: Tensor  # all inputs so far, then zeros
    seen: Tensor  # number of inputs so far: int64, no dimension


class FlaMixer(Mechanism[tuple[Any, ...]]):
    """The layer as a mechanism. Its state is the cache and the tensors in it, or a `SeenState`."""

    def __init__(self, config: FlaLayer, d_model: int) -> None:
        super().__init__()
        self.config, self.d_model = config, d_model
        self.caches = config.caches(d_model)
        self.decodes_by = "cache" if self.caches else "recomputation"
        self.layer = config.new_layer(d_model)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self._run(x_BTD)

    def init_state(self, batch_size: int, capacity: int) -> tuple[Any, ...]:
        if self.caches:
            return (fla.new_cache(),)
        like = next(self.parameters())
        return SeenState(like.new_zeros(batch_size, capacity, self.d_model), none_seen(like))

    def prefill(self, x_BTD: Tensor, capacity: int) -> tuple[Tensor, tuple[Any, ...]]:
        state = self.init_state(x_BTD.shape[0], capacity)
        if not isinstance(state, SeenState):
            return self._through_cache(x_BTD, state)
        state.x_BSD[:, : x_BTD.shape[1]] = x_BTD
        return self._run(x_BTD), state._replace(seen=state.seen + x_BTD.shape[1])

    def step(self, x_BD: Tensor, state: tuple[Any, ...]) -> tuple[Tensor, tuple[Any, ...]]:
        if not isinstance(state, SeenState):
            y_B1D, state = self._through_cache(x_BD[:, None], state)
            return y_B1D[:, 0], state
        at_1 = state.seen[None]
        state.x_BSD.index_copy_(1, at_1, x_BD[:, None].to(state.x_BSD.dtype))
        # zeros follow the token and change nothing: the layer is causal
        y_BSD = self._run(state.x_BSD.to(x_BD.dtype))
        return y_BSD.index_select(1, at_1)[:, 0], state._replace(seen=state.seen + 1)

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> str:
        del dtype  # it always computes in bfloat16
        if reason := fla.layer_unusable_because(self.config.layer):
            raise ValueError(f"{self.config.kind()}: {reason}")
        if device.type != fla.layer_device():
            needed = fla.layer_device().upper()
            raise ValueError(f"{self.config.kind()} runs on {needed} here, not on {device.type}")
        form = "plain" if fla.layers_are_plain() else getattr(self.layer, "mode", "")
        if not getattr(sys.modules[type(self.layer).__module__], "is_fast_path_available", True):
            form = "without mamba_ssm"  # then its layer runs plain torch
        return f"fla {form}".rstrip() + f", decoding by {self.decodes_by}"

    def _through_cache(
        self, x_BTD: Tensor, state: tuple[Any, ...]
    ) -> tuple[Tensor, tuple[Any, ...]]:
        layers = state[0]  # a cache of one layer
        y_BTD = self._run(x_BTD, past_key_values=layers, use_cache=True)
        return y_BTD, (layers, *_tensors(layers[0]))

    def _run(self, x_BTD: Tensor, **options: Any) -> Tensor:
        if torch.is_grad_enabled() and fla.writes_its_input(self.config.layer):
            x_BTD = x_BTD.clone()
        with torch.autocast(x_BTD.device.type, torch.bfloat16):
            result = self.layer(x_BTD, attention_mask=None, **options)
        y_BTD = result[0] if isinstance(result, tuple) else result
        return y_BTD.to(x_BTD.dtype)


@lru_cache(maxsize=256)
def _on_meta(config: FlaLayer, d_model: int) -> nn.Module:
    return without_memory(lambda: config.new_layer(d_model))


@lru_cache(maxsize=256)
def _cache_works(config: FlaLayer, d_model: int) -> bool:
    """True if the layer takes a cache and a decode step from one raises no error."""
    forward = inspect.signature(fla.layer_class(config.layer).forward)
    if "past_key_values" not in forward.parameters:
        return False
    place: dict[str, Any] = {"device": fla.layer_device(), "dtype": torch.bfloat16}
    mixer = replace(config, decode="cache").build(d_model).to(**place).eval()
    x_1TD = torch.zeros(1, 3, d_model, **place)
    try:
        with torch.no_grad():
            _, state = mixer.prefill(x_1TD[:, :2], 3)
            mixer.step(x_1TD[:, 2], state)
    except Exception:  # of any kind: it comes from the layer
        return False
    return True


@lru_cache(maxsize=256)
def _cache_bytes(config: FlaLayer, d_model: int, context: int) -> int:
    place: dict[str, Any] = {"device": fla.layer_device(), "dtype": torch.bfloat16}
    mixer = config.build(d_model).to(**place).eval()
    x_1TD = torch.zeros(1, context, d_model, **place)
    try:
        with torch.no_grad():
            return state_bytes(mixer.prefill(x_1TD, context)[1])
    except Exception as error:
        message = (str(error) or type(error).__name__).splitlines()[0]
        remedy = "decode=recomputation needs no cache"
        raise ValueError(f"{config.kind()} cannot decode here: {message}; {remedy}") from error


@contextmanager
def _own_values() -> Generator[None]:
    """Let linear layers and embeddings begin as torch has them, not by the model's rule."""
    before = {cls: cls.reset_parameters for cls in _RESET}
    for cls, reset in _RESET.items():
        cls.reset_parameters = reset
    try:
        yield
    finally:
        for cls, reset in before.items():
            cls.reset_parameters = reset


@contextmanager
def _quietly() -> Generator[None]:
    """Suppress warnings and logs of a layer's constructor; the record says what it runs on."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield all tensors of a layer's cache: in containers and in attributes of objects."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in cast("Mapping[Any, Any]", value).values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in cast("list[Any]", value):
            yield from _tensors(part)
    elif hasattr(value, "__dict__"):
        yield from _tensors(vars(value))
