"""Trained models on disk: loaded from a run's folder, or from one that `export` wrote.

A checkpoint of Llama or Qwen in the form of Hugging Face is loaded, too, as a run of no steps.
"""

from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from attnlab.config.problem import with_types
from attnlab.data import Places
from attnlab.data.codec import Codec
from attnlab.device.machine import choose_device
from attnlab.inference.recorded import Recorded, read_recorded, tokenizer_bytes
from attnlab.model.language_model import LanguageModel
from attnlab.model.llama_checkpoint import Checkpoint as LlamaCheckpoint
from attnlab.model.llama_checkpoint import find_checkpoint, read_weights
from attnlab.record.atomic_files import DamagedError
from attnlab.record.json_text import read_foreign_object
from attnlab.record.verified_folder import STATE
from attnlab.training.checkpoint import Checkpoint, load_newest, load_weights
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


@with_types
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
        folder: a run's folder, such as results/quickstart/mha/seed-0, or an exported one, or a
            checkpoint of Llama, Mistral, Qwen2 or Qwen3 in the form of Hugging Face.
        device: a torch device, or auto, cpu, cuda or cuda:1.
        which: weights of the last step, or of the lowest validation loss ("best").
        trust: True to execute code that the folder carries, which runs as any program does. Code
            that `attnlab.run` executed on this machine needs no trust.

    Raises:
        ValueError: the folder has no run, a file is not as it was written, the run has no usable
            weights, its code is not trusted or its original was edited, or there is no such device.
    """
    folder = Path(folder)
    place = choose_device(device) if isinstance(device, str) else device
    if (settings := find_checkpoint(folder)) is not None:
        return _of_checkpoint(folder, settings, place)
    recorded = read_recorded(folder, trust=trust)
    found = weights_of(folder, recorded, which)
    tokenizer = recorded.config.data.tokenizer
    codec = _codec(folder, recorded)
    model = recorded.config.model.build(tokenizer.vocab_size, recorded.config.seed).to(place).eval()
    try:
        model.load_state_dict(found.model)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the weights in {folder} do not fit its settings: {reason}") from None
    return Trained(recorded.config, model, codec, found.step, found.note)


def _of_checkpoint(folder: Path, settings: LlamaCheckpoint, device: torch.device) -> Trained:
    config = RunConfig.of_checkpoint(folder, settings)
    tokenizer = config.data.tokenizer
    with torch.device("meta"):
        model = LanguageModel(config.model, tokenizer.vocab_size)
    weights = read_weights(folder, model)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the weights in {folder} do not fit its settings: {reason}") from None
    for layer in model.modules():
        if isinstance(layer, torch.nn.RMSNorm):
            layer.eps = settings.norm_eps
    codec = tokenizer.fit([], Places.from_environment())
    return Trained(config, model.to(device, torch.float32).eval(), codec, 0, None)


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


def checkpoint_of(
    run: Path, identity: str, *, stable: bool = False
) -> tuple[Checkpoint, str | None]:
    """Return the newest usable checkpoint of a run, and a note on newer ones that are damaged.

    With `stable`, it is that before the decay of the learning rate.

    Raises ValueError if there is none.
    """
    folder = run / "checkpoints"
    found = load_newest(folder, identity, stable=stable)
    if found.checkpoint is None:
        which = "none before the decay of the learning rate" if stable else "none"
        why = "; ".join(found.skipped) or f"there is {which}, as with train.keep=none"
        if any(folder.glob("weights-*")):
            why = "its weights alone were kept (train.keep=weights); train it with train.keep=last"
        if (summary := run / "summary.json").is_file():
            ended = read_foreign_object(summary)
            if not found.skipped and ended.get("status") == "diverged":
                why = f"the run diverged: {ended.get('reason')}"
        raise ValueError(f"no usable checkpoint in {folder}: {why}")
    return found.checkpoint, found.note


class Weights(NamedTuple):
    """The parameters of a run after a step."""

    step: int
    model: dict[str, Tensor]
    note: str | None


def weights_of(folder: Path, recorded: Recorded, which: Which) -> Weights:
    """Return the weights in the folder of a run. Raises ValueError as `load_run`."""
    if which not in get_args(Which):
        raise ValueError(f"which: no weights {which!r}; known: {', '.join(get_args(Which))}")
    if recorded.state is not None:
        if which == "best" and recorded.state.get("which") != "best":
            raise ValueError(f"{folder} has the last weights only: export the best ones of its run")
        return Weights(recorded.state["step"], _tensors(folder / "model.safetensors"), None)
    try:
        alone = load_weights(folder / "checkpoints", recorded.identity)
    except (DamagedError, SafetensorError) as error:
        raise ValueError(f"no usable weights in {folder}: {error}") from None
    if alone is not None and which == "last":
        return Weights(*alone, note=None)
    if alone is not None:
        raise ValueError(f"{folder} has no best weights: only train.keep=best_and_last keeps them")
    newest, note = checkpoint_of(folder, recorded.identity)
    if which == "last":
        return Weights(newest.step, newest.model, note)
    if newest.best is None:
        raise ValueError(f"{folder} has no best weights: only train.keep=best_and_last keeps them")
    return Weights(newest.best.step, newest.best.model, note)


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
