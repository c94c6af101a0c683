"""The verdict in two sentences."""

from collections.abc import Sequence
from itertools import takewhile

from attnlab.analysis.controls import Control
from attnlab.analysis.numbers import nats
from attnlab.analysis.sentences import listed, several
from attnlab.analysis.statistics.intervals import Comparison
from attnlab.analysis.verdict import Verdict

SPLIT = {"test_loss": "test", "final_loss": "validation"}


def headline(verdict: Verdict, controls: Sequence[Control]) -> tuple[str, str]:
    """Return the winner and its lead, and then the other variants or why there is no winner."""
    if not verdict.order:
        return "No run that can be compared has finished yet.", _left_out(verdict) or verdict.why
    best = verdict.order[0]
    loss = f"{nats(verdict.means[best])} on the {SPLIT[verdict.metric]} text"
    if not verdict.tiers:
        has = "has the lowest loss" if len(verdict.order) > 1 else "is the only variant compared"
        return f"{best} {has} ({loss}), but that is no verdict.", f"{verdict.why}{_more(verdict)}"
    lead = [names for names in verdict.functions if verdict.tiers[names[0]] == 1]
    if len(lead) == 1:
        rival = verdict.functions[1][0]
        by = _plus_minus(verdict.pairs[best, rival])
        first = (
            f"{_introduced(verdict, lead[0])} predicts this text best: {loss}, {by} better than "
            f"the next, {rival}."
        )
    elif len(lead) == len(verdict.functions):
        first = f"No winner: the {len(lead)} variants are not distinguishable "
        first += f"(lowest mean: {best}, {loss})."
    else:
        first = _shared(verdict, loss)
    for control in controls:
        if control.same_rate and control.ties is False:
            return first, control.note
    return first, (_others(verdict) + _left_out(verdict)).strip()


def behind(verdict: Verdict, names: Sequence[str]) -> str:
    """Return the range of differences between the best variant and others, and their unit."""
    differences = sorted(max(0.0, verdict.to_best[name].mean) for name in names)
    ends = dict.fromkeys([f"{differences[0]:.3f}", f"{differences[-1]:.3f}"])
    return f"{' to '.join(ends)} nats/token behind"


def _introduced(verdict: Verdict, names: Sequence[str]) -> str:
    """Return the names of a function, and its mechanism if the names do not say it."""
    (mechanism,) = {v.mechanism for v in verdict.table.variants if v.name == names[0]}
    shown = mechanism.replace("_", " ")
    return f"{listed(names)} ({shown})" if shown and mechanism not in names else listed(names)


def _shared(verdict: Verdict, loss: str) -> str:
    """Return who shares the lead, and which noisier variants are not distinguishable from it.

    Their means are behind those of variants that are distinguishable from the best.
    """
    best, tiers = verdict.order[0], verdict.tiers
    near = list(takewhile(lambda name: tiers[name] == 1, verdict.order))
    far = [name for name in verdict.order if tiers[name] == 1 and name not in near]
    if len(near) == 1:
        first = f"{best} has the lowest loss: {loss}."
    else:
        shared = f"{several(near)} share the lead: {loss} for {best}"
        first = f"{shared}, from which the others are not distinguishable."
    if not far:
        return first
    also = "also " if len(near) > 1 else ""
    verb = "is" if len(far) == 1 else "are"
    return (
        f"{first} {several(far)}, {behind(verdict, far)}, {verb} {also}not distinguishable from "
        f"{best}, because the losses vary too much between seeds."
    )


def _others(verdict: Verdict) -> str:
    """Return the tiers after the first, each with its distance from the best; empty without."""
    tiers: list[str] = []
    for tier in sorted(set(verdict.tiers.values()) - {1}):
        names = [name for name in verdict.order if verdict.tiers[name] == tier]
        tiers.append(f"{several(names)} ({behind(verdict, names)})")
    if not tiers:
        return ""
    leaders = [name for name, tier in verdict.tiers.items() if tier == 1]
    return f"Behind {'it' if len(leaders) == 1 else 'them'}: {'; then '.join(tiers)}."


def _left_out(verdict: Verdict) -> str:
    if not verdict.left_out:
        return ""
    name, reason = next(iter(verdict.left_out.items()))
    if len(verdict.left_out) == 1:
        return f" Not compared: {name} ({reason})."
    return f" Not compared: {several(list(verdict.left_out))} ({name}: {reason})."


def _more(verdict: Verdict) -> str:
    return " Run it with --seeds 3 or more for error bars." if len(verdict.seeds) == 1 else ""


def _plus_minus(pair: Comparison) -> str:
    if pair.low is None or pair.high is None:
        return f"{abs(pair.mean):.3f}"
    half = max(pair.high - pair.mean, pair.mean - pair.low)
    return f"{abs(pair.mean):.3f} ± {half:.3f}"
