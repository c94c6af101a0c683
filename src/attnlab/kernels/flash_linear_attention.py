"""Whether flash-linear-attention can run here, and what is taken from it where it can.

Its kernels need CUDA and Triton. On Hopper (compute capability 9.x) its backward with one gate a
head computes wrong gradients with Triton 3.4.0 to 3.7.0 (its issue 640). There that of the gated
delta rule is right only through TileLang, which compiles with nvcc, and that of simple gated linear
attention, which keeps its states wide, not even so. Versions before 0.6.0 do not know where that
ends. Layers whose backward is another are as good there as elsewhere.

It comes as two packages: `fla-core` has the functions, `flash-linear-attention` the layers; or as a
local clone that has both (`fla_clone`).

Yang and Zhang 2024 (github.com/fla-org/flash-linear-attention).
"""

import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version
from torch import nn

from attnlab.config import suggestion
from attnlab.kernels import flash_linear_attention_clone as fla_clone
from attnlab.kernels.compiled import constant
from attnlab.version import package_version

_OLDEST = "0.6.0"
_WRONG_ON_HOPPER = "3.4.0", "3.7.1"  # Triton, from the first to before the second
_INSTALL = "pip install 'attnlab[fla]'"
# layers and functions whose backward is the one of issue 640, and those that TileLang does not take
_GATED_BY_HEAD = (
    *("Comba", "GatedDeltaNet", "GatedDeltaProduct", "MomAttention", "PrecondGatedDeltaNet"),
    "chunk_gated_delta_rule",
)
_BEYOND_TILELANG = ("SimpleGatedLinearAttention", "YOCOGatedRetention", "chunk_simple_gla")
_OPERATIONS = {  # its functions that are run here, and the part of `fla` that each is in
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
    """What the rule looks at. A version or a capability is None where there is none."""

    capability: tuple[int, int] | None  # of the CUDA device
    fla: str | None
    layers: str | None  # the package that has its layers
    triton: str | None
    tilelang: bool
    nvcc: bool


@constant
def unusable_because(device_type: str, function: str = "chunk_gated_delta_rule") -> str | None:
    """Why its function cannot run on this machine's `device_type`, None where it can.

    The sentence also says what would make it run. Nothing of flash-linear-attention is imported.
    """
    if device_type != "cuda":
        return f"flash-linear-attention needs a CUDA device, not {device_type}"
    return problem(facts(), function)


def layer_unusable_because(layer: str) -> str | None:
    """Why its layer of this name cannot run on this machine's CUDA device, None where it can."""
    found = facts()
    if reason := missing(found):
        return reason
    if found.layers is None:
        return f"the layers of flash-linear-attention are not installed: {_INSTALL}"
    return wrong_on_hopper(found, layer)


def problem(facts: Facts, function: str = "chunk_gated_delta_rule") -> str | None:
    """The rule of a function, of the facts alone."""
    return missing(facts) or wrong_on_hopper(facts, function)


def missing(facts: Facts) -> str | None:
    """What no part of it can do without."""
    if facts.capability is None:
        return "flash-linear-attention needs CUDA, and torch sees no CUDA device"
    if facts.fla is None:
        return f"flash-linear-attention is not installed: {_INSTALL}"
    if Version(facts.fla) < Version(_OLDEST):
        return f"flash-linear-attention {facts.fla} is older than {_OLDEST}: {_INSTALL} --upgrade"
    if facts.triton is None:
        return "flash-linear-attention needs Triton: install the triton that torch's release pins"
    return None


def wrong_on_hopper(facts: Facts, name: str) -> str | None:
    """Whether gradients of this layer or function would be wrong, where nothing is missing."""
    assert facts.capability is not None
    assert facts.triton is not None
    first, end = _WRONG_ON_HOPPER
    if name not in (*_GATED_BY_HEAD, *_BEYOND_TILELANG):
        return None
    if facts.capability[0] != 9 or not Version(first) <= Version(facts.triton) < Version(end):
        return None
    wrong = (
        "flash-linear-attention computes wrong gradients of gates on Hopper with Triton "
        f"{facts.triton} (its issue 640)"
    )
    if name in _BEYOND_TILELANG:
        return f"{wrong}, and {name} not even through TileLang: use Triton {end} or newer"
    if not facts.tilelang:
        return f"{wrong}: pip install tilelang, or use Triton {end} or newer"
    if not facts.nvcc:
        return (
            f"{wrong}, and TileLang finds no nvcc: put nvcc on PATH, or use Triton {end} or newer"
        )
    return None


@cache
def facts() -> Facts:
    """The facts of this machine, looked up once."""
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
    """Of the clone that this process uses, for the processes that it starts."""
    clone = fla_clone.in_use()
    return clone and clone.path


def function(name: str) -> Callable[..., Any]:
    """Its function of that name, imported now.

    Raises:
        ValueError: it cannot run here; says why.
    """
    if reason := unusable_because("cuda", name):
        raise ValueError(reason)
    return getattr(fla_clone.imported(f"fla.{_OPERATIONS[name]}"), name)


def layer_class(name: str) -> type[nn.Module]:
    """Its layer of this name.

    Raises:
        ValueError: there is none, or it cannot run here; says why.
    """
    if reason := layer_unusable_because(name):
        raise ValueError(reason)
    names = layer_names()
    if name not in names:
        known = suggestion(name, names)
        raise ValueError(f"flash-linear-attention {facts().layers} has no layer {name!r}{known}")
    return getattr(_layers(), name)


def layer_names() -> list[str]:
    """Of its layers, where it can run. Raises ValueError where one of its own needs is missing."""
    return sorted(_layers().__all__)


def new_cache() -> Any:
    """An empty one of the caches that its layers decode with."""
    return fla_clone.imported("fla.models.utils").Cache()


def _layers() -> Any:
    try:
        with warnings.catch_warnings():  # at what it does without, which concerns few layers
            warnings.simplefilter("ignore")
            return fla_clone.imported("fla.layers")
    except ImportError as error:
        raise ValueError(f"the layers of flash-linear-attention do not load: {error}") from error


def version() -> dict[str, Any]:
    """For a run's record: where flash-linear-attention comes from, and its version."""
    clone, found = fla_clone.in_use(), facts().fla
    if clone is not None:
        return {
            "fla_source": "local_clone",
            "fla_version": clone.version,
            "fla_commit": clone.commit,
            "fla_dirty": clone.dirty,
        }
    return {"fla_source": "installed" if found else None, "fla_version": found}
