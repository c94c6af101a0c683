"""`attnlab.doctor`: the parts of attnlab that work on this machine, and remedies for the others."""

import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from attnlab.analysis.numbers import size
from attnlab.checks.suite import fitting_width
from attnlab.config.problem import with_types
from attnlab.data import DataConfig, DataError, Places
from attnlab.data.arithmetic import Arithmetic
from attnlab.data.task import Task
from attnlab.device.machine import usable_cores
from attnlab.kernels import flash_linear_attention as fla
from attnlab.kernels import flash_linear_attention_clone as fla_clone
from attnlab.mechanism import MechanismConfig
from attnlab.mechanisms.fla_layer import fla_layer
from attnlab.study.targets import shipped
from attnlab.version import __version__, package_version

MIN_FREE_BYTES = 1 << 30  # more than the checkpoints of the default study take
DEFAULT_STUDY = "quickstart"


class Finding(NamedTuple):
    """The state of one part: a package, a device, a kernel, data or disk space."""

    part: str
    found: str
    remedy: str = ""  # instructions; empty if the part works
    required: bool = False  # True if the default study cannot run without it

    @property
    def ok(self) -> bool:
        """True if the part works."""
        return not self.remedy


@with_types
def doctor(
    *,
    out: Path | str = "results",
    data: Path | str | None = None,
    cache: Path | str | None = None,
    fla_path: Path | str | None = None,
) -> list[Finding]:
    """Examine packages, devices, kernels, data and disk space. Nothing is downloaded or written.

    Args:
        out: the folder of results.
        data: the folder of your data, ATTNLAB_DATA by default.
        cache: the folder of derived files, ATTNLAB_CACHE or ~/.cache/attnlab by default.
        fla_path: a local clone of flash-linear-attention, ATTNLAB_FLA_PATH by default.

    Returns:
        One finding per part, with a remedy if the part does not work. The default study,
        `quickstart`, needs the parts that are `required`; see `can_run`.

    Raises:
        ValueError: there is no such clone of flash-linear-attention.
    """
    fla.use_fla(fla_path)
    places = Places.from_environment(data, cache)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return [
        *_software(),
        *_devices(),
        *_kernels(device),
        *_data(places),
        _cache(places),
        _disk(Path(out)),
    ]


def can_run(findings: list[Finding]) -> bool:
    """Return True if the default study can run."""
    return all(finding.ok or not finding.required for finding in findings)


def _software() -> Iterator[Finding]:
    yield Finding("attnlab", f"{__version__} on Python {platform.python_version()}")
    built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    yield Finding("torch", f"{torch.__version__}, built for {built_for}")
    triton = package_version("triton")
    if triton or not torch.cuda.is_available():
        yield Finding("triton", triton or "not installed; not needed without CUDA")
    else:
        yield Finding("triton", "not installed", "install the triton version that torch requires")
    reason = fla.unusable_because("cuda")
    found = _which_fla()
    fallback = "gated_delta_net and its relatives use attnlab's own kernels"
    yield Finding(
        "flash-linear-attention",
        f"{found}; usable" if reason is None else f"{found}; {fallback}",
        reason if reason and torch.cuda.is_available() else "",
    )
    yield _fla_layers()


def _which_fla() -> str:
    """Return the version of flash-linear-attention, and its folder if it is a local clone."""
    clone = fla_clone.in_use()
    if clone is None:
        return package_version("flash-linear-attention") or "not installed"
    commit = f"commit {clone.commit[:12]}" if clone.commit else "not in a git repository"
    changes = ", modified" if clone.dirty else ""
    return f"{clone.version} from the local clone {clone.path}, {commit}{changes}"


def _fla_layers() -> Finding:
    part = "fla:NAME"
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
                return Finding(part, usable)
            why = f"run attnlab check fla:{unusable[0]} to see the reason"
            return Finding(part, f"{usable}; not {', '.join(unusable)}", why)
    remedy = reason if torch.cuda.is_available() else ""
    return Finding(part, "no layer of flash-linear-attention can be used as a mechanism", remedy)


def _is_a_mechanism(layer: str) -> bool:
    """Return True if the layer can be built with its own defaults, at some width."""
    if fla.layer_unusable_because(layer):
        return False
    try:
        fitting_width(fla_layer(layer)())
    except (ValueError, TypeError):  # it is part of another layer, or needs a package or a setting
        return False
    return True


def _devices() -> Iterator[Finding]:
    here = (
        f"{platform.machine()}, {usable_cores()} cores, {torch.get_num_threads()} threads of torch"
    )
    yield Finding("CPU", here)
    if not torch.cuda.is_available():
        yield Finding("CUDA", "torch finds no CUDA device; studies run on the CPU")
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        memory = size(properties.total_memory)
        capability = f"compute capability {properties.major}.{properties.minor}"
        yield Finding(f"cuda:{i}", f"{properties.name}, {memory}, {capability}, driver {_driver()}")


def _kernels(device: torch.device) -> Iterator[Finding]:
    """Yield the kernel that `auto` selects for each mechanism in training, on this device."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for kind, cls in sorted(MechanismConfig.kinds.items()):
        config = cls()
        assert isinstance(config, MechanismConfig)
        named = [config.build(128, dropout).kernel_on(device, dtype) for dropout in (0.0, 0.1)]
        with_dropout = "" if named[0] == named[1] else f"; with dropout {named[1]}"
        yield Finding(kind, f"kernel {named[0]} on {device.type}{with_dropout}")


def _data(places: Places) -> Iterator[Finding]:
    """Yield one finding per source of data, with the studies that read it."""
    sources, studies_by_source = dict[DataConfig, Finding](), dict[Finding, list[str]]()
    for name, study in shipped().items():
        for data in dict.fromkeys(config.data for config in study.variants.values()):
            if data not in sources:
                sources[data] = _source(data, places)
            studies = studies_by_source.setdefault(sources[data], [])
            studies.extend([name] if name not in studies else [])
    for source, studies in studies_by_source.items():
        part = f"data of {', '.join(studies)}"
        yield source._replace(part=part, required=DEFAULT_STUDY in studies)


def _source(data: DataConfig, places: Places) -> Finding:
    if isinstance(data, Task):
        return Finding("", "tasks: made by their generators")
    if isinstance(data, Arithmetic):
        return Finding("", f"{data.kind()}: made by its generator")  # which takes seconds
    try:
        texts = data.texts(places)
    except DataError as error:
        found, remedy = error.parts or ("unfit", str(error))
        return Finding("", f"{data.kind()}: {found}", remedy)
    return Finding("", f"{data.kind()}: {texts.origin}")


def _cache(places: Places) -> Finding:
    folder = next(path for path in (places.cache, *places.cache.parents) if path.exists())
    if os.access(folder, os.W_OK):
        return Finding("cache", str(places.cache), required=True)
    remedy = "use another folder: ATTNLAB_CACHE=DIR"
    return Finding("cache", f"{places.cache} is not writable", remedy, required=True)


def _disk(out: Path) -> Finding:
    absolute = out.absolute()
    folder = next(path for path in (absolute, *absolute.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    found = f"{size(free)} free for {out}"
    least = size(MIN_FREE_BYTES)
    remedy = "" if free >= MIN_FREE_BYTES else f"free {least}, or use another folder with --out"
    return Finding("disk", found, remedy, required=True)


def _driver() -> str:
    """Return the version of NVIDIA's driver, or "unknown"."""
    path = Path("/proc/driver/nvidia/version")
    words = path.read_text().split() if path.exists() else []
    return next((word for word in words if word[:1].isdigit() and "." in word), "unknown")
