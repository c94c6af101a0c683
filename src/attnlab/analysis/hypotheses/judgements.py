"""The published claims of a study (`claim`), judged by its own simultaneous intervals.

    confirmed       separable in the direction claimed
    refuted         separable in the other direction
    not separable   neither, with these seeds

What rests on several pairs is confirmed by all of them, and refuted by one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any, Literal

from attnlab.analysis.costs import Cost
from attnlab.analysis.hypotheses.claim import (
    Alike,
    AmongBest,
    AmongWorst,
    Claim,
    InRange,
    Ordered,
    Within,
)
from attnlab.analysis.numbers import gigabytes, millions, nats, quantity
from attnlab.analysis.sentences import against, apart, listed, several
from attnlab.analysis.verdict import Verdict
from attnlab.config import ConfigError

Ruling = Literal["confirmed", "refuted", "not separable at this budget", "not judged"]
Judged = tuple[Ruling, Sequence[str]]  # and the sentences that say so
OPEN: Ruling = "not separable at this budget"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What was published, and what was found."""

    claim: str
    source: str
    measure: str  # of the published numbers
    published: Mapping[str, float]  # by variant, the best first
    ruling: Ruling
    found: tuple[str, ...]  # sentences with numbers and intervals


def judgements_of(verdict: Verdict, costs: Sequence[Cost]) -> tuple[Judgement, ...]:
    """One a claim of the study, in its order."""
    return tuple(_judgement(said, verdict, costs) for said in verdict.table.study.claims)


def _judgement(said: Mapping[str, Any], verdict: Verdict, costs: Sequence[Cost]) -> Judgement:
    try:
        claim = Claim.from_dict(said)
    except ConfigError as error:  # of a newer version, or of the user's own
        claim = Claim(text=said.get("text") or "?", source=said.get("source") or "?")
        ruling, found = "not judged", (f"{error}.",)
    else:
        ruling, found = _judged(claim, verdict, costs)
    if ruling == OPEN and verdict.detectable is not None:
        seeds = len(verdict.seeds)
        unseen = (
            f"Of differences under {nats(verdict.detectable)} most go unseen with {seeds} seeds."
        )
        found = (*found, unseen)
    return Judgement(
        claim=claim.text,
        source=claim.source,
        measure=claim.measure,
        published=dict(claim.published),
        ruling=ruling,
        found=tuple(found),
    )


def _judged(claim: Claim, verdict: Verdict, costs: Sequence[Cost]) -> Judged:
    match claim:
        case InRange():  # which needs no seeds
            return _in_range(claim, verdict, costs)
        case _ if not verdict.tiers:
            return "not judged", (verdict.why,)
        case Ordered(variants=names):
            return _ordered(names, verdict)
        case AmongBest(variant=name, places=places):
            return _among(name, places, verdict, best=True)
        case AmongWorst(variant=name, places=places):
            return _among(name, places, verdict, best=False)
        case Within(spread=spread, variants=names):
            every = tuple(variant.name for variant in verdict.table.variants)
            return _within(names or every, spread, verdict)
        case Alike(variants=names):
            return _alike(names, verdict)
        case _:
            return "not judged", (f"No judgement is known for the kind {claim.kind()!r}.",)


def _ordered(names: Sequence[str], verdict: Verdict) -> Judged:
    known, absent = _known(names, verdict)
    pairs = list(combinations(known, 2))
    reversed_ = [(a, b) for a, b in pairs if verdict.worse(a, b)]
    if reversed_:
        return "refuted", (*(_against(a, b, verdict) for a, b in reversed_), *absent)
    if absent:
        return "not judged", absent
    shown = [(a, b) for a, b in pairs if verdict.worse(b, a)]
    if len(shown) == len(pairs):
        return "confirmed", [_against(a, b, verdict) for a, b in pairwise(known)]
    if len(pairs) == 1:
        return OPEN, [_against(*pairs[0], verdict)]
    count = f"Of {len(pairs)} pairs {len(shown) or 'none'}"
    return OPEN, (
        f"{count} can be told apart, in the order claimed.",
        *(_against(a, b, verdict) for a, b in pairwise(known)),
    )


def _among(name: str, places: int, verdict: Verdict, *, best: bool) -> Judged:
    """Among the best, or the worst; what is not compared might have any place."""
    if name not in verdict.means:
        return "not judged", _known([name], verdict)[1]
    others = [names[0] for names in verdict.functions if name not in names]
    better = [other for other in others if verdict.worse(name, other)]
    worse = [other for other in others if verdict.worse(other, name)]
    before, behind = (better, worse) if best else (worse, better)
    place = 1 + sum(verdict.means[other] < verdict.means[name] for other in others)
    rival = others[0] if best else others[-1]
    found = (
        f"{name} has place {place} of {len(others) + 1} by mean loss: {len(better) or 'none'} "
        f"separably better, {len(worse) or 'none'} separably worse.",
        _against(name, rival, verdict),
        *_known(list(verdict.left_out), verdict)[1],
    )
    if len(before) >= places:
        return "refuted", found
    if len(behind) > len(others) + len(verdict.left_out) - places:
        return "confirmed", found
    return ("not judged" if verdict.left_out else OPEN), found


def _within(names: Sequence[str], spread: float, verdict: Verdict) -> Judged:
    known, absent = _known(names, verdict)
    pairs = [verdict.pairs[pair] for pair in combinations(known, 2)]
    ends = [
        (-pair.high, -pair.low) if pair.mean < 0 else (pair.low, pair.high)
        for pair in pairs
        if pair.low is not None and pair.high is not None
    ]
    if not ends:
        return "not judged", absent or ("There are no two variants to compare.",)
    first, *_, last = sorted(known, key=lambda name: verdict.means[name])
    span = f"The means span {apart(verdict.pairs[last, first])}, from {first} to {last}."
    found = (span, f"The claim is {nats(spread)}.", *absent)
    if any(low > spread for low, _ in ends):
        return "refuted", found
    if absent:
        return "not judged", found
    return ("confirmed" if all(high <= spread for _, high in ends) else OPEN), found


def _alike(names: Sequence[str], verdict: Verdict) -> Judged:
    known, absent = _known(names, verdict)
    pairs = list(combinations(known, 2))
    found = (*(_against(a, b, verdict) for a, b in pairs), *absent)
    if any(verdict.pairs[a, b].separable and not verdict.pairs[a, b].equivalent for a, b in pairs):
        return "refuted", found
    if absent:
        return "not judged", found
    if all(verdict.pairs[pair].equivalent for pair in pairs):
        return "confirmed", found
    noise = f"One run's noise is {nats(verdict.noise or 0)}, the margin {nats(verdict.margin)}."
    return OPEN, (*found, noise)


def _in_range(claim: InRange, verdict: Verdict, costs: Sequence[Cost]) -> Judged:
    cost = next((cost for cost in costs if cost.key == claim.cost), None)
    if cost is None:
        return "not judged", (f"{claim.cost} was not measured, or on several devices.",)
    by_size = sorted(cost.of, key=lambda name: cost.of[name])
    said = {name: _decimal(cost.of[name], cost.unit) for name in by_size}
    first, last = by_size[0], by_size[-1]
    span = f"Here from {said[first]} ({first}) to {said[last]} ({last})."
    outside = [
        name
        for name, value in cost.of.items()
        if not claim.low - claim.resolution <= value <= claim.high + claim.resolution
    ]
    if not outside:
        unfinished = [v.name for v in verdict.table.variants if v.name not in cost.of]
        more = (f"Not measured yet: {listed(unfinished)}.",) if unfinished else ()
        return ("not judged" if unfinished else "confirmed"), (span, *more)
    if len(outside) == len(by_size):
        return "refuted", (span, "None lies inside.")
    inside = len(by_size) - len(outside)
    which = listed([f"{name} ({said[name]})" for name in by_size if name in outside])
    return "refuted", (span, f"{inside} of {len(by_size)} lie inside; outside: {which}.")


def _known(names: Sequence[str], verdict: Verdict) -> tuple[list[str], tuple[str, ...]]:
    """Those that are compared, and of those that are not a sentence for each reason."""
    reasons: dict[str, list[str]] = {}
    for name in names:
        if name not in verdict.means:
            reason = verdict.left_out.get(name, "the study has no such variant")
            reasons.setdefault(reason, []).append(name)
    absent = tuple(
        f"{several(absent)} {'is' if len(absent) == 1 else 'are'} not compared: {reason}."
        for reason, absent in reasons.items()
    )
    return [name for name in names if name in verdict.means], absent


def _against(first: str, second: str, verdict: Verdict) -> str:
    return against(first, second, verdict.pairs[first, second])


def _decimal(value: float, unit: str) -> str:
    """A cost as papers write it: bytes by powers of 1,000, a count with one digit more."""
    if unit == "bytes":
        return gigabytes(value)
    return quantity(value, unit) if unit else millions(value)
