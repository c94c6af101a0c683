"""Any layer of flash-linear-attention as a mechanism, on CUDA: `fla:GatedLinearAttention`.

The settings of a layer are the arguments of its constructor, with its defaults, as typed and strict
as any other kind's. The model's width is given to it, and it is the only layer of its cache.

    parameters   counted exactly, on torch's meta device
    FLOPs        at least those of its linear projections: nothing can count its kernels' products
    state bytes  measured on the CUDA device: what its cache holds after `context` tokens

Its kernels are made for bfloat16: autocast to it is on inside, whatever the layer is given. The
matrices of linear projections begin by the model's rule, all else as the layer itself begins it.

A token is decoded through the layer's own cache or, where that does not work or the setting
`decode` says so, by recomputation: the inputs are kept, and `forward` goes over them at each step.

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
from attnlab.config.signature import settings_of
from attnlab.kernels import flash_linear_attention as fla
from attnlab.mechanism import Cost, Mechanism, MechanismConfig, state_bytes
from attnlab.modules.kv_cache import none_seen

_DEVICE = "cuda"
_OURS = frozenset(("hidden_size", "d_model", "layer_idx", "device", "dtype"))  # never settings
_NARROWEST_HEAD = 16  # of what a GPU's matrix units multiply
_HEADS = ("head_dim", "head_k_dim", "head_v_dim", "head_f_dim", "head_i_dim")


@dataclass(frozen=True, kw_only=True)
class FlaLayer(MechanismConfig):
    """What the configs of all layers share; `fla_layer` makes the one of a layer."""

    computes_in: ClassVar[torch.dtype | None] = torch.bfloat16
    flops_are_exact: ClassVar[bool] = False
    layer: ClassVar[str] = ""

    decode: Literal["auto", "cache", "recomputation"] = "auto"

    @classmethod
    def name(cls) -> str:
        return f"fla:{cls.layer}"

    def problems_at(self, d_model: int) -> Iterator[Problem]:
        try:
            layer = _on_meta(self, d_model)
        except Exception as error:  # the layer's own words: of shapes, or of a package it needs
            message = (str(error) or type(error).__name__).splitlines()[0]
            yield Problem("", f"{self.kind()} refuses d_model {d_model}: {message}")
            return
        widths = {name: getattr(layer, name, None) for name in _HEADS}
        for name, width in widths.items():
            if isinstance(width, int) and width < _NARROWEST_HEAD:
                least = f"its kernels need at least {_NARROWEST_HEAD}"
                yield Problem("", f"{self.kind()} at d_model {d_model}: {name} {width}; {least}")

    def cost(self, d_model: int, context: int, itemsize: int = 2) -> Cost:
        """As the contract says, but that `flops` are a lower bound.

        Raises ValueError where the layer cannot decode here.
        """
        layer = _on_meta(self, d_model)
        weights = [m.weight.numel() for m in layer.modules() if isinstance(m, nn.Linear)]
        kept = context * d_model * itemsize
        return Cost(
            params=sum(parameter.numel() for parameter in layer.parameters()),
            flops=2 * sum(weights),
            state_bytes=_cache_bytes(self, d_model, context) if self.caches(d_model) else kept,
        )

    def build(self, d_model: int, dropout: float = 0.0) -> "FlaMixer":
        del dropout  # there are no attention weights
        return FlaMixer(self, d_model)

    def new_layer(self, d_model: int, seed: int = 0) -> nn.Module:
        """The layer itself; what it draws comes from `seed` and leaves other streams alone."""
        cls = fla.layer_class(self.layer)
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "decode"}
        if "layer_idx" in inspect.signature(cls).parameters:
            settings["layer_idx"] = 0
        with _quietly(), torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(seed)  # not those of CUDA devices
            return cls(hidden_size=d_model, **settings)

    def caches(self, d_model: int) -> bool:
        """Whether a token is decoded through the layer's own cache."""
        return _cache_works(self, d_model) if self.decode == "auto" else self.decode == "cache"


@cache
def fla_layer(layer: str) -> type[FlaLayer]:
    """A layer of flash-linear-attention, on CUDA: the class of its settings.

    `fla_layer("GatedLinearAttention")(expand_k=1.0)` in a study is `fla:GatedLinearAttention` with
    `expand_k=1.0` on a command line.
    Raises ValueError where flash-linear-attention has no such layer or it cannot run here.
    """
    try:
        cls = fla.layer_class(layer)
    except ValueError as error:
        raise ValueError(f"fla:{layer}: {error}") from None
    inputs = list(inspect.signature(cls.forward).parameters.values())[2:]  # after self and x
    needed = [i.name for i in inputs if i.default is i.empty and i.kind is i.POSITIONAL_OR_KEYWORD]
    needed = [name for name in needed if name != "attention_mask"]  # None, for nothing is padding
    if needed:
        raise ValueError(f"fla:{layer} is part of another layer: it also takes {', '.join(needed)}")
    namespace = {"layer": layer, "__module__": __name__, "__doc__": inspect.getdoc(cls)}
    made = make_dataclass(
        layer,
        settings_of(cls, _OURS),
        bases=(FlaLayer,),
        namespace=namespace,
        frozen=True,
        kw_only=True,
    )
    return cast("type[FlaLayer]", made)


MechanismConfig.elsewhere["fla"] = fla_layer


class SeenState(NamedTuple):
    x_BSD: Tensor  # every input so far, then zeros
    seen: Tensor  # how many: int64, no dimension


class FlaMixer(Mechanism[tuple[Any, ...]]):
    """A decode state is the layer's cache and then the tensors in it, or a `SeenState`."""

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
        # what comes after the token is zeros, and changes nothing: the layer is causal
        y_BSD = self._run(state.x_BSD.to(x_BD.dtype))
        return y_BSD.index_select(1, at_1)[:, 0], state._replace(seen=state.seen + 1)

    def initial_value(self, name: str, generator: torch.Generator) -> Tensor | None:
        name = name.removeprefix("layer.")
        owner = self.layer.get_submodule(name.rpartition(".")[0])
        parameter = self.layer.get_parameter(name)
        if isinstance(owner, nn.Linear) and not _is_special(owner, parameter):
            return None
        seed = int(torch.randint(2**62, (), generator=generator))
        return self.config.new_layer(self.d_model, seed).get_parameter(name).detach()

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> str:
        del dtype  # it is bfloat16
        if reason := fla.layer_unusable_because(self.config.layer):
            raise ValueError(f"{self.config.kind()}: {reason}")
        if device.type != _DEVICE:
            raise ValueError(f"{self.config.kind()} needs a CUDA device, not {device.type}")
        form = getattr(self.layer, "mode", "")
        if not getattr(sys.modules[type(self.layer).__module__], "is_fast_path_available", True):
            form = "without mamba_ssm"  # its layer falls back on plain torch
        return f"fla {form}".rstrip() + f", decoding by {self.decodes_by}"

    def _through_cache(
        self, x_BTD: Tensor, state: tuple[Any, ...]
    ) -> tuple[Tensor, tuple[Any, ...]]:
        kept = state[0]
        y_BTD = self._run(x_BTD, past_key_values=kept, use_cache=True)
        return y_BTD, (kept, *_tensors(kept[0]))

    def _run(self, x_BTD: Tensor, **options: Any) -> Tensor:
        with torch.autocast(x_BTD.device.type, torch.bfloat16):
            found = self.layer(x_BTD, attention_mask=None, **options)
        y_BTD = found[0] if isinstance(found, tuple) else found
        return y_BTD.to(x_BTD.dtype)


@lru_cache(maxsize=256)
def _on_meta(config: FlaLayer, d_model: int) -> nn.Module:
    """The layer without its numbers; with them where its constructor must look at some."""
    try:
        with torch.device("meta"):
            return config.new_layer(d_model)
    except (NotImplementedError, RuntimeError):
        return config.new_layer(d_model)


@lru_cache(maxsize=256)
def _cache_works(config: FlaLayer, d_model: int) -> bool:
    """Whether the layer takes a cache, and goes on from one: some raise an error at a step."""
    forward = inspect.signature(fla.layer_class(config.layer).forward)
    if "past_key_values" not in forward.parameters:
        return False
    mixer = replace(config, decode="cache").build(d_model).to(_DEVICE, torch.bfloat16).eval()
    x_1TD = torch.zeros(1, 3, d_model, device=_DEVICE, dtype=torch.bfloat16)
    try:
        with torch.no_grad():
            _, state = mixer.prefill(x_1TD[:, :2], 3)
            mixer.step(x_1TD[:, 2], state)
    except Exception:  # of whatever kind: it is the layer's own
        return False
    return True


@lru_cache(maxsize=256)
def _cache_bytes(config: FlaLayer, d_model: int, context: int) -> int:
    mixer = config.build(d_model).to(_DEVICE, torch.bfloat16).eval()
    x_1TD = torch.zeros(1, context, d_model, device=_DEVICE, dtype=torch.bfloat16)
    try:
        with torch.no_grad():
            return state_bytes(mixer.prefill(x_1TD, context)[1])
    except Exception as error:
        message = (str(error) or type(error).__name__).splitlines()[0]
        remedy = "decode=recomputation does without its cache"
        raise ValueError(f"{config.kind()} cannot decode here: {message}; {remedy}") from error


@contextmanager
def _quietly() -> Generator[None]:
    """Without what a layer logs at each construction: the record says what it runs on."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _is_special(owner: nn.Module, parameter: Tensor) -> bool:
    """Whether the layer marks a projection as begun already, as it does for transformers."""
    marks = getattr(owner, "_is_hf_initialized", False), getattr(parameter, "_no_reinit", False)
    return any(marks)


def _tensors(value: Any) -> Iterator[Tensor]:
    """All in what a cache holds of a layer: containers, and objects with tensors for attributes."""
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
