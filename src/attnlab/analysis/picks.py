"""Quality and cost: the Pareto front of each cost, and the variant to pick for each use case.

A variant is on the Pareto front of a cost unless another variant

    costs less and is shown not to be worse by the margin (non-inferior), or
    costs the same and is distinguishably better.

Costs within the resolution of their measurement, or within the noise of times over runs, are equal,
and so are the costs of one function under two names with the same kernel.

The pick for quality is the variant that is distinguishably better than all others, if there is
one. Every other pick is the cheapest of the baseline, which its user has today, and of the variants
that are shown not to be worse than it by the margin (than the best variant, if the baseline is not
compared). That a variant is not distinguishable supports no pick. Of variants with equal costs,
those that are distinguishably worse than another one are left out; if more than one remains, "no
winner" is the result.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from attnlab.analysis.costs import COUNTED, Cost, Serving
from attnlab.analysis.headline import behind, equivalent_to_best, undecided, winner
from attnlab.analysis.numbers import ends, nats, quantity
from attnlab.analysis.sentences import against, apart, listed, several
from attnlab.analysis.verdict import Verdict

QUALITY = "quality first"
USES = (  # use case, the costs to minimise, the first one first
    ("memory first", ("state_bytes",)),
    ("training speed first", ("step_time",)),
    ("decoding speed first", ("decode_seconds",)),
    ("long context", ("state_growth", "state_bytes")),
    ("smallest model", ("parameters",)),
)
FROM_BENCH = ("decode_seconds", "state_growth")


@dataclass(frozen=True, kw_only=True)
class Front:
    """One cost against the loss; lower is better on both axes."""

    key: str  # of the cost, an `attnlab.analysis.costs.CostKey`
    label: str  # "forward FLOPs/token"
    unit: str  # "FLOPs", "seconds" or "bytes"; "" for a count
    points: Mapping[str, tuple[float, float]]  # variant: (cost, loss)
    front: tuple[str, ...]  # names on the Pareto front, cheapest first; empty without a verdict


@dataclass(frozen=True, kw_only=True)
class Pick:
    """The variant for one use case, or for several that have no winner for one reason."""

    use_cases: tuple[str, ...]
    variant: str | None  # None: no winner
    reason: str
    margin: str  # its lead, or its loss of quality, with the interval
    would_change: str  # what would change the pick

    @property
    def use_case(self) -> str:
        """The use cases in words."""
        return listed(self.use_cases)


def front_of(cost: Cost, verdict: Verdict) -> Front:
    """Return the Pareto front of a cost, of the variants that are compared and have this cost."""
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
        front=tuple(sorted(kept, key=lambda name: cost.of[name])) if verdict.judged else (),
    )


def picks_of(verdict: Verdict, costs: Sequence[Cost], serving: Serving) -> tuple[Pick, ...]:
    """Return the picks in the order of the use cases."""
    if not verdict.judged:
        more = "A verdict: at least two variants that have finished two seeds each."
        uses = (QUALITY, *(use for use, _ in USES))
        return _joined(_no_winner(use, verdict.why, more) for use in uses)
    growth = Cost(
        key="state_growth",
        label="growth of the decode state",
        unit="bytes/token",
        resolution=COUNTED,
        of=serving.state_growth,
    )
    by_key = {cost.key: cost for cost in (*costs, growth)}
    cheapest = (_cheapest(use, keys, by_key, verdict) for use, keys in USES)
    return _joined((_best(verdict), *cheapest))


def _beats(other: str, name: str, cost: Cost, verdict: Verdict) -> bool:
    if verdict.same_work(other, name) or cost.cheaper(name, other):
        return False
    if cost.cheaper(other, name):
        return verdict.not_worse(other, name)
    return verdict.worse(name, other)


def _joined(picks: Iterable[Pick]) -> tuple[Pick, ...]:
    """Return the picks, where use cases without a winner for the same reason are one."""
    found: dict[Pick, tuple[str, ...]] = {}
    for pick in picks:
        key = replace(pick, use_cases=() if pick.variant is None else pick.use_cases)
        found[key] = (*found.get(key, ()), *pick.use_cases)
    return tuple(replace(pick, use_cases=use_cases) for pick, use_cases in found.items())


def _best(verdict: Verdict) -> Pick:
    best = verdict.order[0]
    if not winner(verdict):
        equal = equivalent_to_best(verdict)
        others = equal or [of[0] for of in verdict.leaders if best not in of]
        if equal:
            reason = f"{several([best, *equal])} are equivalent within the margin."
            if wide := [of[0] for of in verdict.leaders if not {best, *equal} & set(of)]:
                reason += f" {several(wide)} may be better."
        else:
            reason = f"Each of {several([best, *others])} may be the best."
        who = f"{others[0]} is" if len(others) == 1 else "the others are"
        return _no_winner(
            QUALITY,
            reason,
            undecided(verdict) or ("A smaller margin." if equal else "More seeds."),
            margin=f"{best} has the lowest mean; {who} {behind(verdict, others)}.",
        )
    rival = next(of[0] for of in verdict.functions if best not in of)
    pair = verdict.pairs[best, rival]
    known = pair.high is not None and pair.separable
    needed = nats(-pair.high) if pair.high is not None and known else "the error"
    return Pick(
        use_cases=(QUALITY,),
        variant=best,
        reason=f"{_named(best, verdict)} is better than every other variant.",
        margin=f"It leads the next, {rival}, by {apart(pair) if known else nats(-pair.mean)}.",
        would_change=f"{rival} gaining more than {needed}, the low end of that interval."
        if known
        else f"More seeds, for an interval of its lead over {rival}.",
    )


def _cheapest(use: str, keys: Sequence[str], costs: Mapping[str, Cost], verdict: Verdict) -> Pick:
    known = [costs[key] for key in keys if key in costs and costs[key].of]
    if not known or known[0].key != keys[0]:
        return _unmeasured(use, keys[0], verdict)
    first = known[0]
    than = verdict.baseline or verdict.order[0]
    able = [name for name in verdict.order if all(name in cost.of for cost in known)]
    left = tolerated = [name for name in able if verdict.not_worse(name, than)]
    for cost in known:
        left = [name for name in left if not any(cost.cheaper(other, name) for other in left)]
    left = [name for name in left if not any(verdict.worse(name, other) for other in left)]
    if not left or not all(verdict.same_function(left[0], name) for name in left):
        needs = _span([first.of[name] for name in left], first.unit) if left else ""
        none, others = ("none", "others") if len(left) > 2 else ("neither", "other")
        return _no_winner(
            use,
            f"{several(left)} need the same within its error ({first.label}: {needs}), and {none} "
            f"is distinguishably better than the {others}."
            if left
            else f"No variant was measured that is shown not to be worse than {than}.",
            "More seeds, or another cost that decides between them.",
        )
    picked = left[0]
    saved = _times(first, picked, than)
    if len(tolerated) == 1 and picked == than:
        reason = f"No other variant is shown not to be worse than {than} by the margin."
    else:
        reason = (
            f"{_named(picked, verdict)} is lowest in {first.label}, of the variants shown not to "
            f"be worse than {than} by {nats(verdict.margin)}: "
            f"{quantity(first.of[picked], first.unit)}{saved}."
        )
    return Pick(
        use_cases=(use,),
        variant=picked,
        reason=reason,
        margin=_gives_up(picked, than, verdict),
        would_change=_cheaper_still(first, picked, tolerated, than, verdict),
    )


def _span(values: Sequence[float], unit: str) -> str:
    ends = dict.fromkeys(quantity(value, unit) for value in (min(values), max(values)))
    return " to ".join(ends)


def _unmeasured(use: str, key: str, verdict: Verdict) -> Pick:
    if key in FROM_BENCH and verdict.table.sources:
        run = "`attnlab bench` of one study that has all of these variants."
        return _no_winner(use, "Decoding is measured per study.", run)
    if key in FROM_BENCH:
        run = "`attnlab bench` of this study measures it, with --out for this folder."
        return _no_winner(use, "Decoding was not measured in this study.", run)
    if len(verdict.table.devices) > 1:
        return _no_winner(use, "The runs used different devices.", "Runs on one device.")
    return _no_winner(use, "The runs did not record it.", "Runs that record it.")


def _gives_up(name: str, than: str, verdict: Verdict) -> str:
    """Return the differences of a pick to the best variant and to the baseline."""
    best = verdict.order[0]
    if verdict.same_function(name, best):
        return "It gives up nothing: no variant has a lower mean loss."
    pair = verdict.pairs[name, best]
    loss = f"It gives up {apart(pair)} to the best, {best}."
    if not pair.separable:
        loss = against(name, best, pair)
    if name in (than, best) or than == best or verdict.same_function(name, than):
        return loss
    to_baseline = verdict.to_baseline.get(name, verdict.pairs[name, than])
    if to_baseline.separable or to_baseline.equivalent:
        return f"{loss} {against(name, than, to_baseline)}"
    shown = f"{to_baseline.mean:+.3f} nats/token"
    if to_baseline.low is not None and to_baseline.high is not None:
        shown += f" {ends((to_baseline.low, to_baseline.high), 3, '+')}"
    return f"{loss} {name} is not worse than {than} by the margin: difference {shown}."


def _cheaper_still(
    cost: Cost, picked: str, tolerated: Sequence[str], than: str, verdict: Verdict
) -> str:
    """Return what would change the pick: the best of the cheaper variants that may be worse."""
    refused = [
        name
        for name in verdict.order
        if name in cost.of and name not in tolerated and cost.cheaper(name, picked)
    ]
    if not refused and not cost.of[picked]:
        return "Nothing in this cost: there is none to save."
    if not refused:
        fewer = "less" if cost.unit else "fewer"
        return f"A variant that needs {fewer} than {_amount(cost, picked)}."
    name = refused[0]
    pair = verdict.to_baseline.get(name, verdict.pairs[name, than])
    needs = f"{name} needs {_amount(cost, name)}"
    if pair.separable:
        return f"Accepting more loss: {needs}, and is worse than {than} by {apart(pair)}."
    may_be = f"{needs}, and may be worse than {than} by up to {nats(pair.high or 0.0)}"
    if pair.mean < verdict.margin <= pair.mean + pair.second_allowance:
        missed = nats(pair.second_allowance)
        return f"Closer tuning of {than}, which may have missed {missed}: {may_be}."
    return f"More seeds: {may_be}."


def _amount(cost: Cost, name: str) -> str:
    """Return what a variant needs; of a count, what is counted."""
    needed = quantity(cost.of[name], cost.unit)
    return needed if cost.unit else f"{needed} {cost.label}"


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
    return Pick(
        use_cases=(use,), variant=None, reason=reason, margin=margin, would_change=would_change
    )
