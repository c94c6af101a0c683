"""Learning curves: a measured quantity against the step, by seed and as the mean over seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A curve of one variant; its mean is over all seeds, at the steps that each has reached."""

    steps: tuple[int, ...]
    mean: tuple[float, ...]
    by_seed: Mapping[int, tuple[tuple[int, ...], tuple[float, ...]]]  # steps and values

    @classmethod
    def of(cls, runs: Mapping[int, Sequence[Mapping[str, Any]]], key: str) -> "Curve":
        """Build the curve of `key` from the metrics of each seed, without its null values."""
        points = {
            seed: {line["step"]: float(line[key]) for line in lines if line.get(key) is not None}
            for seed, lines in runs.items()
        }
        return cls._through(points)

    def minus(self, other: "Curve") -> "Curve":
        """Return this curve minus another, at the seeds and steps that both have."""
        points: dict[int, dict[int, float]] = {}
        for seed in self.by_seed.keys() & other.by_seed.keys():
            there = dict(zip(*other.by_seed[seed], strict=True))
            here = zip(*self.by_seed[seed], strict=True)
            points[seed] = {step: value - there[step] for step, value in here if step in there}
        return self._through(points)

    @classmethod
    def _through(cls, points: Mapping[int, Mapping[int, float]]) -> "Curve":
        points = {seed: of_seed for seed, of_seed in sorted(points.items()) if of_seed}
        reached = [set(of_seed) for of_seed in points.values()]
        steps = sorted(set.intersection(*reached)) if reached else []
        return cls(
            steps=tuple(steps),
            mean=tuple(
                math.fsum(of_seed[step] for of_seed in points.values()) / len(points)
                for step in steps
            ),
            by_seed={
                seed: (tuple(of_seed), tuple(of_seed.values())) for seed, of_seed in points.items()
            },
        )


def perplexity(loss: float) -> float:
    """Return exp(loss), the loss in nats/token; infinite if a float cannot hold it."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
