"""Whether flash-linear-attention can run here, and its functions, imported only when it can.

Its kernels need CUDA and Triton. On Hopper (compute capability 9.x) its gated-delta backward
computes wrong gradients with Triton 3.4.0 to 3.7.0 (its issue 640); there it is right only through
TileLang, which compiles with nvcc. Versions before 0.6.0 do not know where that ends.

Yang and Zhang 2024 (github.com/fla-org/flash-linear-attention).
"""

import importlib
import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from packaging.version import Version

from attnlab.version import package_version

_OLDEST = "0.6.0"
_WRONG_ON_HOPPER = "3.4.0", "3.7.1"  # Triton, from the first to before the second
_INSTALL = "pip install 'attnlab[fla]'"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the rule looks at. A version or a capability is None where there is none."""

    capability: tuple[int, int] | None  # of the CUDA device
    fla: str | None
    triton: str | None
    tilelang: bool
    nvcc: bool


def unusable_because(device_type: str) -> str | None:
    """Why flash-linear-attention cannot run on this machine's `device_type`, None where it can.

    The sentence also says what would make it run. Nothing of flash-linear-attention is imported.
    """
    if device_type != "cuda":
        return f"flash-linear-attention needs a CUDA device, not {device_type}"
    return problem(facts())


def problem(facts: Facts) -> str | None:
    """The rule itself, of the facts alone."""
    if facts.capability is None:
        return "flash-linear-attention needs CUDA, and torch sees no CUDA device"
    if facts.fla is None:
        return f"flash-linear-attention is not installed: {_INSTALL}"
    if Version(facts.fla) < Version(_OLDEST):
        return f"flash-linear-attention {facts.fla} is older than {_OLDEST}: {_INSTALL} --upgrade"
    if facts.triton is None:
        return "flash-linear-attention needs Triton: install the triton that torch's release pins"
    first, end = _WRONG_ON_HOPPER
    hopper = facts.capability[0] == 9
    if not hopper or not Version(first) <= Version(facts.triton) < Version(end):
        return None
    wrong = (
        "flash-linear-attention computes wrong gated-delta gradients on Hopper with Triton "
        f"{facts.triton} (its issue 640)"
    )
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
    return Facts(
        capability=torch.cuda.get_device_capability() if torch.cuda.is_available() else None,
        fla=package_version("fla-core") or package_version("flash-linear-attention"),
        triton=package_version("triton"),
        tilelang=importlib.util.find_spec("tilelang") is not None,
        nvcc=bool(shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")),
    )


def chunk_gated_delta_rule() -> Callable[..., Any]:
    """Its function of that name, imported now.

    Raises:
        ValueError: it cannot run here; says why.
    """
    if reason := unusable_because("cuda"):
        raise ValueError(reason)
    return importlib.import_module("fla.ops.gated_delta_rule").chunk_gated_delta_rule


def version() -> dict[str, str | None]:
    """For a run's record: where flash-linear-attention comes from, and its version."""
    found = facts().fla
    return {"fla_source": "installed" if found else None, "fla_version": found}
