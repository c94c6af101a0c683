"""What runs on this machine, what does not, and what would make it run.

A finding says what was looked at, what was found, and, where something is missing, what to do. The
default study, `quickstart`, needs all that is marked `needed`.
"""

import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from attnlab.analysis.numbers import size
from attnlab.checks.suite import fitting_width
from attnlab.data import DataConfig, DataError, Places
from attnlab.device.environment import usable_cores
from attnlab.kernels import flash_linear_attention as fla
from attnlab.kernels import flash_linear_attention_clone as fla_clone
from attnlab.mechanism import MechanismConfig
from attnlab.mechanisms.fla_layer import fla_layer
from attnlab.study.study import shipped
from attnlab.version import __version__, package_version

LEAST_FREE_BYTES = 1 << 30  # for the checkpoints of the default study, with room to spare
DEFAULT_STUDY = "quickstart"


class Finding(NamedTuple):
    """One thing looked at."""

    what: str
    found: str
    remedy: str = ""  # what to do; empty where all is well
    needed: bool = False  # whether the default study cannot run without

    @property
    def well(self) -> bool:
        return not self.remedy


def examine(places: Places, out: Path) -> list[Finding]:
    """Look at everything. `out` is where results would go; nothing is downloaded or left behind."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return [
        *_software(),
        *_devices(),
        *_kernels(device),
        *_data(places),
        _cache(places),
        _disk(out),
    ]


def can_run(findings: list[Finding]) -> bool:
    """Whether the default study can run."""
    return all(finding.well or not finding.needed for finding in findings)


def _software() -> Iterator[Finding]:
    yield Finding("attnlab", f"{__version__} on Python {platform.python_version()}")
    yield Finding("torch", f"{torch.__version__}, built for {torch.version.cuda or 'CPUs alone'}")
    triton = package_version("triton")
    if triton or not torch.cuda.is_available():
        yield Finding("triton", triton or "not installed, and not needed without CUDA")
    else:
        yield Finding("triton", "not installed", "install the triton that torch's release pins")
    reason = fla.unusable_because("cuda")
    found = _which_fla()
    fell_back = "Gated DeltaNet and its family run attnlab's own kernels instead"
    yield Finding(
        "flash-linear-attention",
        f"{found}; usable" if reason is None else f"{found}; {fell_back}",
        reason if reason and torch.cuda.is_available() else "",
    )
    yield _fla_layers()


def _which_fla() -> str:
    """Its version, and where from where it is not the installed one."""
    clone = fla_clone.in_use()
    if clone is None:
        return package_version("flash-linear-attention") or "not installed"
    commit = f"commit {clone.commit[:12]}" if clone.commit else "in no git repository"
    changes = ", with changes" if clone.dirty else ""
    return f"{clone.version} from the local clone {clone.path}, {commit}{changes}"


def _fla_layers() -> Finding:
    what = "fla:NAME"
    reason = fla.layer_unusable_because("")
    if reason is None:
        try:
            names = fla.layer_names()
        except ValueError as error:
            reason = str(error)
        else:
            unusable = [name for name in names if not _is_a_mechanism(name)]
            usable = f"{len(names) - len(unusable)} of {len(names)} layers usable as mechanisms"
            if not unusable:
                return Finding(what, usable)
            why = f"attnlab check fla:{unusable[0]} says why"
            return Finding(what, f"{usable}; not {', '.join(unusable)}", why)
    remedy = reason if torch.cuda.is_available() else ""
    return Finding(what, "no layer of flash-linear-attention can be a mechanism here", remedy)


def _is_a_mechanism(layer: str) -> bool:
    """Whether the layer can be made with its own defaults, at some width."""
    if fla.layer_unusable_because(layer):
        return False
    try:
        fitting_width(fla_layer(layer)())
    except (ValueError, TypeError):  # it is part of another, needs a package, a setting, ...
        return False
    return True


def _devices() -> Iterator[Finding]:
    here = f"{platform.machine()}, {usable_cores()} cores, {torch.get_num_threads()} threads"
    yield Finding("CPU", here)
    if not torch.cuda.is_available():
        yield Finding("CUDA", "torch sees no CUDA device; studies run on the CPU")
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        memory = size(properties.total_memory)
        capability = f"compute capability {properties.major}.{properties.minor}"
        yield Finding(f"cuda:{i}", f"{properties.name}, {memory}, {capability}, driver {_driver()}")


def _kernels(device: torch.device) -> Iterator[Finding]:
    """Which kernel each mechanism's `auto` means on this machine, in training."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for kind, cls in sorted(MechanismConfig.kinds.items()):
        config = cls()
        assert isinstance(config, MechanismConfig)
        named = [config.build(128, dropout).kernel_on(device, dtype) for dropout in (0.0, 0.1)]
        with_dropout = "" if named[0] == named[1] else f"; with dropout {named[1]}"
        yield Finding(kind, f"kernel {named[0]} on {device.type}{with_dropout}")


def _data(places: Places) -> Iterator[Finding]:
    """Each source once, with the studies that read it."""
    sources, studies_by_source = dict[DataConfig, Finding](), dict[Finding, list[str]]()
    for name, study in shipped().items():
        for data in dict.fromkeys(config.data for config in study.variants.values()):
            if data not in sources:
                sources[data] = _source(data, places)
            studies = studies_by_source.setdefault(sources[data], [])
            studies.extend([name] if name not in studies else [])
    for source, studies in studies_by_source.items():
        what = f"data of {', '.join(studies)}"
        yield source._replace(what=what, needed=DEFAULT_STUDY in studies)


def _source(data: DataConfig, places: Places) -> Finding:
    try:
        texts = data.texts(places)
    except DataError as error:
        lines = str(error).splitlines()
        return Finding("", f"{data.kind()}: {lines[0].partition(';')[0]}", lines[-1])
    return Finding("", f"{data.kind()}: {texts.origin}")


def _cache(places: Places) -> Finding:
    folder = next(path for path in (places.cache, *places.cache.parents) if path.exists())
    if os.access(folder, os.W_OK):
        return Finding("cache", str(places.cache), needed=True)
    remedy = "name another folder with ATTNLAB_CACHE=DIR"
    return Finding("cache", f"{places.cache} cannot be written", remedy, needed=True)


def _disk(out: Path) -> Finding:
    absolute = out.absolute()
    folder = next(path for path in (absolute, *absolute.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    found = f"{size(free)} free for {out}"
    least = size(LEAST_FREE_BYTES)
    remedy = "" if free >= LEAST_FREE_BYTES else f"free {least}, or choose another place with --out"
    return Finding("disk", found, remedy, needed=True)


def _driver() -> str:
    """Version of NVIDIA's driver, where the system tells."""
    path = Path("/proc/driver/nvidia/version")
    words = path.read_text().split() if path.exists() else []
    return next((word for word in words if word[:1].isdigit() and "." in word), "unknown")
