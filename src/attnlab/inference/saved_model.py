"""Trained models on disk: loaded from a run's folder, or from one that `export` wrote.

    <exported>/{model.safetensors, config.json, tokenizer.json, sources/..., state.json}

An exported folder has the weights, settings and tokenizer of a run, and the source of the user's
own classes in it. It needs no other file. Nothing is exported that cannot be loaded.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from attnlab.data.codec import Codec
from attnlab.device.selection import choose_device
from attnlab.inference.recorded import (
    DESCRIBED,
    SOURCES,
    Recorded,
    carried_in,
    read_recorded,
    tokenizer_bytes,
)
from attnlab.model.language_model import LanguageModel
from attnlab.record.atomic_files import DamagedError
from attnlab.record.verified_folder import STATE, write_verified
from attnlab.training.checkpoint import Checkpoint, load_newest, load_weights, tensor_file
from attnlab.training.run import RunConfig
from attnlab.training.step import autocast

Which = Literal["last", "best"]  # the weights of the last step, or of the lowest validation loss


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
    folder: Path | str,
    device: torch.device | str = "cpu",
    *,
    which: Which = "last",
    trust: bool = False,
) -> Trained:
    """Return the model of a run, finished or not, or of a folder that `export` wrote.

    If the newest checkpoint is damaged, the one before it is used, and `note` says so.

    Args:
        folder: a run's folder, such as results/quickstart/mha/seed-0, or an exported one.
        device: a torch device, or auto, cpu, cuda or cuda:1.
        which: weights of the last step, or of the lowest validation loss ("best").
        trust: True to execute code that the folder carries, which runs as any program does. Code
            that `attnlab.run` executed on this machine needs no trust.

    Raises:
        ValueError: the folder has no run, a file is not as it was written, the run has no usable
            weights, its code is not trusted or its original was edited, or there is no such device.
    """
    folder = Path(folder)
    recorded = read_recorded(folder, trust=trust)
    found = _weights(folder, recorded, which)
    tokenizer = recorded.config.data.tokenizer
    codec = _codec(folder, recorded)
    place = choose_device(device) if isinstance(device, str) else device
    model = recorded.config.model.build(tokenizer.vocab_size, recorded.config.seed).to(place).eval()
    try:
        model.load_state_dict(found.model)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the weights in {folder} do not fit its settings: {reason}") from None
    return Trained(recorded.config, model, codec, found.step, found.note)


def export(
    run: Path | str, folder: Path | str, *, which: Which = "last", trust: bool = False
) -> Exported:
    """Write weights, settings, tokenizer and own code of a run into a new folder, for `load_run`.

    Args:
        run: the run's folder.
        folder: a new folder.
        which: the weights of the last step, or those of the lowest validation loss.
        trust: as for `load_run`.

    Raises ValueError as `load_run` does, or if the new folder is not empty.
    """
    run, folder = Path(run), Path(folder)
    trained = load_run(run, which=which, trust=trust)  # what cannot be loaded is not exported
    recorded = read_recorded(run, trust=trust)
    if folder.is_symlink() or (folder.exists() and not _is_empty(folder)):
        raise ValueError(f"{folder} already exists and is not replaced: give a new folder")
    files: dict[str, bytes | Callable[[Path], object]] = {
        **{name: (run / name).read_bytes() for name in DESCRIBED},
        **{f"{SOURCES}/{name}": source for name, source in carried_in(run).items()},
        "model.safetensors": tensor_file(_weights(run, recorded, which).model),
    }
    state = {
        "step": trained.step,
        "identity": recorded.identity,
        "which": which,
        "data": recorded.fingerprint,
        "own_code": recorded.own_code,
    }
    write_verified(folder, files, state)
    return Exported(folder, trained.step, trained.note)


def newest_run(results: Path) -> Path:
    """Return the folder of the run below `results` whose weights were written last.

    Raises ValueError if no run there has weights.
    """
    written = {
        state.parents[2]: state.stat().st_mtime_ns
        for state in results.glob(f"*/*/seed-*/checkpoints/*/{STATE}")
        if (state.parents[2] / "config.json").is_file()
    }
    if not written:
        raise ValueError(f"no run below {results}/ has weights: name the folder of a run")
    return max(written, key=lambda run: written[run])


def checkpoint_of(run: Path, identity: str) -> tuple[Checkpoint, str | None]:
    """Return the newest usable checkpoint of a run, and a note on newer ones that are damaged.

    Raises ValueError if there is none.
    """
    folder = run / "checkpoints"
    found = load_newest(folder, identity)
    if found.checkpoint is None:
        why = "; ".join(found.skipped) or "there is none, as with train.keep=none"
        if any(folder.glob("weights-*")):
            why = "its weights alone were kept (train.keep=weights); train it with train.keep=last"
        raise ValueError(f"no usable checkpoint in {folder}: {why}")
    return found.checkpoint, found.note


class _Weights(NamedTuple):
    step: int
    model: dict[str, Tensor]
    note: str | None


def _weights(folder: Path, recorded: Recorded, which: Which) -> _Weights:
    if recorded.state is not None:
        if which == "best" and recorded.state.get("which") != "best":
            raise ValueError(f"{folder} has the last weights only: export the best ones of its run")
        return _Weights(recorded.state["step"], _tensors(folder / "model.safetensors"), None)
    try:
        alone = load_weights(folder / "checkpoints", recorded.identity)
    except (DamagedError, SafetensorError) as error:
        raise ValueError(f"no usable weights in {folder}: {error}") from None
    if alone is not None and which == "last":
        return _Weights(*alone, note=None)
    if alone is not None:
        raise ValueError(f"{folder} has no best weights: only train.keep=best_and_last keeps them")
    newest, note = checkpoint_of(folder, recorded.identity)
    if which == "last":
        return _Weights(newest.step, newest.model, note)
    if newest.best is None:
        raise ValueError(f"{folder} has no best weights: only train.keep=best_and_last keeps them")
    return _Weights(newest.best.step, newest.best.model, note)


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def _codec(folder: Path, recorded: Recorded) -> Codec:
    path, tokenizer = folder / "tokenizer.json", recorded.config.data.tokenizer
    content = path.read_bytes() if recorded.state is not None else tokenizer_bytes(folder)
    try:
        codec = tokenizer.restore(content.decode(), path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if codec.vocab_size != tokenizer.vocab_size:
        raise ValueError(
            f"{path} has {codec.vocab_size} tokens, but the settings have {tokenizer.vocab_size}"
        )
    return codec


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())
