"""Runs in TensorBoard: `tensorboard --logdir results/STUDY/tensorboard`.

Each run has a folder, VARIANT/seed-SEED; its tags are the names in `metrics.jsonl`.
"""

import shutil
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from attnlab.record import RunFolder, require_within


def copies(study_dir: Path) -> Callable[[RunFolder], "TensorBoard"]:
    """Return a function that starts the copy of a run. Raise ValueError without TensorBoard."""
    if find_spec("tensorboard") is None:
        raise ValueError("TensorBoard is not installed: pip install tensorboard")

    def copy(run: RunFolder) -> TensorBoard:
        folder = study_dir / "tensorboard" / run.ended.relative_to(study_dir)
        require_within(folder, study_dir)
        return TensorBoard(folder)

    return copy


class TensorBoard:
    """A run in TensorBoard; see `attnlab.runner.tracking.RunCopy`."""

    def __init__(self, folder: Path) -> None:
        # imported here: it is an extra, and takes a second
        from torch.utils.tensorboard import SummaryWriter

        shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(str(folder), flush_secs=10)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def end(self, summary: Mapping[str, Any] | None) -> None:
        """Add the final losses as points at the last step."""
        for name, value in (summary or {}).items():
            if name.startswith(("final_", "test_")) and isinstance(value, int | float):
                self._writer.add_scalar(name, value, (summary or {}).get("steps"))
        self._writer.close()
