"""Trained models on disk: loaded from a run's folder, or from one that `export` wrote.

    <exported>/{model.safetensors, config.json, tokenizer.json, state.json}

An exported folder has the weights, settings and tokenizer of a run, and needs no other file.
"""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from attnlab.data.byte_level_files import read_utf8
from attnlab.data.codec import Codec
from attnlab.device.selection import choose_device
from attnlab.model.language_model import LanguageModel
from attnlab.record import runs_in
from attnlab.record.atomic_files import DamagedError
from attnlab.record.verified_folder import STATE, read_verified, write_verified
from attnlab.training.checkpoint import Checkpoint, load_newest, tensor_file
from attnlab.training.run import RunConfig
from attnlab.training.step import autocast

Which = Literal["last", "best"]  # the weights of the last step, or of the lowest validation loss
DESCRIBED = ("config.json", "tokenizer.json")


class Trained(NamedTuple):
    """A trained model with its settings and its tokenizer."""

    config: RunConfig  # settings of the run
    model: LanguageModel  # in eval mode
    codec: Codec  # text to token ids and back
    step: int  # number of training steps of the weights
    note: str | None  # the damaged checkpoint, and the one used instead; None: none is damaged

    @property
    def autocast(self) -> Any:
        """The context of forward passes on its device, in the precision of its training."""
        return autocast(self.config.train, self.model.embed.weight.device)


class Exported(NamedTuple):
    """An exported folder."""

    folder: Path
    step: int  # number of training steps of the weights
    note: str | None  # the damaged checkpoint, and the one exported instead; None: none is damaged


def load_run(
    folder: Path | str, device: torch.device | str = "cpu", *, which: Which = "last"
) -> Trained:
    """Return the model of a run, finished or not, or of a folder that `export` wrote.

    If the newest checkpoint is damaged, the one before it is used, and `note` says so.

    Args:
        folder: a run's folder, such as results/quickstart/mha/seed-0, or an exported one.
        device: a torch device, or auto, cpu, cuda or cuda:1.
        which: weights of the last step, or of the lowest validation loss ("best").

    Raises:
        ValueError: the folder has no run, the run has no undamaged checkpoint, or there is no such
            device.
    """
    folder = Path(folder)
    config, identity = settings_of(folder)
    found = _weights(folder, identity, which)
    tokenizer = config.data.tokenizer
    place = choose_device(device) if isinstance(device, str) else device
    model = config.model.build(tokenizer.vocab_size, config.seed).to(place).eval()
    model.load_state_dict(found.model)
    path = folder / "tokenizer.json"
    codec = tokenizer.restore(read_utf8(path), path)
    return Trained(config, model, codec, found.step, found.note)


def export(run: Path | str, folder: Path | str, *, which: Which = "last") -> Exported:
    """Write the weights, settings and tokenizer of a run into a new folder, for `load_run`.

    Args:
        run: the folder of a run, or a folder that `export` wrote.
        folder: the new folder, which may exist if it is empty.
        which: the weights of the last step, or those of the lowest validation loss.

    The source code of the user's own mechanisms is not written.

    Raises ValueError as `load_run` does, or if the new folder is not empty.
    """
    run, folder = Path(run), Path(folder)
    _, identity = settings_of(run)
    found = _weights(run, identity, which)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} already exists and is not replaced: give a new folder")
    described = {name: (run / name).read_bytes() for name in DESCRIBED}
    state = {"step": found.step, "identity": identity, "which": which}
    write_verified(folder, {"model.safetensors": tensor_file(found.model), **described}, state)
    return Exported(folder, found.step, found.note)


def settings_of(folder: Path) -> tuple[RunConfig, str]:
    """Return settings and identity of the run in a folder. Raises ValueError if there is none."""
    if not all((folder / name).is_file() for name in DESCRIBED):
        if any(run.packed() for run in runs_in(folder)):
            raise ValueError(f"{folder} is packed, and packed runs have no weights")
        runs = sorted(str(run) for run in folder.glob("**/seed-*") if run.is_dir())[:5]
        hint = f"; did you mean {' or '.join(runs)}?" if runs else ""
        raise ValueError(f"no run in {folder}: it has no config.json and tokenizer.json{hint}")
    record = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    fields = {key: value for key, value in record.items() if key not in ("identity", "variant")}
    return RunConfig.from_dict(fields), record["identity"]


def checkpoint_of(run: Path, identity: str) -> tuple[Checkpoint, str | None]:
    """Return the newest usable checkpoint of a run, and a note on newer ones that are damaged.

    Raises ValueError if there is none.
    """
    found = load_newest(run / "checkpoints", identity)
    if found.checkpoint is None:
        why = "; ".join(found.skipped) or "there is none, as with train.keep=none"
        raise ValueError(f"no usable checkpoint in {run / 'checkpoints'}: {why}")
    return found.checkpoint, found.note


class _Weights(NamedTuple):
    step: int
    model: dict[str, Tensor]
    note: str | None


def _weights(folder: Path, identity: str, which: Which) -> _Weights:
    if (folder / STATE).is_file():
        return _exported(folder, which)
    newest, note = checkpoint_of(folder, identity)
    if which == "last":
        return _Weights(newest.step, newest.model, note)
    if newest.best is None:
        raise ValueError(f"{folder} has no best weights: only train.keep=best_and_last keeps them")
    return _Weights(newest.best.step, newest.best.model, note)


def _exported(folder: Path, which: Which) -> _Weights:
    try:
        state = read_verified(folder)
    except DamagedError as error:
        raise ValueError(f"{folder} is damaged: {error}; export the run again") from None
    if which == "best" and state["which"] != "best":
        raise ValueError(f"{folder} has the last weights only: export the best ones of its run")
    return _Weights(state["step"], load_file(folder / "model.safetensors"), None)
