"""Runs in Weights & Biases: one project per study folder, one group per variant.

`WANDB_MODE=offline` keeps them in `results/STUDY/wandb` for `wandb sync`. A resumed run keeps its
id: online, only new steps are sent; offline, its files are replaced.
"""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from attnlab.record import RunFolder, require_within


def copies(study_dir: Path) -> Callable[[RunFolder], "WeightsAndBiases"]:
    """Return a function that starts the copy of a run.

    Raises ValueError if W&B is not installed or nobody is logged in.
    """
    if find_spec("wandb") is None:
        raise ValueError("Weights & Biases is not installed: pip install wandb")
    wandb = import_module("wandb")
    if wandb.setup().settings.mode == "online":
        try:
            known = wandb.login(prompt=False)
        except Exception as error:
            raise ValueError(f"Weights & Biases: {error}; or set WANDB_MODE=offline") from error
        if not known:
            raise ValueError(
                "Weights & Biases has no key: run wandb login, or set WANDB_MODE=offline"
            )
    return lambda run: WeightsAndBiases(wandb, study_dir, run)


class WeightsAndBiases:
    """A run in Weights & Biases; see `attnlab.runner.tracking.RunCopy`."""

    def __init__(self, wandb: Any, study_dir: Path, run: RunFolder) -> None:
        name = run.ended.relative_to(study_dir).as_posix()
        require_within(study_dir / "wandb", study_dir)
        identifier = hashlib.sha256(f"{name}/{run.identity()}".encode()).hexdigest()[:16]
        for earlier in (study_dir / "wandb").glob(f"offline-run-*-{identifier}*"):
            shutil.rmtree(earlier)
        self._run: Any = wandb.init(
            project=study_dir.resolve().name,
            group=run.variant,
            name=name,
            id=identifier,
            resume="allow",
            reinit="create_new",  # several runs are open at the same time
            dir=study_dir,
            config=run.config(),
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )
        self._next_step: int = self._run.step

    def add(self, step: int, values: Mapping[str, float]) -> None:
        if step >= self._next_step:
            self._run.log(dict(values), step=step)

    def end(self, summary: Mapping[str, Any] | None) -> None:
        if summary is not None:
            self._run.summary.update(dict(summary))
        is_whole = summary is not None and summary["status"] == "finished"
        self._run.finish(exit_code=0 if is_whole else 1)
