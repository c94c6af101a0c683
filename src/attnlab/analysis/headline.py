"""The verdict in two sentences.

A winner is a variant that Hsu's intervals show to be better than all others, unless another one is
equivalent to it within the margin. Variants that may be the best, and variants that are worse than
it, are named as such; no order among either is stated.
"""

import math
from collections.abc import Mapping, Sequence

from attnlab.analysis.controls import Control
from attnlab.analysis.hypotheses.hypothesis import Judgement
from attnlab.analysis.numbers import ends, nats
from attnlab.analysis.profile import profile_of, read_by
from attnlab.analysis.sentences import MOST_NAMED, listed, several, spiked
from attnlab.analysis.statistics.comparisons import Comparison
from attnlab.analysis.statistics.seeds import MOST_SEEDS, seeds_to_decide
from attnlab.analysis.texts import Agreement
from attnlab.analysis.verdict import Verdict

RESOLUTION = 0.001  # nats/token: a smaller difference is shown as 0
SPLIT = {"test_loss": "test", "final_loss": "validation"}


def headline(
    verdict: Verdict, controls: Sequence[Control], judgements: Sequence[Judgement] = ()
) -> tuple[str, str]:
    """Return the winner and its lead, and then the other variants or why there is no winner.

    A study of one variant answers by its hypotheses, if it has any.
    """
    if not verdict.order:
        return (
            "No run that can be compared has finished yet.",
            _left_out(verdict) or verdict.why,
        )
    best = verdict.order[0]
    split = "text" if read_by(verdict.table) == "text" else "split"
    loss = f"{nats(verdict.means[best])} on the {SPLIT[verdict.metric]} {split}"
    if not verdict.judged:
        if 1 == len(verdict.functions) < len(verdict.order):
            return f"{listed(verdict.order)} have equal losses: {loss}.", verdict.why
        also, alone = beside(verdict), f"{best} is the only variant compared ({loss})."
        if judgements and len(verdict.table.variants) == 1:
            ruled = [f"{of.ruling.capitalize()}: {of.statement}" for of in judgements]
            found = [fact for of in judgements for fact in of.found]
            return " ".join(ruled), " ".join(filter(None, [*found, alone, *also]))
        why = " ".join(filter(None, (f"{verdict.why}{_more(verdict)}", *also)))
        if len(verdict.order) == 1:
            return alone, why
        return f"{best} has the lowest loss ({loss}), but that is no verdict.", why
    first = _first(verdict, loss)
    if verdict.tuning.at_recipe:
        first = at_recipe(first)
    if failed := next((control for control in controls if control.failed), None):
        return first, failed.note
    said, left_out = beside(verdict)
    parts = [said, _worse(verdict), undecided(verdict), *map(spiked, verdict.spikes), left_out]
    return first, " ".join(filter(None, parts))


def beside(verdict: Verdict) -> tuple[str, str]:
    """Return what is said with or without a verdict: accuracies, and what is not compared."""
    return _answers(verdict), _left_out(verdict)


def _answers(verdict: Verdict) -> str:
    """Return the accuracy of answers of the leaders and of the baseline; empty for a text."""
    split = verdict.metric.removesuffix("_loss")
    found = {of.variant: of for of in profile_of({"": verdict.table}, split)}
    first = [of[0] for of in verdict.leaders] or verdict.order
    named = [name for name in dict.fromkeys((*first, verdict.baseline)) if name in found]
    if not named:
        return ""
    shown = ", ".join(f"{name} {found[name].accuracy}" for name in named[:MOST_NAMED])
    several_seeds = found[named[0]].accuracy.low is not None
    error = " (95 % interval of each alone)" if several_seeds else ""
    guessing = "" if (p := found[named[0]].chance) is None else f" Guessing: {p:.3f}."
    return f"Accuracy of answers{error}: {shown}.{guessing}"


def at_recipe(sentence: str) -> str:
    """Return a sentence that holds at the recipe of the study alone.

    >>> at_recipe("No winner: a and b are equivalent.")
    'At this recipe, no winner: a and b are equivalent.'
    """
    return f"At this recipe, {continued(sentence)}" if sentence else ""


def continued(sentence: str) -> str:
    """Return a sentence as it stands after its first words; names keep their letters."""
    start, space, rest = sentence.partition(" ")
    return f"{start.lower() if start in ('At', 'No') else start}{space}{rest}"


def on_each_text(
    first: Mapping[str, str], second: str, agreed: Sequence[Agreement], noun: str = "text"
) -> tuple[str, str]:
    """Return the headline of a study on several texts or tasks, the second part with a line each.

    Args:
        first: the first sentence on each text, by its name.
        second: the second sentence on the first text.
        agreed: the agreements of the texts on the order of mechanisms.
        noun: "text", or "task".
    """
    (text, lead), *others = first.items()
    said = [second] if second else []
    said += [f"On {other}, {continued(sentence)}" for other, sentence in others]
    if agreed:
        taus = sorted(it.tau for it in agreed)
        span = " to ".join(dict.fromkeys(f"{tau:.2f}" for tau in (taus[0], taus[-1])))
        ends = [end for it in agreed for end in (it.low, it.high) if end is not None]
        within = f", with intervals within [{min(ends):.2f}, {max(ends):.2f}]" if ends else ""
        tau = f"Between two {noun}s, Kendall's tau of the mechanisms' order is {span}{within}."
        said.append(f"{_same_order(agreed, noun)} {tau}")
    return f"On {text}, {continued(lead)}", "\n".join(said)


def _same_order(agreed: Sequence[Agreement], noun: str) -> str:
    """Return in words how far the order of the mechanisms holds over the texts."""
    texts = dict.fromkeys(text for it in agreed for text in it.texts)
    same = all(it.tau > 1 - 1e-9 for it in agreed)
    of = f"all {len(texts)} {noun}s" if len(texts) > 2 else f"both {noun}s"
    means = f"the same on {of}" if same else "not the same on " + of
    changes = [f"{listed(pair)} ({listed(it.texts)})" for it in agreed for pair in it.opposite]
    shown = (
        f"shown to change places: {several(changes)}"
        if changes
        else "no two are shown to change places"
    )
    return f"By mean losses, the order of the mechanisms is {means}; {shown}."


def winner(verdict: Verdict) -> tuple[str, ...]:
    """Return the names of the function that is the best; empty if none is shown to be."""
    lead = verdict.leaders
    if len(lead) != 1 or equivalent_to_best(verdict):
        return ()
    return lead[0]


def equivalent_to_best(verdict: Verdict) -> tuple[str, ...]:
    """Return the variants that are another function than the best and equivalent to it."""
    return tuple(
        name
        for name, pair in verdict.to_best.items()
        if pair.equivalent and not verdict.same_function(name, verdict.order[0])
    )


def behind(verdict: Verdict, names: Sequence[str]) -> str:
    """Return the range of differences between the best variant and others, and their unit."""
    differences = sorted(max(0.0, verdict.to_best[name].mean) for name in names)
    ends = dict.fromkeys([f"{differences[0]:.3f}", f"{differences[-1]:.3f}"])
    return f"{' to '.join(ends)} nats/token behind"


def undecided(verdict: Verdict) -> str:
    """Return the seeds that would decide between the best and the next; empty if it is decided."""
    if len(verdict.leaders) < 2:
        return ""
    best = verdict.functions[0][0]
    rival = next(of[0] for of in verdict.leaders if of[0] != best)
    pair = verdict.pairs[rival, best]
    if pair.equivalent or pair.separable or pair.deviation is None:
        return ""
    seeds = min(verdict.runs[best], verdict.runs[rival])
    needed = seeds_to_decide(
        pair.mean,
        pair.deviation,
        variants=len(verdict.functions),
        allowance=pair.first_allowance,
    )
    start = f"Undecided between {best} and {rival} with {seeds} seeds"
    if pair.first_allowance and pair.first_allowance >= abs(pair.mean):
        return f"{start}: the difference is within what tuning may have missed."
    if abs(pair.mean) < RESOLUTION:
        return f"{start}: their means differ by less than {nats(RESOLUTION)}."
    if needed is None:
        return f"{start}: a difference of {nats(abs(pair.mean))} needs more than {MOST_SEEDS}."
    return f"{start}; about {max(needed, seeds + 1)} would decide it if it is as large as it seems."


def _first(verdict: Verdict, loss: str) -> str:
    lead, best = verdict.leaders, verdict.order[0]
    if names := winner(verdict):
        rival = next(of[0] for of in verdict.functions if of != names)
        pair = verdict.pairs[rival, best]
        if not pair.separable and best == verdict.baseline:
            pair = verdict.to_baseline[rival]
        noun = read_by(verdict.table)
        verb = f"{'predict' if noun == 'text' else 'answer'}{'s' * (len(names) == 1)}"
        first = f"{_introduced(verdict, names)} {verb} this {noun} best: {loss}, "
        first += f"{_plus_minus(pair)} better than the next, {rival}"
        if not (close := several(_open(verdict))):
            return f"{first}."
        also = f"Among all pairs, {best} is not distinguishable from {close}."
        return f"{first}, by comparisons with the best. {also}"
    if equal := equivalent_to_best(verdict):
        others = [of[0] for of in lead if best not in of and not set(of) & set(equal)]
        may = f"; {several(others)} may be better" if others else ""
        return (
            f"No winner: {best}, which has the lowest mean ({loss}), and {several(equal)} are "
            f"equivalent within the margin of {verdict.margin:g} nats/token{may}."
        )
    names = [of[0] for of in lead]
    open_ended = [name for name in names if math.isinf(verdict.tuning.allowance.get(name, 0.0))]
    bounded, lowest = [n for n in names if n not in open_ended], f"(lowest mean: {best}, {loss})"
    if open_ended and best in bounded:
        may = "may each be the best" if len(bounded) > 1 else "may be the best"
        also = f"and so may {several(open_ended)}, of which the search found no bound"
        return f"No winner: {several(bounded)} {may} {lowest}, {also}."
    if len(lead) == len(verdict.functions):
        return f"No winner: each of the {len(lead)} variants may be the best {lowest}."
    return f"No winner: {several(names)} may each be the best {lowest}."


def _introduced(verdict: Verdict, names: Sequence[str]) -> str:
    """Return the names of a function, and its mechanism if the names do not say it."""
    (mechanism,) = {v.mechanism for v in verdict.table.variants if v.name == names[0]}
    shown = mechanism.replace("_", " ")
    return f"{listed(names)} ({shown})" if shown and mechanism not in names else listed(names)


def _worse(verdict: Verdict) -> str:
    """Return the variants that are not the best, with their distance from it; empty without.

    Not to be the best of all is more often shown than to be worse than the one with the lowest
    mean, which may not be the best itself.
    """
    lead = {name for names in verdict.leaders for name in names}
    best, only = verdict.order[0], _open(verdict)
    said_already = (*lead, *only, *equivalent_to_best(verdict))
    worse = [name for name in verdict.order if name not in said_already]
    than = "the best" if len(verdict.leaders) == 1 else best
    said = [f"Worse than {than}: {several(worse)} ({behind(verdict, worse)})."] if worse else []
    if only and not winner(verdict):
        verb = "is" if len(only) == 1 else "are"
        said.append(
            f"{several(only)} {verb} not the best, whichever is, though not distinguishable from "
            f"{best} alone."
        )
    return " ".join(said)


def _open(verdict: Verdict) -> list[str]:
    """Return the variants that are not the best, but not distinguishable from the lowest mean."""
    lead = {name for names in verdict.leaders for name in names}
    best = verdict.order[0]
    return [n for n in verdict.order if n not in lead and not verdict.worse(n, best)]


def _left_out(verdict: Verdict) -> str:
    if not verdict.left_out:
        return ""
    name, reason = next(iter(verdict.left_out.items()))
    if len(verdict.left_out) == 1:
        return f"Not compared: {name} ({reason})."
    return f"Not compared: {several(list(verdict.left_out))} ({name}: {reason})."


def _more(verdict: Verdict) -> str:
    one = len(verdict.seeds) == 1 == len(verdict.table.study.seeds)
    return " Run it with --seeds 4 or more for error bars." if one else ""


def _plus_minus(pair: Comparison) -> str:
    if pair.low is None or pair.high is None or not pair.separable:
        return f"{abs(pair.mean):.3f}"
    if pair.first_allowance or pair.second_allowance:
        return f"{abs(pair.mean):.3f} {ends((pair.low, pair.high), 3)}"
    return f"{abs(pair.mean):.3f} ± {pair.half_width:.3f}"
