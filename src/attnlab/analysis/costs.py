"""What each variant costs: one number a kind of cost, and lower is better."""

from collections.abc import Mapping
from dataclasses import dataclass

from attnlab.analysis.serving import Serving
from attnlab.analysis.table import Table

COUNTED, TIMED = 0.01, 0.05  # relative; a step is timed to a few per cent
OF_THE_DEVICE = ("step_time", "peak_memory_bytes")
FROM_SUMMARY = (
    ("flops_per_token", "forward FLOPs a token", "FLOPs", COUNTED),
    ("step_time", "time of a training step", "seconds", TIMED),
    ("peak_memory_bytes", "peak memory in training", "bytes", COUNTED),
    ("state_bytes", "decode state at the trained length", "bytes", COUNTED),
)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One kind of cost, of the variants that have it."""

    key: str  # as in `attnlab.analysis.hypotheses.question.Cost`
    label: str
    unit: str  # "", "FLOPs", "seconds", "bytes" or "bytes a token"
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
