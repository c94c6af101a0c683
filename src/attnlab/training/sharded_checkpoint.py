"""Checkpoints of large runs on several devices: each process writes its shards of the tensors.

    checkpoints/step-000500/{shard-00001-..., shard-00002-..., ...}.safetensors, state.json

torch.distributed.checkpoint writes and reads the files, in its safetensors format. Any number of
processes, or one alone, reads what any number has written, each its part. Nothing is executed.
"""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor

from attnlab.device.ranks import Ranks
from attnlab.record.atomic_files import DamagedError
from attnlab.record.verified_folder import write_verified

WHOLE_BYTES = 8 * 2**30  # of parameters and moments: above, several processes write their shards

Tensors = dict[str, Tensor]
Empty = Callable[[str, torch.Size, torch.dtype], Tensor]  # a tensor to be filled, by its name


def is_sharded(n_parameters: int, processes: int) -> bool:
    """True if several processes write the checkpoints of such a model in shards."""
    return processes > 1 and 12 * n_parameters > WHOLE_BYTES


def write_shards(
    folder: Path, sections: Mapping[str, Tensors], state: Mapping[str, Any], ranks: Ranks
) -> None:
    """Write a verified folder of tensors, by section and name. All processes call this.

    The tensors are on the host: DTensors, or equal in all processes. Raises OSError in all
    processes if one of them cannot write; nothing of the folder is then left.
    """
    tensors = {f"{of}.{name}": t for of, each in sections.items() for name, t in each.items()}
    if not ranks.writes:
        _write_own(None, tensors)
        return
    begun = False

    def fill(unfinished: Path) -> None:
        nonlocal begun
        begun = True
        _write_own(unfinished, tensors)

    try:
        write_verified(folder, {".": fill}, state)
    finally:
        if not begun:  # the others wait for the name of the folder
            dist.broadcast_object_list([None])


def _write_own(folder: Path | None, tensors: Tensors) -> None:
    from torch.distributed.checkpoint.api import CheckpointException  # a second to load
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    told = [folder]  # known to the first process alone
    dist.broadcast_object_list(told)
    if told[0] is None:
        raise OSError("the first process could not make its folder")
    writer = HuggingFaceStorageWriter(str(told[0]), save_distributed=True)
    try:
        save(dict(tensors), storage_writer=writer)
    except CheckpointException as error:
        failures = [failure for failure, _ in error.failures.values()]
        of_disk = [f for f in failures if isinstance(f, OSError | SafetensorError)]
        kind = OSError if of_disk else RuntimeError
        raise kind(*(of_disk or failures)[0].args) from error


def has_shards(folder: Path) -> bool:
    """True if a checkpoint's folder was written in shards."""
    return any(folder.glob("shard-*.safetensors"))


def read_shards(folder: Path, empty: Empty | None = None) -> dict[str, Tensors]:
    """Return the tensors of a verified folder, by section and name.

    `empty` returns a tensor that is filled with the part of the whole one that this process needs;
    None: all processes get whole tensors. Raises DamagedError if there is a part missing.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    sections = dict[str, Tensors]()
    reader = HuggingFaceStorageReader(str(folder))
    targets = Tensors()
    for key, of in reader.read_metadata().state_dict_metadata.items():
        section, _, name = key.partition(".")
        whole: Any = of
        if sum(chunk.sizes.numel() for chunk in whole.chunks) != whole.size.numel():
            raise DamagedError(f"parts of {key} are missing")
        make = empty or _whole
        target = make(name, whole.size, whole.properties.dtype)
        sections.setdefault(section, {})[name] = targets[key] = target
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            load(targets, storage_reader=reader, no_dist=True)  # each process reads alone
    except CheckpointException as error:
        raise DamagedError(f"its shards cannot be read: {error}") from error
    return sections


def _whole(_name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)
