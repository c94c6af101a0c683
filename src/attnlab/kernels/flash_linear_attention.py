"""flash-linear-attention: when it can run, what attnlab uses of it, and what runs in its place.

| form of a recurrence | implementation                                             | where    |
|----------------------|------------------------------------------------------------|----------|
| `recurrent`          | the definition, token by token                             | anywhere |
| `chunked`            | matrix products within chunks of tokens, one step between  | anywhere |
|                      | chunks                                                     |          |
| `fla`                | flash-linear-attention's function, in the values' dtype    | CUDA     |

`auto` is `fla` for bfloat16 or float16 and keys of at most 256 where that function can run, and
`chunked` everywhere else. The first two compute in float32, or in float64 for float64 inputs, also
under autocast.

Its kernels need CUDA and Triton. On Hopper (compute capability 9.x) its backward pass with one
decay per head is faulty with Triton 3.4.0 to 3.7.0: it computes wrong gradients of gates (its issue
640), and with the constant decays of retention it accesses memory that is not its own. There the
gated delta rule is right only through TileLang, which compiles with nvcc, and simple gated linear
attention, whose states are wider, and retention not even so. Versions before 0.6.0 do not know
which Triton fixes it. Layers with another backward pass are not affected.

Without CUDA some of its layers run by definitions in plain torch (`flash_linear_attention_plain`).
To be imported, they need Triton all the same.

It consists of two packages, `fla-core` with the functions and `flash-linear-attention` with the
layers, or of a local clone that has both (`flash_linear_attention_clone`).

Yang and Zhang 2024 (github.com/fla-org/flash-linear-attention).
"""

import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from packaging.version import Version
from torch import Tensor, nn

from attnlab.config import suggestion
from attnlab.config.problem import with_types
from attnlab.kernels import flash_linear_attention_clone as fla_clone
from attnlab.kernels import flash_linear_attention_plain as plain
from attnlab.kernels.compiled import constant
from attnlab.version import package_version

Kernel = Literal["auto", "recurrent", "chunked", "fla"]
Form = Literal["recurrent", "chunked", "fla"]
Gate = Literal["none", "head", "channel"]  # no decay, one per head, one per channel of the keys

_WIDEST_KEY = 256  # for `auto`
_OLDEST = "0.6.0"
_FAULTY_ON_HOPPER = "3.4.0", "3.7.1"  # Triton versions: the first included, the second not
_INSTALL = "pip install fla-core flash-linear-attention"
# layers and functions with the backward pass of issue 640, and those that TileLang does not cover
_GATED_BY_HEAD = (
    *("Comba", "GatedDeltaNet", "GatedDeltaProduct", "MomAttention", "PrecondGatedDeltaNet"),
    "chunk_gated_delta_rule",
)
_BEYOND_TILELANG = (
    *("MultiScaleRetention", "SimpleGatedLinearAttention", "YOCOGatedRetention"),
    "chunk_simple_gla",
)
_WRITES_ITS_INPUT = ("RWKV7Attention",)  # its backward pass: `fused_addcmul_rwkv7`
_OPERATIONS = {  # the functions that attnlab uses, and the module of `fla` that each is in
    "causal_conv1d": "modules.causal_conv1d",
    "chunk_delta_rule": "ops.delta_rule",
    "chunk_gated_delta_rule": "ops.gated_delta_rule",
    "chunk_gla": "ops.gla",
    "chunk_kda": "ops.kda",
    "chunk_simple_gla": "ops.simple_gla",
    "rms_norm_gated": "modules.norm.fused_norm_gate",
}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts of a machine that decide what can run. None stands for what is not there."""

    capability: tuple[int, int] | None  # of the CUDA device
    fla: str | None  # version of its functions
    layers: str | None  # version of its layers
    triton: str | None
    tilelang: bool
    nvcc: bool


@constant
def unusable_because(device_type: str, function: str = "chunk_gated_delta_rule") -> str | None:
    """Return why its function cannot run on `device_type` here, and the remedy; None if it can.

    Nothing of flash-linear-attention is imported.
    """
    if device_type != "cuda":
        return f"flash-linear-attention needs a CUDA device, not {device_type}"
    return problem(facts(), function)


def layers_are_plain() -> bool:
    """True if layers run by plain definitions on the CPU, since there is no CUDA device."""
    return facts().capability is None


def layer_device() -> str:
    """Return the type of the device that its layers run on here."""
    return "cpu" if layers_are_plain() else "cuda"


def layer_unusable_because(layer: str) -> str | None:
    """Return why its layer cannot run on this machine's `layer_device`; None if it can."""
    found = facts()
    if found.capability is None and layer in ("", *plain.LAYERS):
        found = replace(found, capability=(0, 0))  # no kernel is needed
    if reason := missing(found):
        return reason + f"; on a CPU run {', '.join(plain.LAYERS)}" * (found.capability is None)
    if found.layers is None:
        return f"the layers of flash-linear-attention are not installed: {_INSTALL}"
    return faulty_on_hopper(found, layer)


def writes_its_input(layer: str) -> bool:
    """True if the backward pass of its layer leaves the gradient where the input was.

    Nothing of torch notices. The gradients of whatever else has kept that input are wrong then.
    """
    return layer in _WRITES_ITS_INPUT and not layers_are_plain()


def form_that_runs(
    kernel: Kernel, device: torch.device, dtype: torch.dtype, key_width: int, function: str
) -> Form:
    """Return the form of a recurrence that runs: `auto` by the rule above, any other as named.

    `function` is flash-linear-attention's function for this recurrence.

    Raises:
        ValueError: `fla` was named and cannot run on this device; the message says why.
    """
    if kernel == "auto":
        fits = dtype in (torch.bfloat16, torch.float16) and key_width <= _WIDEST_KEY
        return "fla" if fits and unusable_because(device.type, function) is None else "chunked"
    if kernel == "fla" and (reason := unusable_because(device.type, function)):
        raise ValueError(f"kernel 'fla' cannot run here: {reason}. 'chunked' runs anywhere")
    return kernel


def through_fla(kernel: Kernel, x: Tensor, function: str) -> bool:
    """True if an operation beside the recurrence, on `x`, runs by flash-linear-attention too.

    It does where `function` can run and `kernel` does not name one of the other forms.
    """
    fits = kernel in ("auto", "fla") and x.dtype in (torch.bfloat16, torch.float16)
    return fits and unusable_because(x.device.type, function) is None


def gate_of(g_BTH: Tensor | None, k_BTHK: Tensor) -> Gate:
    """Return the kind of gate, by the shape of its log decays and of the keys."""
    if g_BTH is None:
        return "none"
    return "channel" if g_BTH.ndim == k_BTHK.ndim else "head"


def problem(facts: Facts, function: str = "chunk_gated_delta_rule") -> str | None:
    """Return why a function cannot run on a machine with these facts; None if it can."""
    return missing(facts) or faulty_on_hopper(facts, function)


def missing(facts: Facts) -> str | None:
    """Return what is missing that every part of it needs; None if nothing is."""
    if facts.capability is None:
        return "flash-linear-attention needs CUDA, and torch sees no CUDA device"
    if facts.fla is None:
        return f"flash-linear-attention is not installed: {_INSTALL}"
    if Version(facts.fla) < Version(_OLDEST):
        return f"flash-linear-attention {facts.fla} is older than {_OLDEST}: {_INSTALL} --upgrade"
    if facts.triton is None:
        return "flash-linear-attention needs Triton: install the triton that torch's release pins"
    return None


def faulty_on_hopper(facts: Facts, name: str) -> str | None:
    """Return why the backward pass of this layer or function is faulty; None if it is right.

    Nothing may be missing.
    """
    assert facts.capability is not None
    assert facts.triton is not None
    first, end = _FAULTY_ON_HOPPER
    if name not in (*_GATED_BY_HEAD, *_BEYOND_TILELANG):
        return None
    if facts.capability[0] != 9 or not Version(first) <= Version(facts.triton) < Version(end):
        return None
    faulty = (
        "flash-linear-attention's backward pass with a decay per head is faulty on Hopper with "
        f"Triton {facts.triton} (its issue 640)"
    )
    if name in _BEYOND_TILELANG:
        return f"{faulty}, and {name} even through TileLang: use Triton {end} or newer"
    if not facts.tilelang:
        return f"{faulty}: pip install tilelang, or use Triton {end} or newer"
    if not facts.nvcc:
        return (
            f"{faulty}, and TileLang finds no nvcc: put nvcc on PATH, or use Triton {end} or newer"
        )
    return None


@cache
def facts() -> Facts:
    """Return the facts of this machine, determined once."""
    clone = fla_clone.in_use()
    layers = package_version("flash-linear-attention")
    if clone is not None:
        layers = clone.version if (clone.package / "layers").is_dir() else None
    return Facts(
        capability=torch.cuda.get_device_capability() if torch.cuda.is_available() else None,
        fla=clone.version if clone else package_version("fla-core") or layers,
        layers=layers,
        triton=package_version("triton"),
        tilelang=importlib.util.find_spec("tilelang") is not None,
        nvcc=bool(shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")),
    )


@with_types
def use_fla(path: Path | str | None = None) -> None:
    """Take flash-linear-attention from a local clone in this process.

    Args:
        path: the clone's folder; None: the environment variable ATTNLAB_FLA_PATH. If neither is
            set, the installed package is used.

    Raises:
        ValueError: there is no clone in that folder, or this process already uses another `fla`.
    """
    chosen = path or os.environ.get("ATTNLAB_FLA_PATH")
    if chosen:
        fla_clone.use(Path(chosen))
        facts.cache_clear()


def clone_path() -> Path | None:
    """Return the folder of the clone that this process uses, for the processes that it starts."""
    clone = fla_clone.in_use()
    return clone and clone.path


def function(name: str) -> Callable[..., Any]:
    """Import and return its function of that name.

    Raises:
        ValueError: the function cannot run here; the message says why.
    """
    if reason := unusable_because("cuda", name):
        raise ValueError(reason)
    return getattr(fla_clone.imported(f"fla.{_OPERATIONS[name]}"), name)


def layer_class(name: str) -> type[nn.Module]:
    """Import and return its layer of this name.

    Raises:
        ValueError: there is no such layer, or it cannot run here; the message says why.
    """
    if reason := layer_unusable_because(name):
        raise ValueError(reason)
    names = layer_names()
    if name not in names:
        known = suggestion(name, names)
        raise ValueError(f"flash-linear-attention {facts().layers} has no layer {name!r}{known}")
    if layers_are_plain():
        try:
            plain.use()
        except (ImportError, AttributeError) as error:
            why = f"its definitions are not those of version {_OLDEST}: {error}"
            raise ValueError(f"its layers cannot run on a CPU here: {why}") from error
    return getattr(_layers(), name)


def layer_names() -> list[str]:
    """Return the names of its layers. Raise ValueError if they cannot be imported."""
    return sorted(_layers().__all__)


def new_cache() -> Any:
    """Return an empty cache for its layers to decode with."""
    return fla_clone.imported("fla.models.utils").Cache()


def _layers() -> Any:
    try:
        with warnings.catch_warnings():  # about optional packages that few layers need
            warnings.simplefilter("ignore")
            return fla_clone.imported("fla.layers")
    except ImportError as error:
        raise ValueError(
            f"the layers of flash-linear-attention cannot be imported: {error}"
        ) from error


def version() -> dict[str, Any]:
    """Return where flash-linear-attention comes from and its version, for a run's record."""
    clone, found = fla_clone.in_use(), facts().fla
    if clone is not None:
        return {
            "fla_source": "local_clone",
            "fla_version": clone.version,
            "fla_commit": clone.commit,
            "fla_dirty": clone.dirty,
        }
    return {"fla_source": "installed" if found else None, "fla_version": found}
