"""Checkpoints: model and optimizer as safetensors, and a small JSON file; no code is loaded.

    checkpoints/step-000500/{model.safetensors, optimizer.safetensors, state.json}

A checkpoint is written under a temporary name and renamed when it is whole, so a kill at any
instant leaves the one before. `state.json` holds the SHA-256 of the other files.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import load_file, save_file
from torch import Tensor

KEPT = 2  # the newest, and the one before in case the newest is damaged


class Checkpoint(NamedTuple):
    step: int
    model: dict[str, Tensor]  # its state dict
    optimizer: dict[str, Tensor]  # `TrainingStep.state`
    seconds: dict[str, float]  # where the run's time went so far


def save(folder: Path, checkpoint: Checkpoint, identity: str) -> None:
    """Write a checkpoint of the run `identity` into `folder`; keep the newest `KEPT`."""
    final = folder / f"step-{checkpoint.step:06d}"
    temporary = final.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, tensors in (("model", checkpoint.model), ("optimizer", checkpoint.optimizer)):
        on_host = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        save_file(on_host, temporary / f"{name}.safetensors")
    sums = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
    state = {
        "step": checkpoint.step,
        "identity": identity,
        "seconds": checkpoint.seconds,
        "sha256": sums,
    }
    (temporary / "state.json").write_text(json.dumps(state, indent=2) + "\n")
    for path in temporary.iterdir():
        _flush(path)
    shutil.rmtree(final, ignore_errors=True)  # a damaged one of the same step
    temporary.rename(final)
    _flush(folder)
    for old in _folders(folder)[:-KEPT]:
        shutil.rmtree(old)


def load_newest(folder: Path, identity: str) -> Checkpoint | None:
    """The newest checkpoint of this run that is whole and undamaged; None where there is none."""
    for candidate in reversed(_folders(folder)):
        try:
            state = json.loads((candidate / "state.json").read_text())
            sums = {name: _sha256(candidate / name) for name in state["sha256"]}
        except (OSError, ValueError, KeyError):
            continue
        if sums == state["sha256"] and state["identity"] == identity:
            return Checkpoint(
                step=state["step"],
                model=load_file(candidate / "model.safetensors"),
                optimizer=load_file(candidate / "optimizer.safetensors"),
                seconds=state["seconds"],
            )
    return None


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.suffix != ".tmp")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Have the file or folder on disk, not only in the system's memory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
