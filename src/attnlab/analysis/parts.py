"""Parts of the loss against the baseline: by position, by recall, by block of the text.

The difference on the split of the verdict, by range of positions, on recall tokens (which follow
the same token earlier in the window), on the others, and the first of these two minus the second.
Intervals of one kind hold for all variants at once (Dunnett), and for all ranges of positions
(Bonferroni). They hold the error of the seeds, not that of tuning. In a ladder, the noise of one
family relative to another is taken to be in each part as in the whole loss.

By block, the loss tells the error that the choice of the text adds to a difference.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from attnlab.analysis.eligibility import FEWEST
from attnlab.analysis.statistics.comparisons import Comparison, compare
from attnlab.analysis.statistics.paired import Difference, differences_on_text
from attnlab.analysis.table import Run
from attnlab.analysis.verdict import Losses, Verdict


@dataclass(frozen=True, kw_only=True)
class AgainstBaseline:
    """Parts of the loss of one variant minus those of the baseline, nats/token; None: unknown."""

    recall: Comparison | None  # on recall tokens
    other: Comparison | None  # on all other tokens
    recall_more: Comparison | None  # the difference on recall tokens minus that on the others
    position: Mapping[int, Comparison]  # by first position of an octave: 0, 1, 2 to 3, 4 to 7, ...


def against_baseline(verdict: Verdict) -> dict[str, AgainstBaseline]:
    """Return the parts of the loss of each other variant minus those of the baseline.

    Empty without a baseline that is compared, or where no part was recorded.
    """
    split = verdict.metric.removesuffix("_loss")
    variants = [v for v in verdict.table.variants if v.name in verdict.means]
    recall = {v.name: v.by_seed(f"{split}_recall_loss") for v in variants}
    other = {v.name: v.by_seed(f"{split}_other_loss") for v in variants}
    more = {name: _minus(of, other[name]) for name, of in recall.items()}
    position = {v.name: {run.seed: of_run(run, split) for run in v.finished} for v in variants}
    starts = sorted({start for of in position.values() for at in of.values() for start in at})
    on_recall, on_other, on_more = (_to_baseline(of, verdict) for of in (recall, other, more))
    at = {
        start: _to_baseline(
            {
                name: {seed: at[start] for seed, at in of.items() if start in at}
                for name, of in position.items()
            },
            verdict,
            among=len(starts),
        )
        for start in starts
    }
    found = {
        name: AgainstBaseline(
            recall=on_recall.get(name),
            other=on_other.get(name),
            recall_more=on_more.get(name),
            position={start: of[name] for start, of in at.items() if name in of},
        )
        for name in verdict.means
    }
    return {name: of for name, of in found.items() if of.recall or of.other or of.position}


def on_text(verdict: Verdict) -> dict[str, Difference]:
    """Return each variant minus the baseline, with the error of the text instead of the seeds.

    Empty where the losses by block of the text were not recorded; one interval per difference.
    """
    split = verdict.metric.removesuffix("_loss")
    found = {v.name: v.by_block(split) for v in verdict.table.variants if v.name in verdict.means}
    baseline = found.get(verdict.baseline or "")
    if baseline is None:
        return {}
    known = {name: of[1] for name, of in found.items() if of is not None and of[0] == baseline[0]}
    names, tokens = list(known), np.array(baseline[0], float)
    differences = differences_on_text(
        np.array(list(known.values())), tokens, names.index(verdict.baseline or "")
    )
    pairs = zip(names, differences, strict=True)
    return {name: difference for name, difference in pairs if name != verdict.baseline}


def _to_baseline(losses: Losses, verdict: Verdict, among: int = 1) -> dict[str, Comparison]:
    """Return differences to the baseline, one of `among` families that hold at once.

    Without a verdict, or with fewer than two seeds, they have no interval.
    """
    baseline = verdict.baseline or ""
    of = {name: names[0] for names in verdict.functions for name in names}  # counts once
    known = {name: values for name, values in losses.items() if values}
    if baseline not in known:
        return {}
    others = [name for name in known if of[name] != of[baseline]]
    columns = {of[name]: known[name] for name in (*reversed(others), baseline)}
    enough = {name: values for name, values in columns.items() if len(values) >= FEWEST}
    compared: Mapping[str, Comparison] = {}
    if verdict.judged and of[baseline] in enough and len(enough) > 1:
        found = compare(
            enough,
            baseline=of[baseline],
            margin=0.0,
            level=verdict.level / among,
            relative=verdict.relative,
        )
        compared = found.to_baseline
    means = {name: math.fsum(values.values()) / len(values) for name, values in columns.items()}
    return {
        name: compared.get(of[name])
        or Comparison(mean=means[of[name]] - means[of[baseline]], half_width=None, alone=None)
        for name in others
    }


def octaves(bins: Mapping[str, Any] | None, window: int) -> dict[int, float]:
    """Return the mean loss over the positions 0, 1, 2 to 3, 4 to 7, ..., by the first of them.

    `bins` are {"first": [0, 1, ...], "loss": [...]} of a run, in windows of `window` tokens.

    >>> octaves({"first": [0, 1, 2, 4, 6], "loss": [5.0, 4.0, 3.0, 2.0, 1.0]}, 7)
    {0: 5.0, 1: 4.0, 2: 3.0, 4: 1.6666666666666667}
    """
    if not bins:
        return {}
    sums: dict[int, tuple[float, int]] = {}
    ends = [*bins["first"][1:], window]
    for start, end, loss in zip(bins["first"], ends, bins["loss"], strict=True):
        octave = 1 << start.bit_length() - 1 if start else 0
        total, count = sums.get(octave, (0.0, 0))
        width = max(end - start, 1)
        sums[octave] = total + width * loss, count + width
    return {octave: total / count for octave, (total, count) in sums.items()}


def of_run(run: Run, split: str) -> dict[int, float]:
    """Return the loss in octaves of the position on the "final" validation or "test" split."""
    window = run.config.get("train", {}).get("seq_len", 0)
    return octaves(run.summary.get(f"{split}_loss_by_position"), window)


def _minus(first: Mapping[int, float], second: Mapping[int, float]) -> dict[int, float]:
    return {seed: value - second[seed] for seed, value in first.items() if seed in second}
