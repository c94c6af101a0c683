"""A trained model back from a folder: a run's own, or one that `export` wrote.

    <exported>/{model.safetensors, config.json, tokenizer.json, state.json}

An exported folder is a checkpoint without what only training needs, and stands alone.
"""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from attnlab.data.codec import Codec
from attnlab.model.language_model import LanguageModel
from attnlab.record.verified_folder import STATE, DamagedError, read_verified, write_verified
from attnlab.training.checkpoint import Checkpoint, load_newest, tensor_file
from attnlab.training.run import RunConfig
from attnlab.training.step import autocast

Which = Literal["last", "best"]  # of a run's weights: of its last step, or of its lowest loss
DESCRIBED = ("config.json", "tokenizer.json")


class Trained(NamedTuple):
    config: RunConfig
    model: LanguageModel  # in eval mode, on the device asked for
    codec: Codec  # text to token ids and back
    step: int  # after which the weights are
    note: str | None  # what is damaged, and what is used instead

    @property
    def autocast(self) -> Any:
        """The context of forward passes on its device, in the precision that it was trained in."""
        return autocast(self.config.train, self.model.embed.weight.device)


class Exported(NamedTuple):
    folder: Path
    step: int  # after which the weights are
    note: str | None  # what is damaged in the run, and what was exported instead


def load_run(
    folder: Path | str, device: torch.device | str = "cpu", *, which: Which = "last"
) -> Trained:
    """A model from a run's folder, finished or not, or from one that `export` wrote.

    `folder` is a run's own, such as results/quickstart/mha/seed-0. Where its newest checkpoint is
    damaged the one before is used, and `note` says so. `which` chooses among a run's weights: those
    of its last step, or of its lowest validation loss.

    Raises ValueError where that is no run, or none of its checkpoints is there and undamaged.
    """
    folder = Path(folder)
    config, identity = settings_of(folder)
    found = _weights(folder, identity, which)
    tokenizer = config.data.tokenizer
    model = config.model.build(tokenizer.vocab_size).to(device).eval()
    model.load_state_dict(found.model)
    codec = tokenizer.restore((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return Trained(config, model, codec, found.step, found.note)


def export(run: Path | str, folder: Path | str, *, which: Which = "last") -> Exported:
    """Write a run's weights, settings and tokenizer into a new folder, for `load_run`.

    The source of a mechanism of one's own is not among them. Raises ValueError as `load_run` does,
    or where the folder is there and not empty.
    """
    run, folder = Path(run), Path(folder)
    _, identity = settings_of(run)
    found = _weights(run, identity, which)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} is there already, and nothing is replaced: name a new folder")
    described = {name: (run / name).read_bytes() for name in DESCRIBED}
    state = {"step": found.step, "identity": identity, "which": which}
    write_verified(folder, {"model.safetensors": tensor_file(found.model), **described}, state)
    return Exported(folder, found.step, found.note)


def settings_of(folder: Path) -> tuple[RunConfig, str]:
    """Settings and identity of the run in a folder. Raises ValueError where there is none."""
    if not all((folder / name).is_file() for name in DESCRIBED):
        runs = sorted(str(run) for run in folder.glob("**/seed-*") if run.is_dir())[:5]
        hint = f"; did you mean {' or '.join(runs)}?" if runs else ""
        raise ValueError(f"no run in {folder}: no config.json and tokenizer.json there{hint}")
    record = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    fields = {key: value for key, value in record.items() if key not in ("identity", "variant")}
    return RunConfig.from_dict(fields), record["identity"]


def checkpoint_of(run: Path, identity: str) -> tuple[Checkpoint, str | None]:
    """The newest checkpoint of a run that can be used, and what to say of newer ones that cannot.

    Raises ValueError where there is none.
    """
    found = load_newest(run / "checkpoints", identity)
    if found.checkpoint is None:
        why = "; ".join(found.passed_over) or "none is there, as after train.keep=none"
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
        raise ValueError(f"{folder} has the last weights alone: export the best ones of its run")
    return _Weights(state["step"], load_file(folder / "model.safetensors"), None)
