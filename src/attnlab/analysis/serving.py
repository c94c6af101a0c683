"""What decoding costs, from the bench of a study: bench.json beside study.json.

A token's time is taken at one place, the same for all: of the contexts and batches at which the
most variants were measured, the longest context, with the smallest batch. How the decode state
grows is its slope over the two longest contexts of a variant.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Empty where the bench has not been run."""

    context: int = 0  # tokens, where the times were taken
    batch: int = 0
    decode_seconds: Mapping[str, float] = field(default_factory=dict[str, float])
    state_growth: Mapping[str, float] = field(default_factory=dict[str, float])  # bytes a token

    @classmethod
    def read(cls, study_dir: Path) -> "Serving":
        path = study_dir / "bench.json"
        if not path.is_file():
            return cls()
        points = json.loads(path.read_text(encoding="utf-8"))["points"]
        return cls.of(p for p in points if p["what"] == "decode" and p["status"] == "ok")

    @classmethod
    def of(cls, decoded: Iterable[Mapping[str, Any]]) -> "Serving":
        """From the points that were decoded."""
        seconds: dict[tuple[int, int], dict[str, float]] = defaultdict(dict)
        state: dict[str, dict[int, float]] = defaultdict(dict)
        for point in decoded:
            seconds[point["context"], point["batch"]][point["variant"]] = point["seconds"]
            if point.get("state_bytes") is not None:
                each = point["state_bytes"] / point["batch"]
                state[point["variant"]][point["context"]] = each
        if not seconds:
            return cls()
        context, batch = max(seconds, key=lambda at: (len(seconds[at]), at[0], -at[1]))
        return cls(
            context=context,
            batch=batch,
            decode_seconds=seconds[context, batch],
            state_growth={name: _slope(held) for name, held in state.items() if len(held) > 1},
        )


def _slope(held: Mapping[int, float]) -> float:
    before, last = sorted(held)[-2:]
    return (held[last] - held[before]) / (last - before)
