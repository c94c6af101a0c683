"""What to take when one thing comes first, with what that gives up in quality.

Quality first takes the one variant that no other can be told from, if there is one. Every other
pick is the cheapest variant that is not separably worse than the baseline, which is what its user
has today (than the best, where there is no baseline to compare). Of variants that cost the same
one is picked only if it is separably better than the rest: "no winner" is an answer.

Quality beside cost: which variants are worth their price?

A variant is on the front unless another

    costs less and is not separably worse, or
    costs the same and is separably better.

So what costs more must buy quality that the seeds can show. Costs within the resolution of their
measurement are the same, and so are the costs of one function under two names by one kernel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attnlab.analysis.costs import COUNTED, Cost, Serving
from attnlab.analysis.numbers import nats, quantity
from attnlab.analysis.sentences import MOST_NAMED, against, apart, listed, several
from attnlab.analysis.verdict import Verdict

USES = (  # use case, what it asks the least of, and what decides between equals
    ("memory first", ("state_bytes",)),
    ("training speed first", ("step_time",)),
    ("decoding speed first", ("decode_seconds",)),
    ("long context", ("state_growth", "state_bytes")),
    ("smallest model", ("parameters",)),
)
FROM_BENCH = ("decode_seconds", "state_growth")


@dataclass(frozen=True, kw_only=True)
class Front:
    """One cost against the loss. Lower is better on both axes."""

    key: str  # as in `attnlab.analysis.costs.CostKey`
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


@dataclass(frozen=True, kw_only=True)
class Pick:
    """The variant for one use case, or none."""

    use_case: str  # "quality first"
    variant: str | None  # None: no winner
    reason: str
    margin: str  # how far it leads, or what it gives up in quality, with the interval
    would_change: str  # what would change the pick


def picks_of(verdict: Verdict, costs: Sequence[Cost], serving: Serving) -> tuple[Pick, ...]:
    """One a use case."""
    if not verdict.tiers:
        names = ("quality first", *(use for use, _ in USES))
        more = "A verdict: at least two variants that have finished the same two seeds."
        return tuple(_no_winner(name, verdict.why, more) for name in names)
    growth = Cost(
        key="state_growth",
        label="growth of the decode state",
        unit="bytes/token",
        resolution=COUNTED,
        of=serving.state_growth,
    )
    by_key = {cost.key: cost for cost in (*costs, growth)}
    cheapest = (_cheapest(use, keys, by_key, verdict) for use, keys in USES)
    return (_best(verdict), *cheapest)


def _best(verdict: Verdict) -> Pick:
    use, best = "quality first", verdict.order[0]
    lead = [names for names in verdict.functions if verdict.tiers[names[0]] == 1]
    if len(lead) > 1:
        others = [names[0] for names in lead[1:]]
        shown = others if len(others) < MOST_NAMED else [others[0], others[-1]]
        return _no_winner(
            use,
            f"{several([best, *others])} cannot be told apart.",
            f"More seeds: of differences under {nats(verdict.detectable or 0)} most go unseen "
            f"with {len(verdict.seeds)}.",
            margin=" ".join(
                (
                    f"{best} has the lowest mean{_nearest_and_furthest(shown, others)}.",
                    *(against(name, best, verdict.pairs[name, best]) for name in shown),
                )
            ),
        )
    rival = verdict.functions[1][0]
    pair = verdict.pairs[best, rival]
    needed = nats(-pair.high) if pair.high is not None else "more than the noise"
    return Pick(
        use_case=use,
        variant=best,
        reason=f"{_named(best, verdict)} is separably better than every other variant.",
        margin=f"It leads the next, {rival}, by {apart(pair)}.",
        would_change=f"{rival} gaining more than {needed}, the low end of that interval.",
    )


def _nearest_and_furthest(shown: Sequence[str], others: Sequence[str]) -> str:
    if len(shown) == len(others):
        return ""
    return f"; of the {len(others)} others {shown[0]} is nearest to it and {shown[1]} furthest"


def _cheapest(use: str, keys: Sequence[str], costs: Mapping[str, Cost], verdict: Verdict) -> Pick:
    known = [costs[key] for key in keys if key in costs and costs[key].of]
    if not known or known[0].key != keys[0]:
        if keys[0] in FROM_BENCH:
            if verdict.table.sources:
                run = "`attnlab bench` of one study that has all of these variants."
                return _no_winner(use, "Decoding is measured study by study.", run)
            run = f"`attnlab bench {verdict.table.study.name}` measures it."
            return _no_winner(use, "Decoding was not measured in this study.", run)
        if len(verdict.table.devices) > 1:
            return _no_winner(use, "The runs ran on different devices.", "Runs on one device.")
        return _no_winner(use, "The runs did not record it.", "Runs that record it.")
    first = known[0]
    than = verdict.baseline or verdict.order[0]
    able = [name for name in verdict.order if all(name in cost.of for cost in known)]
    left = tolerated = [name for name in able if not verdict.worse(name, than)]
    for cost in known:
        left = [name for name in left if not any(cost.cheaper(other, name) for other in left)]
    winner = _separably_best(left, verdict)
    if winner is None:
        needs = ", ".join(quantity(cost.of[left[0]], cost.unit) for cost in known) if left else ""
        return _no_winner(
            use,
            f"{several(left)} need the same ({first.label}: {needs}) and cannot be told apart."
            if left
            else f"No variant that is not separably worse than {than} was measured.",
            "More seeds, or another cost that decides between them.",
        )
    saved = _times(first, winner, than)
    return Pick(
        use_case=use,
        variant=winner,
        reason=(
            f"{_named(winner, verdict)} is lowest in {first.label}, of the variants that are not "
            f"separably worse than {than}: {quantity(first.of[winner], first.unit)}{saved}."
        ),
        margin=_gives_up(winner, than, verdict),
        would_change=_cheaper_still(first, winner, tolerated, than, verdict),
    )


def _separably_best(names: Sequence[str], verdict: Verdict) -> str | None:
    """The one that all others are separably worse than; names of one function count as one."""
    if not names:
        return None
    best, *others = names  # in the order of the verdict
    beaten = all(verdict.same_function(best, name) or verdict.worse(name, best) for name in others)
    return best if beaten else None


def _gives_up(name: str, than: str, verdict: Verdict) -> str:
    """Against the best, and against what the user has."""
    best = verdict.order[0]
    if verdict.same_function(name, best):
        return "It gives up nothing: no variant has a lower mean loss."
    pair = verdict.pairs[name, best]
    said = f"It gives up {apart(pair)} to the best, {best}."
    if not pair.separable:
        said = against(name, best, pair)
    if name in (than, best) or than == best:
        return said
    return f"{said} {against(name, than, verdict.pairs[name, than])}"


def _cheaper_still(
    cost: Cost, winner: str, tolerated: Sequence[str], than: str, verdict: Verdict
) -> str:
    """The cheaper variants that were too much worse, the best of them first."""
    refused = [
        name
        for name in verdict.order
        if name in cost.of and name not in tolerated and cost.cheaper(name, winner)
    ]
    if not refused and not cost.of[winner]:
        return "Nothing in this cost: there is none to save."
    if not refused:
        return f"A variant that needs less than {quantity(cost.of[winner], cost.unit)}."
    name = refused[0]
    return (
        f"Accepting more loss: {name} needs {quantity(cost.of[name], cost.unit)}, and is worse "
        f"than {than} by {apart(verdict.pairs[name, than])}."
    )


def _times(cost: Cost, winner: str, than: str) -> str:
    if winner == than or than not in cost.of:
        return ""
    there = quantity(cost.of[than], cost.unit)
    if not cost.cheaper(winner, than):
        return f", as much as {than}"
    if cost.of[winner] <= 0:
        return f", where {than} needs {there}"
    return f", {cost.of[than] / cost.of[winner]:.3g} times less than {than} ({there})"


def _named(name: str, verdict: Verdict) -> str:
    same = [other for names in verdict.functions if name in names for other in names]
    others = [other for other in same if other != name]
    return f"{name} (the same as {listed(others)})" if others else name


def _no_winner(use: str, reason: str, would_change: str, margin: str = "") -> Pick:
    return Pick(use_case=use, variant=None, reason=reason, margin=margin, would_change=would_change)
