"""Which layers can do without attention: read from a study that takes it out of one at a time.

The study lies beside this one. Its baseline has attention in every layer; a variant that differs
from it in exactly one layer, where nothing is mixed, says what that layer is worth.
"""

from pathlib import Path

from attnlab.analysis.sentences import Said, against, apart, listed
from attnlab.analysis.table import Table, read_table
from attnlab.analysis.verdict import Verdict, verdict_of

UNMIXED = "identity"  # the mechanism that is none


def every_layer(study: str, beside: Path) -> Said:
    """The answer from `../<study>`, or which command would give it."""
    folder = beside.resolve().parent / study
    command = f"`attnlab run {study}`"
    if not (folder / "study.json").is_file():
        return f"Not measured yet: {command} would answer it.", ()
    verdict = verdict_of(read_table(folder))
    if not verdict.tiers or verdict.baseline is None:
        why = verdict.why if not verdict.tiers else "Its baseline is not compared."
        return f"Not answered yet: {why} Go on with {command}.", ()
    return _answer(verdict, verdict.baseline)


def _answer(verdict: Verdict, baseline: str) -> Said:
    layers = _layers(verdict.table, baseline)
    single = {name: layer for name, layer in layers.items() if (name, baseline) in verdict.pairs}
    if not single:
        return "Not answered: no variant leaves attention out of one layer alone.", ()
    needed = [name for name in single if verdict.worse(name, baseline)]
    free = [name for name in single if name not in needed]
    if not free:
        short = "Yes: without it in any one layer the model is worse"
    elif not needed:
        short = "Not shown for any single layer: without it the model cannot be told from the full"
    else:
        which = listed([str(single[name]) for name in needed])
        rest = listed([str(single[name]) for name in free])
        short = f"Not shown for every layer: it is needed in layer {which}, not so in {rest}"
    extent = sorted(verdict.pairs[name, baseline].mean for name in single)
    worst = max(single, key=lambda name: verdict.pairs[name, baseline].mean)
    evidence = [
        f"Layer {layer}: {against(name, baseline, verdict.pairs[name, baseline])}"
        for name, layer in sorted(single.items(), key=lambda item: item[1])
    ]
    most = f"Layer {single[worst]} is worth the most, {apart(verdict.pairs[worst, baseline])}."
    return f"{short} (by {extent[0]:+.3f} to {extent[-1]:+.3f} nats).", (*evidence, most)


def _layers(table: Table, baseline: str) -> dict[str, int]:
    """`{variant: layer}` of those that leave it out of one layer, and differ in no other."""
    kinds = {
        variant.name: variant.finished[0].summary.get("attention_type")
        for variant in table.variants
        if variant.finished
    }
    full, found = kinds.get(baseline), dict[str, int]()
    for name, own in kinds.items():
        if isinstance(own, list) and isinstance(full, list) and len(own) == len(full):
            other = [i for i, (a, b) in enumerate(zip(own, full, strict=True)) if a != b]
            if len(other) == 1 and own[other[0]] == UNMIXED:
                found[name] = other[0]
    return found
