"""Checkpoints: the complete state of a run after a step, and its best weights so far.

    checkpoints/step-000500/{model.safetensors, optimizer.safetensors, best.safetensors, state.json}
    checkpoints/step-000800-stable/...: before the decay of the learning rate, and stays

A run that continues from a checkpoint gets the same bits as one that was not interrupted, on a CPU
with the number of threads that is recorded. Tied parameters are written once per name.
`best.safetensors` has the weights of the lowest validation loss so far. It is left out if those are
the weights of the step itself. `sharded_checkpoint` has the files of large runs on several devices.

A run that keeps no more than its weights (`train.keep=weights`) ends with

    checkpoints/weights-000500/{model.safetensors, state.json}

whose matrices are bfloat16: a sixth of a checkpoint. It can be sampled and exported, not continued.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from attnlab.device.ranks import Ranks
from attnlab.record import RunFolder, digest_of
from attnlab.record.atomic_files import DamagedError, WriteError, remove_folder
from attnlab.record.temporary_files import remove_temporary
from attnlab.record.verified_folder import read_verified, write_verified
from attnlab.training.config import TrainConfig
from attnlab.training.loop import measured_steps
from attnlab.training.sharded_checkpoint import Empty, has_shards, read_shards, write_shards

_STABLE = "-stable"
KEPT = 2  # the newest checkpoint, and the one before in case the newest is damaged


class Best(NamedTuple):
    """The weights of the lowest validation loss so far."""

    step: int
    loss: float  # validation loss, nats/token
    model: dict[str, Tensor]  # the state dict


class Checkpoint(NamedTuple):
    """The complete state of a run after a step."""

    step: int
    model: dict[str, Tensor]  # the state dict
    optimizer: dict[str, Tensor]  # `TrainingStep.state`
    seconds: dict[str, float]  # time used so far, by purpose; `Clock.seconds`
    best: Best | None  # None: the run keeps its last weights only
    threads: int | None  # CPU threads of the process; None: not recorded
    metrics_digest: str | None = None  # of the measurements up to the step; `digest_of`
    stable: bool = False  # True: it stays, for longer runs to start from
    parent: str | None = None  # identity of the run whose stable checkpoint it follows


class Loaded(NamedTuple):
    """The newest usable checkpoint in a folder."""

    checkpoint: Checkpoint | None  # None: there is none
    skipped: tuple[str, ...]  # newer ones that cannot be used, each with the reason

    @property
    def note(self) -> str | None:
        """A sentence on the checkpoints that cannot be used; None if the newest can."""
        if not self.skipped:
            return None
        used = self.checkpoint
        then = "there is no other" if used is None else f"that of step {used.step} is used instead"
        return f"checkpoint {'; '.join(self.skipped)}; {then}"


def save(
    folder: Path, checkpoint: Checkpoint, identity: str, shared_by: Ranks | None = None
) -> None:
    """Write a checkpoint of the run `identity` into `folder`; keep the newest `KEPT`.

    `shared_by` are the processes that all call this, if each has its shards of the tensors.

    Raises WriteError, for example if the disk is full; earlier checkpoints are then unchanged.
    """
    best = checkpoint.best
    sections = {"model": checkpoint.model, "optimizer": checkpoint.optimizer}
    if best is not None and best.step != checkpoint.step:
        sections["best"] = best.model
    state = {
        "step": checkpoint.step,
        "identity": identity,
        "seconds": checkpoint.seconds,
        "threads": checkpoint.threads,
        "best": best and {"step": best.step, "loss": best.loss},
        "metrics_digest": checkpoint.metrics_digest,
        "parent": checkpoint.parent,
    }
    path = folder / f"step-{checkpoint.step:06d}{_STABLE if checkpoint.stable else ''}"
    with explains_failure(folder, checkpoint.step):
        if shared_by is not None:
            write_shards(path, sections, state, shared_by)
        else:
            files = {f"{name}.safetensors": tensor_file(of) for name, of in sections.items()}
            write_verified(path, files, state)
    if shared_by is None or shared_by.writes:
        remove_old(folder)


@contextmanager
def explains_failure(folder: Path, step: int) -> Generator[None]:
    """Say in a WriteError which checkpoint it prevented, and which one is left."""
    try:
        yield
    except OSError as error:
        before = [path.name for path in _folders(folder)]
        left = f"{before[-1]} is intact" if before else "there is no earlier one"
        raise WriteError(
            f"the checkpoint of step {step} could not be written ({error}); {left}, "
            "and the same command continues from there"
        ) from error


def save_weights(folder: Path, step: int, model: Mapping[str, Tensor], identity: str) -> None:
    """Write the weights after a step alone, with matrices of float32 in bfloat16.

    Raises OSError as `save` does.
    """
    small = {
        name: tensor.bfloat16() if tensor.dtype == torch.float32 and tensor.ndim > 1 else tensor
        for name, tensor in model.items()
    }
    files = {"model.safetensors": tensor_file(small)}
    write_verified(folder / f"weights-{step:06d}", files, {"step": step, "identity": identity})


def load_weights(folder: Path, identity: str) -> tuple[int, dict[str, Tensor]] | None:
    """Return the step and the weights that `save_weights` wrote, or None if there are none.

    Raises DamagedError if they are not as they were written, or are those of another run.
    """
    for path in sorted(folder.glob("weights-*"), reverse=True):
        state = read_verified(path)
        if state["identity"] != identity:
            raise DamagedError(f"{path}: it belongs to another run")
        return int(state["step"]), load_file(path / "model.safetensors")
    return None


def tensor_file(tensors: Mapping[str, Tensor]) -> Callable[[Path], None]:
    """Return a function that writes the tensors to a path as safetensors, for `write_verified`.

    It raises OSError if the file cannot be written.
    """

    def write(path: Path) -> None:
        on_host, seen = dict[str, Tensor](), set[int]()
        for name, tensor in tensors.items():
            copy = tensor.detach().cpu().contiguous()
            memory = copy.untyped_storage().data_ptr()  # tied parameters share theirs
            on_host[name] = copy.clone() if memory in seen else copy
            seen.add(memory)
        try:
            save_file(on_host, path)
        except SafetensorError as error:  # contains the message of the system's error
            raise OSError(f"{path.name}: {error}") from error

    return write


def remove_old(folder: Path) -> None:
    """Remove unfinished checkpoints of a killed process, and all but the newest `KEPT`.

    One before the decay stays beside them.

    Only the process that holds the run may do this.
    """
    remove_temporary(folder, held=True)
    passing = [path for path in _folders(folder) if not path.name.endswith(_STABLE)]
    for old in passing[:-KEPT]:
        remove_folder(old)


def load_newest(
    folder: Path, identity: str, empty: Empty | None = None, *, stable: bool = False
) -> Loaded:
    """Load the newest checkpoint of the run `identity` that is complete and unaltered.

    Its tensors are whole. Of one in shards, a process reads the parts that `empty` has room for.
    With `stable`, only that before the decay of the learning rate counts.
    """
    skipped = list[str]()
    found = [path for path in _folders(folder) if not stable or path.name.endswith(_STABLE)]
    for candidate in reversed(found):
        try:
            return Loaded(_load(candidate, identity, empty), tuple(skipped))
        except DamagedError as error:
            skipped.append(f"{candidate.name}: {error}")
    return Loaded(None, tuple(skipped))


def with_metrics(
    found: Loaded, folder: RunFolder, config: TrainConfig
) -> tuple[Loaded, dict[int, dict[str, Any]]]:
    """Return the checkpoint and the metrics up to it, by step; neither if a metric is missing."""
    if found.checkpoint is None:
        return found, {}
    last = found.checkpoint.step
    try:
        lines = {m["step"]: m for m in folder.metrics() if m["step"] <= last}
    except ValueError as error:
        reason = str(error)
    else:
        missing = [step for step in measured_steps(config, last) if step not in lines]
        altered = found.checkpoint.metrics_digest not in (None, digest_of(lines.values()))
        if not missing and not altered:
            return found, dict(sorted(lines.items()))
        reason = f"metrics.jsonl lacks step {missing[0]}" if missing else "metrics.jsonl altered"
    return Loaded(None, (*found.skipped, f"step-{last:06d}: {reason}")), {}


def _load(folder: Path, identity: str, empty: Empty | None) -> Checkpoint:
    state: dict[str, Any] = read_verified(folder)
    if state["identity"] != identity:
        raise DamagedError("it belongs to another run")
    step, best = state["step"], state["best"]
    if has_shards(folder):
        sections = read_shards(folder, empty)
    else:
        names = ["model", "optimizer"] + ["best"] * (best is not None and best["step"] != step)
        sections = {name: load_file(folder / f"{name}.safetensors") for name in names}
    model = sections["model"]
    if best is not None:
        best = Best(best["step"], best["loss"], sections.get("best", model))
    return Checkpoint(
        step,
        model,
        sections["optimizer"],
        state["seconds"],
        best,
        threads=state.get("threads"),
        metrics_digest=state.get("metrics_digest"),
        stable=folder.name.endswith(_STABLE),
        parent=state.get("parent"),
    )


def _folders(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))
