"""Quality beside cost: which variants are worth their price?

A variant is on the front unless another

    costs less and is not separably worse, or
    costs the same and is separably better.

So what costs more must buy quality that the seeds can show. Costs within the resolution of their
measurement are the same, and so are the costs of one function under two names by one kernel.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from attnlab.analysis.costs import Cost
from attnlab.analysis.verdict import Verdict


@dataclass(frozen=True, kw_only=True)
class Front:
    """One cost against the loss. Lower is better on both axes."""

    key: str  # as in `attnlab.analysis.hypotheses.question.Cost`
    label: str  # "forward FLOPs a token"
    unit: str  # "FLOPs", "seconds" or "bytes"; "" for a count
    points: Mapping[str, tuple[float, float]]  # variant: (cost, loss)
    front: tuple[str, ...]  # names, cheapest first; empty without a verdict


def front_of(cost: Cost, verdict: Verdict) -> Front:
    """Of the variants that are compared and have this cost."""
    known = [name for name in verdict.order if name in cost.of]
    kept = [
        name
        for name in known
        if not any(_beats(other, name, cost, verdict) for other in known if other != name)
    ]
    return Front(
        key=cost.key,
        label=cost.label,
        unit=cost.unit,
        points={name: (cost.of[name], verdict.means[name]) for name in known},
        front=tuple(sorted(kept, key=lambda name: cost.of[name])) if verdict.tiers else (),
    )


def _beats(other: str, name: str, cost: Cost, verdict: Verdict) -> bool:
    if verdict.same_work(other, name) or cost.cheaper(name, other):
        return False
    if cost.cheaper(other, name):
        return not verdict.worse(other, name)
    return verdict.worse(name, other)
