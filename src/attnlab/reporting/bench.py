"""What `attnlab bench` measured for a study, where it did: bench.json in the study's folder."""

import json
from collections.abc import Sequence
from pathlib import Path

from attnlab.reporting.figures.panels.context import Point

SHOWN = (  # what was measured, key of its points, unit, title
    ("decode", "seconds", "seconds", "Time to decode one token"),
    ("decode", "state_bytes", "bytes", "Decode state"),
    ("prefill", "seconds", "seconds", "Time to the first token"),
    ("train", "seconds", "seconds", "Time of a training step"),
)


def bench_points(study_dir: Path) -> Sequence[Point]:
    """Every point that was measured. Empty where no bench was run."""
    path = study_dir / "bench.json"
    if not path.is_file():
        return ()
    points = json.loads(path.read_text(encoding="utf-8"))["points"]
    return [point for point in points if point["status"] == "ok"]


def of_kind(points: Sequence[Point], what: str) -> tuple[int, list[Point]]:
    """Points of one kind at the smallest batch size that it was measured with."""
    found = [point for point in points if point["what"] == what]
    batch = min((point["batch"] for point in found), default=0)
    return batch, [point for point in found if point["batch"] == batch]
