"""Reading further than in training: the validation loss at other lengths of the window.

    c_s = loss of seed s at a length - loss of seed s at the length of its training

A longer window gives most tokens more context. A model that can use it gets better (c < 0), and one
that cannot read so far gets worse (c > 0). Intervals are 95 % for all variants of a length at once
(Bonferroni), so that a sentence may name several. The verdict does not read any of this.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from attnlab.analysis.sentences import listed
from attnlab.analysis.statistics.paired import Difference, Estimate, paired_difference
from attnlab.analysis.table import Run, Table, Variant

KEY = "final_by_length"  # of summary.json: {"2048": {"loss": ..., "loss_by_position": ..., ...}}


@dataclass(frozen=True, kw_only=True)
class AtLengths:
    """One variant's losses in nats a token, by tokens a window."""

    trained: int  # tokens a window in training
    loss: Mapping[int, Estimate]  # ascending, that of training included
    change: Mapping[int, Difference]  # from the length of training, paired by seed


def at_lengths(table: Table) -> dict[str, AtLengths]:
    """Of each variant that was measured at any length; empty where none was."""
    measured = {v.name: v for v in table.variants if any(KEY in run.summary for run in v.finished)}
    return {name: _of(variant, among=len(measured)) for name, variant in measured.items()}


def read_at(run: Run, length: int, key: str) -> Any:
    """What a run says of a length, such as its "loss"; None where it was not measured."""
    return run.summary.get(KEY, {}).get(str(length), {}).get(key)


def longest(found: Mapping[str, AtLengths]) -> int:
    """The most tokens a window of any variant. Raises ValueError for none."""
    return max(length for each in found.values() for length in each.loss)


def sentences(found: Mapping[str, AtLengths]) -> tuple[str, ...]:
    """What the longest window does to each variant, and no more than its interval says."""
    if not found:
        return ()
    length = longest(found)
    changes = {
        name: each.change[length]
        for name, each in found.items()
        if length in each.change and length > each.trained
    }
    if not changes:
        return ("No window longer than that of training was measured.",)
    if any(change.half_width is None for change in changes.values()):
        said = [f"{name} {change.mean:+.3f}" for name, change in changes.items()]
        return (
            f"From the length of training to {length:,} tokens the loss changes by, in nats: "
            f"{listed(said)}. One seed has no interval, so nothing is claimed.",
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
        yield f"{start} the loss rises, in nats: {listed(groups['worse'])}."
    if groups["better"]:
        yield f"{start} it falls: {listed(groups['better'])}."
    if groups["unclear"]:
        yield f"{start} a change cannot be told from none: {listed(groups['unclear'])}."


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
