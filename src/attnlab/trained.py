"""A trained model back from its run folder: settings, weights, tokenizer."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from attnlab import checkpoint
from attnlab.data.codec import Codec
from attnlab.model import LanguageModel
from attnlab.run_config import RunConfig
from attnlab.training_step import autocast


class Trained(NamedTuple):
    config: RunConfig
    model: LanguageModel  # in eval mode, on the device asked for
    codec: Codec  # text to token ids and back
    step: int  # of the checkpoint

    @property
    def autocast(self) -> Any:
        """The context of forward passes on its device, in the precision that it was trained in."""
        return autocast(self.config.train, self.model.embed.weight.device)


def load_run(folder: Path | str, device: torch.device | str = "cpu") -> Trained:
    """The newest whole checkpoint of a run, finished or not.

    `folder` is a run's own, such as results/quickstart/mha/seed-0. Raises ValueError where that is
    no run, or none of its checkpoints is there and undamaged.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file() or not (folder / "tokenizer.json").is_file():
        runs = sorted(str(run) for run in folder.glob("**/seed-*") if run.is_dir())[:5]
        hint = f"; did you mean {' or '.join(runs)}?" if runs else ""
        raise ValueError(f"no run in {folder}: no config.json and tokenizer.json there{hint}")
    record = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    identity = record["identity"]
    fields = {key: value for key, value in record.items() if key not in ("identity", "variant")}
    config = RunConfig.from_dict(fields)
    found = checkpoint.load_newest(folder / "checkpoints", identity)
    if found is None:
        kept = sorted(path.name for path in (folder / "checkpoints").glob("step-*"))
        what = f"{', '.join(kept)} damaged or of another run" if kept else "none there"
        raise ValueError(f"no usable checkpoint in {folder / 'checkpoints'}: {what}")
    tokenizer = config.data.tokenizer
    model = config.model.build(tokenizer.vocab_size).to(device).eval()
    model.load_state_dict(found.model)
    codec = tokenizer.restore((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return Trained(config, model, codec, found.step)
