"""The study's questions (`attnlab.analysis.hypotheses.question`), answered from the data alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from attnlab.analysis.hypotheses.layers import every_layer
from attnlab.analysis.hypotheses.question import (
    BestForCost,
    BestQuality,
    EveryLayer,
    GivesUp,
    Needed,
    Question,
)
from attnlab.analysis.hypotheses.question import Pick as WhatToPick
from attnlab.analysis.numbers import nats, quantity
from attnlab.analysis.picks import Front, Pick
from attnlab.analysis.sentences import MOST_NAMED, Said, against, apart, listed, several
from attnlab.analysis.verdict import Verdict
from attnlab.config import ConfigError


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One question answered, with the numbers that say so."""

    question: str
    short: str  # one sentence
    evidence: tuple[str, ...]  # sentences with numbers and intervals


def answers_of(
    verdict: Verdict, fronts: Sequence[Front], picks: Sequence[Pick]
) -> tuple[Answer, ...]:
    """One a question of the study, in its order."""
    return tuple(_answer(said, verdict, fronts, picks) for said in verdict.table.study.questions)


def _answer(
    said: Mapping[str, Any], verdict: Verdict, fronts: Sequence[Front], picks: Sequence[Pick]
) -> Answer:
    try:
        question = Question.from_dict(said)
    except ConfigError as error:  # of a newer version, or of the user's own
        return Answer(question=said.get("text", ""), short=f"Not answered: {error}.", evidence=())
    short, evidence = _said(question, verdict, fronts, picks)
    return Answer(question=question.text, short=short, evidence=tuple(evidence))


def _said(
    question: Question, verdict: Verdict, fronts: Sequence[Front], picks: Sequence[Pick]
) -> Said:
    match question:
        case EveryLayer(study=study):  # which has a verdict of its own
            return every_layer(study, verdict.table.path)
        case _ if not verdict.tiers:
            return verdict.why, ()
        case BestQuality():
            return _best_quality(verdict)
        case BestForCost(cost=cost):
            return _best_for_cost(cost, verdict, fronts)
        case GivesUp(variants=variants, than=than):
            return _gives_up(variants, than, verdict)
        case Needed(without=without, than=than):
            return _needed(without, than, verdict)
        case WhatToPick():
            return _picks(picks)
        case _:
            return f"Not answered: no answer is known to the kind {question.kind()!r}.", ()


def _best_quality(verdict: Verdict) -> Said:
    baseline = verdict.baseline
    if baseline is None:
        return _not_compared((verdict.table.study.baseline or "the baseline",), verdict)
    others = [
        name for name in verdict.order if name != baseline and (name, baseline) in verdict.pairs
    ]
    better = [name for name in others if verdict.worse(baseline, name)]
    worse = [name for name in others if verdict.worse(name, baseline)]
    level = [name for name in others if name not in better and name not in worse]
    counts = f"{_count(better)} better, {_count(level)} not separable, {_count(worse)} worse"
    if better:
        lead = apart(verdict.pairs[better[0], baseline])
        short = f"No: {better[0]} is better than {baseline} by {lead}."
    elif len(level) == len(others) > MOST_NAMED:
        short = f"{baseline} is not beaten; none of the {len(others)} others can be told from it."
    elif level:
        short = f"{baseline} is not beaten, and {several(level)} cannot be told from it."
    else:
        short = f"Yes: {baseline} is separably better than every other variant."
    evidence = [against(name, baseline, verdict.pairs[name, baseline]) for name in others]
    return short, (f"Of the other {len(others)}: {counts}.", *evidence)


def _best_for_cost(key: str, verdict: Verdict, fronts: Sequence[Front]) -> Said:
    front = next((front for front in fronts if front.key == key), None)
    if front is None or not front.front:
        return f"Not answered: {key} was not measured.", ()
    steps = [
        f"{name}: {quantity(cost, front.unit)}, loss {nats(loss)}."
        for name, (cost, loss) in ((name, front.points[name]) for name in front.front)
    ]
    functions = [name for name in front.front if not _repeats(name, front.front, verdict)]
    bought = [
        against(dearer, cheaper, verdict.pairs[dearer, cheaper])
        for cheaper, dearer in pairwise(functions)
    ]
    off = [name for name in front.points if name not in front.front]
    rest = (f"Not worth their {front.label}: {listed(off)}.",) if off else ()
    short = f"Worth their {front.label}: {listed(front.front)}."
    if len(functions) == 1:
        short = f"{listed(front.front)}: no other shows better quality for more {front.label}."
    return short, (*steps, *bought, *rest)


def _repeats(name: str, names: Sequence[str], verdict: Verdict) -> bool:
    """Whether an earlier name is the same function."""
    return any(verdict.same_function(name, other) for other in names[: names.index(name)])


def _gives_up(variants: Sequence[str], than: str, verdict: Verdict) -> Said:
    if than not in verdict.means:
        return _not_compared((than,), verdict)
    known = [name for name in variants if (name, than) in verdict.pairs]
    missing = [name for name in variants if name not in known]
    pairs = {name: verdict.pairs[name, than] for name in known}
    level = [n for n, p in pairs.items() if not (p.equivalent or p.separable)]
    if MOST_NAMED < len(level) == len(known):
        level = [f"all {len(level)}"]
    groups = (
        ("worse than", [f"{n} ({apart(p)})" for n, p in pairs.items() if verdict.worse(n, than)]),
        ("better than", [f"{n} ({apart(p)})" for n, p in pairs.items() if verdict.worse(than, n)]),
        ("practically equal to", [n for n, p in pairs.items() if p.equivalent and not p.separable]),
        ("not separable from", level),
    )
    parts = [f"{how} {than}: {listed(names)}" for how, names in groups if names]
    if not parts:
        return _not_compared(missing, verdict)
    short = "; ".join(parts)
    evidence = [against(name, than, pair) for name, pair in pairs.items()]
    absent = _not_compared(missing, verdict)[1] if missing else ()
    return f"{short[0].upper()}{short[1:]}.", (*evidence, *absent)


def _needed(without: str, than: str, verdict: Verdict) -> Said:
    pair = verdict.pairs.get((without, than))
    if pair is None:
        return _not_compared([n for n in (without, than) if n not in verdict.means], verdict)
    said = against(without, than, pair)
    if verdict.worse(without, than):
        return f"Yes: without it the model is worse by {apart(pair)}.", (said,)
    if pair.separable:
        return f"No: without it the model is better by {apart(pair)}.", (said,)
    if pair.equivalent:
        return "No: without it the model is practically as good.", (said,)
    unseen = f"Differences under {nats(verdict.detectable or 0)} go unseen with these seeds."
    return "Not shown: the model without it cannot be told from the one with it.", (said, unseen)


def _picks(picks: Sequence[Pick]) -> Said:
    short = "; ".join(f"{pick.use_case}: {pick.variant or 'no winner'}" for pick in picks)
    evidence = (
        " ".join(filter(None, (f"{p.use_case.capitalize()}:", p.reason, p.margin))) for p in picks
    )
    return f"{short[0].upper()}{short[1:]}.", tuple(evidence)


def _not_compared(names: Sequence[str], verdict: Verdict) -> Said:
    reasons = tuple(
        f"{name} is not compared: {verdict.left_out.get(name, 'the study has no such variant')}."
        for name in names
    )
    return f"Not answered: {listed(names)} could not be compared.", reasons


def _count(names: Sequence[str]) -> str:
    return str(len(names)) if names else "none"
