"""Parameter efficiency: what a variant gains against the baseline, for the size that it has.

    gain        loss of the baseline - loss of the variant, paired by seed, nats a token
    efficiency  gain / parameters of the whole model, nats a token and million parameters

Its interval is that of the gain, which holds for all pairs of the study at once, divided by the
same number. The gain for each parameter *more* is no measure: variants that have fewer parameters
and a lower loss would count as the least efficient.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from attnlab.analysis.sentences import listed, nats
from attnlab.analysis.verdict import Verdict


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
