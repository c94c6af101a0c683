"""Costs of the variants: one number per kind of cost and variant; lower is better.

The costs of decoding come from the bench of the study, bench.json beside study.json. The time per
token is read at one point for all variants: of the contexts and batch sizes at which the most
variants were measured, the longest context, with the smallest batch. The growth of the decode
state is its slope over the two longest contexts of a variant.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import scipy

from attnlab.analysis.settings import same_settings
from attnlab.analysis.statistics.paired import Estimate
from attnlab.analysis.table import Table
from attnlab.record import DamagedError, Json, bench_points

CostKey = Literal[
    "parameters",
    "flops_per_token",
    "step_time",
    "peak_memory_bytes",
    "state_bytes",
    "decode_seconds",
]
COSTS: Mapping[CostKey, tuple[str, str]] = {  # label and unit
    "parameters": ("parameters", ""),
    "flops_per_token": ("forward FLOPs/token", "FLOPs"),
    "step_time": ("time of a training step", "seconds"),
    "peak_memory_bytes": ("peak memory in training", "bytes"),
    "state_bytes": ("decode state at the trained length", "bytes"),
    "decode_seconds": ("time to decode a token", "seconds"),
}
COUNTED, TIMED = 0.01, 0.05  # relative resolution; a step is timed to a few per cent
_RESOLUTION = defaultdict[str, float](lambda: COUNTED, step_time=TIMED, decode_seconds=TIMED)
_OF_THE_DEVICE = ("step_time", "peak_memory_bytes")
_TIMES = ("step_time", "decode_seconds")
_RECIPE = ("learning_rate", "warmup_steps")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One kind of cost, for the variants that were measured."""

    key: str  # a `CostKey`, or "state_growth"
    label: str
    unit: str  # "", "FLOPs", "seconds", "bytes" or "bytes/token"
    resolution: float  # relative; smaller differences count as none
    of: Mapping[str, float]  # by variant
    over_runs: Mapping[str, Estimate] = field(default_factory=dict[str, Estimate])  # of a time
    quartiles: Mapping[str, tuple[float, float]] = field(
        default_factory=dict[str, tuple[float, float]]
    )  # of the times of steps in a run, or of decoded tokens, where they were recorded

    def cheaper(self, first: str, second: str, among: int | None = None) -> bool:
        """True if the first variant costs less, by more than the resolution and the noise.

        The noise of a time is that over runs: the 95 % interval of the difference, one of `among`
        that hold at once, by default as many as there are other variants, must exclude 0; and the
        middle halves of the times of steps, or of decoded tokens, must not overlap.
        """
        saved = self.of[second] - self.of[first]
        both = first in self.quartiles and second in self.quartiles
        if both and self.quartiles[first][1] >= self.quartiles[second][0]:
            return False
        noise = self._noise(first, second, among)
        return saved > self.resolution * self.of[second] and saved > noise

    def equal(self, first: str, second: str, among: int | None = None) -> bool:
        """True if the interval of the difference, as in `cheaper`, is within the resolution."""
        apart = abs(self.of[second] - self.of[first]) + self._noise(first, second, among)
        return apart <= self.resolution * max(self.of[first], self.of[second])

    def _noise(self, first: str, second: str, among: int | None) -> float:
        """Return the half-width of the interval of a difference, by Welch 1947."""
        if not self.over_runs:
            return 0.0
        both = [self.over_runs[name] for name in (first, second)]
        parts = [(e.spread**2 / e.n, e.n - 1) for e in both if e.spread is not None]
        if len(parts) < 2:
            return math.inf  # one run shows no noise
        variance = sum(part for part, _ in parts)
        if not variance:
            return 0.0
        df = variance**2 / sum(part**2 / n for part, n in parts)
        level = 0.05 / (2 * max(among or len(self.of) - 1, 1))
        return float(scipy.special.stdtrit(df, 1 - level)) * math.sqrt(variance)


def measured_points(study_dir: Path) -> list[Json]:
    """Return every point of bench.json that was measured; none of a damaged file.

    `Table.damage` names a damaged file.
    """
    try:
        return bench_points(study_dir)
    except DamagedError:
        return []


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Costs of decoding; empty if the study has no bench.json."""

    context: int = 0  # tokens at which the times were measured
    batch: int = 0
    decode_seconds: Mapping[str, float] = field(default_factory=dict[str, float])
    decode_quartiles: Mapping[str, tuple[float, float]] = field(
        default_factory=dict[str, tuple[float, float]]
    )  # of the times of the tokens in a measurement, about the median
    state_growth: Mapping[str, float] = field(default_factory=dict[str, float])  # bytes/token

    @classmethod
    def read(cls, study_dir: Path) -> "Serving":
        """Read bench.json of a study's folder, if there is one."""
        points = measured_points(study_dir)
        return cls.of(point for point in points if point["what"] == "decode")

    @classmethod
    def of(cls, decoded: Iterable[Mapping[str, Any]]) -> "Serving":
        """Build from the points of a bench that measured decoding."""
        seconds: dict[tuple[int, int], dict[str, float]] = defaultdict(dict)
        quartiles = defaultdict[tuple[int, int], dict[str, tuple[float, float]]](dict)
        state: dict[str, dict[int, float]] = defaultdict(dict)
        for point in decoded:
            at, variant = (point["context"], point["batch"]), point["variant"]
            seconds[at][variant] = point["seconds"]
            if (spread := point.get("spread_seconds")) is not None:
                ends = (point["seconds"] - spread / 2, point["seconds"] + spread / 2)
                quartiles[at][variant] = ends
            if point.get("state_bytes") is not None:
                each = point["state_bytes"] / point["batch"]
                state[variant][point["context"]] = each
        if not seconds:
            return cls()
        context, batch = max(seconds, key=lambda at: (len(seconds[at]), at[0], -at[1]))
        return cls(
            context=context,
            batch=batch,
            decode_seconds=seconds[context, batch],
            decode_quartiles=quartiles[context, batch],
            state_growth={name: _slope(held) for name, held in state.items() if len(held) > 1},
        )


def costs_of(table: Table, serving: Serving) -> tuple[Cost, ...]:
    """Return every kind of cost that was measured for some variant.

    For runs on several devices, the costs that depend on the device are omitted. Variants that do
    the same work under two names show how far apart equal times can be measured: no smaller
    difference of a time counts.
    """
    several = len(table.devices) > 1
    alike = same_work(table)
    return tuple(
        Cost(
            key=key,
            label=f"{label} at context {serving.context:,}" if key == "decode_seconds" else label,
            unit=unit,
            resolution=max(_RESOLUTION[key], _apart(values, alike) if key in _TIMES else 0.0),
            of=values,
            over_runs=_over_runs(key, table) if key == "step_time" else {},
            quartiles=_quartiles(key, table, serving),
        )
        for key, (label, unit) in COSTS.items()
        if not (several and key in _OF_THE_DEVICE)
        if (values := _values(key, table, serving))
    )


def _values(key: CostKey, table: Table, serving: Serving) -> Mapping[str, float]:
    """Return the cost by variant."""
    if key == "decode_seconds":
        return serving.decode_seconds
    if key == "parameters":
        return {v.name: v.parameters["total"] for v in table.variants if "total" in v.parameters}
    return {v.name: v.numbers[key].mean for v in table.variants if key in v.numbers}


def _over_runs(key: CostKey, table: Table) -> Mapping[str, Estimate]:
    return {v.name: v.numbers[key] for v in table.variants if key in v.numbers}


def _quartiles(key: CostKey, table: Table, serving: Serving) -> Mapping[str, tuple[float, float]]:
    """Return the quartiles of a time by variant: of steps, the mean of them over runs."""
    if key != "step_time":
        return serving.decode_quartiles if key == "decode_seconds" else {}
    found = dict[str, tuple[float, float]]()
    for variant in table.variants:
        both = [run.summary.get("step_time_quartiles") for run in variant.finished]
        known = [(low, high) for low, high in (of for of in both if of)]
        if known:
            lows, highs = zip(*known, strict=True)
            found[variant.name] = (math.fsum(lows) / len(known), math.fsum(highs) / len(known))
    return found


def same_work(table: Table) -> tuple[tuple[str, ...], ...]:
    """Return the variants in groups of equal settings, learning rate and warm-up aside."""
    configs = {v.name: v.config for v in table.variants if v.config}
    return same_settings(
        {
            name: {
                **config,
                "train": {k: v for k, v in config.get("train", {}).items() if k not in _RECIPE},
            }
            for name, config in configs.items()
        }
    )


def _apart(values: Mapping[str, float], alike: Sequence[Sequence[str]]) -> float:
    """Return the largest relative difference between variants that do the same work."""
    found = [0.0]
    for names in alike:
        costs = [values[name] for name in names if name in values]
        if len(costs) > 1 and max(costs) > 0:
            found.append(1 - min(costs) / max(costs))
    return max(found)


def _slope(held: Mapping[int, float]) -> float:
    before, last = sorted(held)[-2:]
    return (held[last] - held[before]) / (last - before)
