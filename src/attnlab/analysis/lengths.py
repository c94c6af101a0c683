"""The loss at other window lengths than that of training.

**Length extrapolation**, the validation loss at window lengths other than that of training:

    c_s = loss of seed s at a length - loss of seed s at the length of its training

A longer window gives most tokens more context. A model that can use it gets better (c < 0), and one
that cannot gets worse (c > 0). Intervals are 95 % for all variants of a length at once
(Bonferroni), so that a sentence may name several. The verdict does not use these losses. The
differences of two variants at a length have the intervals of the verdict, over all pairs at that
length at once; their allowance is that of the recipe, which was chosen at the length of training.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from attnlab.analysis.sentences import listed
from attnlab.analysis.statistics.paired import (
    Difference,
    Estimate,
    paired_difference,
)
from attnlab.analysis.table import Run, Table, Variant
from attnlab.analysis.verdict import Pairs, Verdict, pairs_of

KEY = "final_by_length"  # of summary.json: {"2048": {"loss": ..., "loss_by_position": ..., ...}}


@dataclass(frozen=True, kw_only=True)
class AtLengths:
    """The losses of one variant in nats/token, by window length in tokens."""

    trained: int  # window length in training
    loss: Mapping[int, Estimate]  # ascending, with that of training
    change: Mapping[int, Difference]  # since the length of training, paired by seed


def at_lengths(table: Table) -> dict[str, AtLengths]:
    """Return the losses by length of each variant that was measured at any; empty if none was."""
    measured = {v.name: v for v in table.variants if any(KEY in run.summary for run in v.finished)}
    return {name: _of(variant, among=len(measured)) for name, variant in measured.items()}


def pairs_at(verdict: Verdict, length: int) -> Pairs:
    """Return every compared variant minus every other at a window length of `length` tokens.

    Only variants whose runs were measured there are in it.
    """
    found = {
        variant.name: {
            run.seed: loss
            for run in variant.finished
            if (loss := _loss_at(run, length, variant.config["train"]["seq_len"])) is not None
        }
        for variant in verdict.table.variants
        if variant.name in verdict.means
    }
    return pairs_of({name: losses for name, losses in found.items() if losses}, verdict)


def _loss_at(run: Run, length: int, trained: int) -> float | None:
    return run.summary["final_loss"] if length == trained else read_at(run, length, "loss")


def read_at(run: Run, length: int, key: str) -> Any:
    """Return a measurement of a run at a length, such as its "loss"; None if it is missing."""
    return run.summary.get(KEY, {}).get(str(length), {}).get(key)


def longest(found: Mapping[str, AtLengths]) -> int:
    """Return the longest window of any variant, in tokens. Raises ValueError if there is none."""
    return max(length for each in found.values() for length in each.loss)


def sentences(found: Mapping[str, AtLengths]) -> tuple[str, ...]:
    """Return sentences on the change of loss at the longest window, with its intervals."""
    if not found:
        return ()
    length = longest(found)
    changes = {
        name: each.change[length]
        for name, each in found.items()
        if length in each.change and length > each.trained
    }
    if not changes:
        return ("No window longer than in training was measured.",)
    if any(change.half_width is None for change in changes.values()):
        shown = [f"{name} {change.mean:+.3f}" for name, change in changes.items()]
        return (
            f"From the length of training to {length:,} tokens the loss changes by, in nats/token: "
            f"{listed(shown)}. One seed gives no interval, so no change is shown.",
        )
    return tuple(_by_direction(changes, length))


def _by_direction(changes: Mapping[str, Difference], length: int) -> Iterator[str]:
    groups: dict[str, list[str]] = {"worse": [], "better": [], "unclear": []}
    for name, change in changes.items():
        low, high = change.interval or (change.mean, change.mean)
        direction = "worse" if low > 0 else "better" if high < 0 else "unclear"
        groups[direction].append(f"{name} {change.mean:+.3f} [{low:+.3f}, {high:+.3f}]")
    start = f"From the length of training to {length:,} tokens"
    if groups["worse"]:
        yield f"{start} the loss rises, in nats/token: {listed(groups['worse'])}."
    if groups["better"]:
        yield f"{start} the loss falls, in nats/token: {listed(groups['better'])}."
    if groups["unclear"]:
        yield f"{start} the change is not distinguishable from 0: {listed(groups['unclear'])}."


def _of(variant: Variant, among: int) -> AtLengths:
    trained: int = variant.config["train"]["seq_len"]
    runs = [run for run in variant.finished if KEY in run.summary]
    at_home = {run.seed: run.summary["final_loss"] for run in runs}
    lengths = {int(length) for run in runs for length in run.summary[KEY]} | {trained}
    by_length = {
        length: {
            run.seed: loss for run in runs if (loss := read_at(run, length, "loss")) is not None
        }
        for length in sorted(lengths)
    } | {trained: at_home}
    changes = {
        length: paired_difference(losses, at_home, among=among)
        for length, losses in by_length.items()
        if length != trained
    }
    estimates = {length: Estimate.of([*losses.values()]) for length, losses in by_length.items()}
    return AtLengths(
        trained=trained,
        loss={length: e for length, e in estimates.items() if e is not None},
        change={length: change for length, change in changes.items() if change is not None},
    )
