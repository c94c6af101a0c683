"""What each variant costs: one number a kind of cost, and lower is better.

What decoding costs, from the bench of a study: bench.json beside study.json.

A token's time is taken at one place, the same for all: of the contexts and batches at which the
most variants were measured, the longest context, with the smallest batch. How the decode state
grows is its slope over the two longest contexts of a variant.

Parameter efficiency: what a variant gains against the baseline, for the size that it has.

    gain        loss of the baseline - loss of the variant, paired by seed, nats a token
    efficiency  gain / parameters of the whole model, nats a token and million parameters

Its interval is that of the gain, which holds for all pairs of the study at once, divided by the
same number. The gain for each parameter *more* is no measure: variants that have fewer parameters
and a lower loss would count as the least efficient.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnlab.analysis.numbers import nats
from attnlab.analysis.sentences import listed
from attnlab.analysis.table import Table
from attnlab.analysis.verdict import Verdict

COUNTED, TIMED = 0.01, 0.05  # relative; a step is timed to a few per cent
OF_THE_DEVICE = ("step_time", "peak_memory_bytes")
FROM_SUMMARY = (
    ("flops_per_token", "forward FLOPs a token", "FLOPs", COUNTED),
    ("step_time", "time of a training step", "seconds", TIMED),
    ("peak_memory_bytes", "peak memory in training", "bytes", COUNTED),
    ("state_bytes", "decode state at the trained length", "bytes", COUNTED),
)


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Empty where the bench has not been run."""

    context: int = 0  # tokens, where the times were taken
    batch: int = 0
    decode_seconds: Mapping[str, float] = field(default_factory=dict[str, float])
    state_growth: Mapping[str, float] = field(default_factory=dict[str, float])  # bytes/token

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


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One kind of cost, of the variants that have it."""

    key: str  # as in `attnlab.analysis.hypotheses.question.Cost`
    label: str
    unit: str  # "", "FLOPs", "seconds", "bytes" or "bytes/token"
    resolution: float  # relative: smaller differences are none
    of: Mapping[str, float]  # by variant

    def cheaper(self, first: str, second: str) -> bool:
        """Whether the first costs less, by more than the resolution."""
        return self.of[first] < (1 - self.resolution) * self.of[second]


def costs_of(table: Table, serving: Serving) -> tuple[Cost, ...]:
    """Every kind of cost that some variant has.

    Of runs on several devices, without what depends on the device.
    """
    several = len(table.devices) > 1
    parameters = {v.name: v.parameters["total"] for v in table.variants if "total" in v.parameters}
    costs = [
        Cost(key="parameters", label="parameters", unit="", resolution=COUNTED, of=parameters),
        *(
            Cost(
                key=key,
                label=label,
                unit=unit,
                resolution=resolution,
                of={v.name: v.numbers[key].mean for v in table.variants if key in v.numbers},
            )
            for key, label, unit, resolution in FROM_SUMMARY
            if not (several and key in OF_THE_DEVICE)
        ),
        Cost(
            key="decode_seconds",
            label=f"time to decode a token at context {serving.context:,}",
            unit="seconds",
            resolution=TIMED,
            of=serving.decode_seconds,
        ),
    ]
    return tuple(cost for cost in costs if cost.of)


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """Of one variant; nats a token and million parameters."""

    name: str
    parameters: int
    more: int  # than the baseline has; negative for fewer
    mean: float  # positive: better than the baseline
    low: float | None  # None without a verdict
    high: float | None
    separable: bool


def efficiencies_of(verdict: Verdict) -> tuple[Efficiency, ...]:
    """Of every variant beside the baseline, the most efficient first."""
    sizes = {v.name: v.parameters["total"] for v in verdict.table.variants if v.parameters}
    if verdict.baseline not in sizes:
        return ()
    found = [
        Efficiency(
            name=name,
            parameters=sizes[name],
            more=sizes[name] - sizes[verdict.baseline],
            mean=-pair.mean / (sizes[name] / 1e6),
            low=None if pair.high is None else -pair.high / (sizes[name] / 1e6),
            high=None if pair.low is None else -pair.low / (sizes[name] / 1e6),
            separable=pair.separable,
        )
        for name, pair in verdict.to_baseline.items()
        if name in sizes
    ]
    return tuple(sorted(found, key=lambda it: -it.mean))


def meaning(found: Sequence[Efficiency], verdict: Verdict) -> str:
    """Whether the order of efficiencies means anything."""
    if not verdict.tiers:
        return f"It means nothing yet. {verdict.why}"
    told = [it.name for it in found if it.separable]
    if told:
        return f"It means something for {listed(told)} alone: the others cannot be told from zero."
    return (
        f"It means nothing here: no variant can be told from {verdict.baseline}, so that this is "
        f"an order of noise. Of differences under {nats(verdict.detectable or 0)} most go unseen."
    )
