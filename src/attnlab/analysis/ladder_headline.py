"""The headline of a ladder: which families scale better, and where each is better.

The families are compared with that of the baseline: by their effective speedups in training FLOPs,
and by the verdict within each size and length.
"""

from collections import Counter

from attnlab.analysis.numbers import ends
from attnlab.analysis.scaling import Scaling
from attnlab.analysis.sentences import listed

STANDINGS = ("better", "not distinguishable", "worse")


def scales(found: Scaling) -> str:
    """Return a sentence on the sizes and lengths of a ladder."""
    said, others = list[str](), [f for f in found.families if f != found.baseline]
    rungs = next(iter(found.cells.values())).table.study.rungs
    for family in others:
        counts = Counter[str]()
        for verdict in found.cells.values():
            name = next((n for n in verdict.to_baseline if rungs[n].family == family), None)
            if name is None or not verdict.judged:
                continue
            separable = verdict.to_baseline[name].separable
            better = "better" if verdict.to_baseline[name].mean < 0 else "worse"
            counts[better if separable else "not distinguishable"] += 1
        if counts:
            parts = [f"{what} in {counts[what]}" for what in STANDINGS if counts[what]]
            said.append(f"{family} {', '.join(parts)}")
    if not said:
        return ""
    return f"Against {found.baseline}, of {len(found.cells)} sizes and lengths: {'; '.join(said)}."


def scaling_answer(found: Scaling) -> str:
    """Return which families scale better, and which worse, than the baseline in training FLOPs.

    Empty without intervals of effective speedups.
    """
    gains = found.along["flops"].speedups if "flops" in found.along else {}
    shown, better, worse = list[str](), list[str](), list[str]()
    for family, gain in gains.items():
        if gain.ratio is not None and gain.interval is not None:
            low, high = gain.interval
            shown.append(f"{family} {gain.ratio:.2f}x {ends(gain.interval, 2)}")
            better += [family] if low > 1 else []
            worse += [family] if high < 1 else []
    if not shown:
        return ""
    lead = listed(better) or "No family is shown to"
    lead += f" {'scales' if len(better) == 1 else 'scale'} better than {found.baseline}"
    if worse:
        lead += f", and {listed(worse)} {'scales' if len(worse) == 1 else 'scale'} worse"
    return f"{lead}, by effective speedup in training FLOPs: {', '.join(shown)}."
