"""The verdict in two sentences that a newcomer understands."""

from collections.abc import Sequence
from itertools import takewhile

from attnlab.analysis.controls import Control
from attnlab.analysis.sentences import listed, several
from attnlab.analysis.statistics.intervals import Comparison
from attnlab.analysis.verdict import Verdict

SPLIT = {"test_loss": "test", "final_loss": "validation"}


def headline(verdict: Verdict, controls: Sequence[Control]) -> tuple[str, str]:
    """What won and by how much; then where the others are, or why there is no winner."""
    if not verdict.order:
        return "No run that can be compared has finished yet.", _left_out(verdict) or verdict.why
    best = verdict.order[0]
    loss = f"{verdict.means[best]:.3f} nats a token on the {SPLIT[verdict.metric]} text"
    if not verdict.tiers:
        has = "has the lowest loss" if len(verdict.order) > 1 else "stands alone"
        return f"{best} {has} ({loss}), but that is no verdict.", f"{verdict.why}{_more(verdict)}"
    lead = [names for names in verdict.functions if verdict.tiers[names[0]] == 1]
    if len(lead) == 1:
        rival = verdict.functions[1][0]
        by = _plus_minus(verdict.pairs[best, rival])
        first = (
            f"{_introduced(verdict, lead[0])} predicts this text best: {loss}, {by} better than "
        )
        first += f"the next, {rival}."
    elif len(lead) == len(verdict.functions):
        first = f"No winner: the differences between the {len(lead)} variants are within the noise "
        first += f"(the lowest mean is {best}'s, {loss})."
    else:
        first = _shared(verdict, loss)
    for control in controls:
        if control.same_rate and control.ties is False:
            return first, control.note
    return first, _others(verdict) + _left_out(verdict)


def _introduced(verdict: Verdict, names: Sequence[str]) -> str:
    """The names, and what mechanism that is where they do not say so."""
    (mechanism,) = {v.mechanism for v in verdict.table.variants if v.name == names[0]}
    said = mechanism.replace("_", " ")
    return f"{listed(names)} ({said})" if said and mechanism not in names else listed(names)


def _shared(verdict: Verdict, loss: str) -> str:
    """Who shares the lead; and who cannot be told from it for being noisy, though others can."""
    best, tiers = verdict.order[0], verdict.tiers
    near = list(takewhile(lambda name: tiers[name] == 1, verdict.order))
    far = [name for name in verdict.order if tiers[name] == 1 and name not in near]
    if len(near) == 1:
        first = f"{best} has the lowest loss: {loss}."
    else:
        said = f"{several(near)} share the lead: {loss} for {best}"
        first = f"{said}, and the others cannot be told from it."
    if not far:
        return first
    nor = "Nor can" if len(near) > 1 else "It cannot be told from"
    why = "losses there vary too much from seed to seed"
    return f"{first} {nor} {several(far)}, {_behind(verdict, far)}: {why}."


def _behind(verdict: Verdict, names: Sequence[str]) -> str:
    behind = sorted(verdict.to_best[name].mean for name in names)
    ends = dict.fromkeys([f"{behind[0]:.3f}", f"{behind[-1]:.3f}"])
    return f"{' to '.join(ends)} nats behind"


def _others(verdict: Verdict) -> str:
    """The tiers behind the first, each with how far it is behind."""
    said: list[str] = []
    for tier in sorted(set(verdict.tiers.values()) - {1}):
        names = [name for name in verdict.order if verdict.tiers[name] == tier]
        said.append(f"{several(names)} ({_behind(verdict, names)})")
    if not said:
        smallest = f"{verdict.detectable:.3f}" if verdict.detectable is not None else "?"
        return f"With {len(verdict.seeds)} seeds, differences under {smallest} nats go unseen."
    return f"Behind {'it' if len(_leaders(verdict)) == 1 else 'them'}: {'; then '.join(said)}."


def _leaders(verdict: Verdict) -> list[str]:
    return [name for name, tier in verdict.tiers.items() if tier == 1]


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
