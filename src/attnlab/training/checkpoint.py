"""Checkpoints: what a run needs to go on, and the best weights it has had.

    checkpoints/step-000500/{model.safetensors, optimizer.safetensors, best.safetensors, state.json}

A checkpoint holds all that was true after its step, the weights of the lowest validation loss until
then among it, so that a run that goes on from it is in every respect where it was. There is no
`best` where those weights are the ones of the step itself.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from attnlab.record.atomic_files import UNFINISHED, remove_folder
from attnlab.record.verified_folder import DamagedError, read_verified, write_verified

KEPT = 2  # the newest, and the one before in case the newest is damaged


class Best(NamedTuple):
    """The weights of the lowest validation loss so far."""

    step: int
    loss: float  # nats a token
    model: dict[str, Tensor]  # the state dict


class Checkpoint(NamedTuple):
    step: int
    model: dict[str, Tensor]  # its state dict
    optimizer: dict[str, Tensor]  # `TrainingStep.state`
    seconds: dict[str, float]  # where the run's time went so far
    best: Best | None  # None where the run keeps its last checkpoint alone


class Found(NamedTuple):
    """What a folder of checkpoints has for a run."""

    checkpoint: Checkpoint | None  # the newest that can be used
    passed_over: tuple[str, ...]  # newer ones, each with why it cannot

    @property
    def note(self) -> str | None:
        """What a person should know; None where the newest was as it should be."""
        if not self.passed_over:
            return None
        used = self.checkpoint
        then = "there is no other" if used is None else f"that of step {used.step} is used instead"
        return f"checkpoint {'; '.join(self.passed_over)}; {then}"


def save(folder: Path, checkpoint: Checkpoint, identity: str) -> None:
    """Write a checkpoint of the run `identity` into `folder`; keep the newest `KEPT`.

    Raises OSError, as on a full disk; the checkpoints before it are then as they were.
    """
    best = checkpoint.best
    files = {
        "model.safetensors": tensor_file(checkpoint.model),
        "optimizer.safetensors": tensor_file(checkpoint.optimizer),
    }
    if best is not None and best.step != checkpoint.step:
        files["best.safetensors"] = tensor_file(best.model)
    state = {
        "step": checkpoint.step,
        "identity": identity,
        "seconds": checkpoint.seconds,
        "best": best and {"step": best.step, "loss": best.loss},
    }
    try:
        write_verified(folder / f"step-{checkpoint.step:06d}", files, state)
    except OSError as error:
        before = [path.name for path in _folders(folder)]
        left = f"{before[-1]} is whole" if before else "there is none before it"
        raise OSError(
            f"the checkpoint of step {checkpoint.step} could not be written ({error}); {left}, "
            "and the same command goes on from there"
        ) from error
    tidy(folder)


def tensor_file(tensors: Mapping[str, Tensor]) -> Callable[[Path], None]:
    """Return a function that writes the tensors to a path as safetensors, for `write_verified`.

    It raises OSError if the file cannot be written.
    """

    def write(path: Path) -> None:
        on_host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            save_file(on_host, path)
        except SafetensorError as error:  # contains the message of the system's error
            raise OSError(f"{path.name}: {error}") from error

    return write


def tidy(folder: Path) -> None:
    """Remove what a kill left unfinished, and all checkpoints but the newest `KEPT`."""
    for unfinished in folder.glob(f"step-*{UNFINISHED}"):
        shutil.rmtree(unfinished)
    for old in _folders(folder)[:-KEPT]:
        remove_folder(old)


def load_newest(folder: Path, identity: str) -> Found:
    """The newest checkpoint of this run that is whole and unaltered."""
    passed_over = list[str]()
    for candidate in reversed(_folders(folder)):
        try:
            return Found(_load(candidate, identity), tuple(passed_over))
        except DamagedError as error:
            passed_over.append(f"{candidate.name}: {error}")
    return Found(None, tuple(passed_over))


def _load(folder: Path, identity: str) -> Checkpoint:
    state: dict[str, Any] = read_verified(folder)
    if state["identity"] != identity:
        raise DamagedError("it is of another run")
    step, best = state["step"], state["best"]
    model = load_file(folder / "model.safetensors")
    if best is not None:
        at_best = model if best["step"] == step else load_file(folder / "best.safetensors")
        best = Best(best["step"], best["loss"], at_best)
    optimizer = load_file(folder / "optimizer.safetensors")
    return Checkpoint(step, model, optimizer, state["seconds"], best)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.suffix != UNFINISHED)
