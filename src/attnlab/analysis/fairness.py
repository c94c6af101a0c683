"""Fairness: the conditions that runs must share for their losses to be comparable.

All runs of a comparison read the same tokens in the same steps and are measured on the same splits;
all other settings may be the subject of the comparison. A study may differ in these conditions by
design: its record says which variants share them, and a run that differs from its own group is an
accident.
"""

import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attnlab.analysis.sentences import listed
from attnlab.analysis.settings import as_computed, describe, flat, layer_by_layer, of_variant
from attnlab.config import differences, drop_unset
from attnlab.record import NO_INFLUENCE, Cell, StudyRecord

if TYPE_CHECKING:
    from attnlab.analysis.table import Table, Variant

UNKNOWN = "not recorded"
OF_BATCH = ("training steps", "sequences/step")  # differ where a study tunes the batch size
DATA, TOKENIZER, MEASURED = "data", "tokenizer", "measured on"
TOKENS = "tokens in training"

NOT_COMPARED = (*NO_INFLUENCE, "log_every", "eval_every", "eval_batch_size", "checkpoint_every")

Conditions = Mapping[str, str]  # what must be equal: its value, in words
Design = Mapping[str, tuple[tuple[str, ...], ...]]  # condition: groups of variants that share it


def conditions(
    config: Mapping[str, Any], data: Mapping[str, Any], measured: Iterable[str] | None
) -> Conditions:
    """Return the conditions of a run, in words.

    Args:
        config: the settings of the run, as JSON values.
        data: the description of its corpus, with "fingerprint".
        measured: the names of the splits it was measured on; None before it has finished.
    """
    train = config.get("train", {})
    said = {
        DATA: _joined(data.get("source"), data.get("fingerprint")),
        TOKENIZER: _joined(describe(data.get("tokenizer", ""))),
        "training steps": _joined(train.get("steps")),
        "sequences/step": _joined(train.get("batch_size")),
        "tokens/sequence": _joined(train.get("seq_len")),
    }
    if measured is not None:
        said[MEASURED] = listed(list(measured)) or "no split"
    return said


def recorded(
    config: Mapping[str, Any], environment: Mapping[str, Any], summary: Mapping[str, Any]
) -> Conditions:
    """Return the conditions of a run from its files; none if it was never started."""
    if not config:
        return {}
    measured = None
    if summary.get("status") == "finished":
        splits = {"validation": "final_loss", "test": "test_loss"}
        measured = [split for split, key in splits.items() if summary.get(key) is not None]
    return conditions(config, environment.get("data") or {}, measured)


def designed(variants: Mapping[str, Mapping[str, Any]]) -> Design:
    """Return the conditions in which the variants of a study differ by design.

    Args:
        variants: the settings of each variant, as JSON values.
    """
    found = dict[str, dict[str, list[str]]]()
    for name, config in variants.items():
        data = config.get("data", {})
        said = {"fingerprint": json.dumps(data, sort_keys=True), "tokenizer": data.get("tokenizer")}
        for what, value in conditions(config, said, None).items():
            found.setdefault(what, {}).setdefault(value, []).append(name)
    return {
        what: tuple(tuple(names) for names in values.values())
        for what, values in found.items()
        if len(values) > 1
    }


def unequal(
    runs: Iterable[tuple[str, Conditions]], design: Design | None = None
) -> dict[str, dict[str, list[str]]]:
    """Return `{condition: {value: names}}` of the conditions that differ between named runs.

    A condition in which they differ as the design says, and only so, is left out.
    """
    found: dict[str, dict[str, dict[str, None]]] = defaultdict(lambda: defaultdict(dict))
    for name, of_run in runs:
        for what, value in of_run.items():
            found[what][value][name] = None
    return {
        what: {value: list(names) for value, names in values.items()}
        for what, values in found.items()
        if len(values) > 1 and not _as_designed(values, _groups(what, design or {}))
    }


def unlike(table: "Table") -> tuple[str, ...]:
    """Return one line per condition that differs between runs, but not by design.

    Runs that were never started are ignored. A study that tunes the batch size compares runs of as
    many tokens.
    """
    return _lines(table, unequal(_recorded(table), table.study.by_design))


def by_design(table: "Table") -> tuple[str, ...]:
    """Return one line per condition in which the variants of a study differ by design."""
    accidents = unequal(_recorded(table), table.study.by_design)
    different = unequal(_recorded(table))
    return _lines(table, {what: has for what, has in different.items() if what not in accidents})


def comparable_groups(
    variants: Sequence[str], design: Design, baseline: str | None
) -> tuple[tuple[str, ...], ...]:
    """Return the groups of variants whose losses per token are comparable, the baseline's first.

    The variants of a group share text and tokenizer. One that shares them with no other is in no
    group, unless it is the only one there is.
    """
    found = defaultdict[tuple[int | None, ...], list[str]](list)
    for name in variants:
        shares = (
            next((i for i, group in enumerate(design.get(what, ())) if name in group), None)
            for what in (DATA, TOKENIZER)
        )
        found[tuple(shares)].append(name)
    groups = sorted(found.values(), key=lambda group: baseline not in group)
    likely = (group for group in groups if baseline in group or len(group) > 1)
    first = next(likely, groups[0] if groups else [])
    others = (group for group in groups if group is not first and len(group) > 1)
    return tuple(tuple(group) for group in (first, *others))


def compared_groups(
    cells: Iterable[Cell], among: Collection[str], design: Design
) -> Iterator[tuple[tuple[str, ...], str | None, int]]:
    """Yield the variants that are compared with one another, their baseline, the number of texts.

    Args:
        cells: the sizes and training lengths of a ladder; one for a study that is none.
        among: the variants that may be compared.
        design: the conditions in which variants differ.
    """
    for cell in cells:
        names = [name for name in cell.variants if name in among]
        texts = comparable_groups(names, design, cell.baseline) if names else ()
        yield from ((group, cell.baseline, len(texts)) for group in texts)


def shared_by_compared(cells: Collection[Cell], texts: int) -> str:
    """Return what variants that are compared share, after "variants"; empty where all are compared.

    >>> small, large = (Cell(size, "long", ("mha", "mla"), "mha") for size in ("4x128", "8x256"))
    >>> shared_by_compared([small, large], texts=1), shared_by_compared([small], texts=4)
    (' of the same size', ' that read the same text')
    """
    places = {"size": {cell.size for cell in cells}, "length": {cell.budget for cell in cells}}
    several = [name for name, values in places.items() if len(values) > 1]
    of_cell = " and ".join(several).replace("length", "training length")
    said = f" of the same {of_cell}" if several else ""
    return f"{said} that read the same text" if texts > 1 else said


def n_texts(record: StudyRecord) -> int:
    """Return the number of texts with comparisons of their own, among which errors are divided."""
    return max(1, len(comparable_groups(record.variants, record.by_design, record.baseline)))


def between_studies(
    first: tuple[StudyRecord, "Variant"],
    second: tuple[StudyRecord, "Variant"],
    apart: Sequence[str] = (),
) -> str:
    """Return in what variants of two studies differ, "train.steps 1000 here, 100 there", or "".

    The seed, the recipe that both studies searched, and the settings `apart` may differ, and so may
    what has no influence on a loss. Data are compared by content, and so is the number of tokens in
    training, unless `apart` has `train.steps`.
    """
    searched = _searched(first[0]) & _searched(second[0])
    here, there = (_compared_settings(variant) for _, variant in (first, second))
    if "train.steps" in apart:
        apart = (*apart, TOKENS)
    found = [
        f"{path} {describe(a)} here, {describe(b)} there"
        for path, (a, b) in differences(here, there).items()
        if path not in searched and path not in apart
    ]
    return "; ".join(found[:4])


def _searched(record: StudyRecord) -> set[str]:
    if record.tuning is None:
        return set()
    return {"train.learning_rate", "train.warmup_steps", *(record.tuning.get("settings") or {})}


def _compared_settings(variant: "Variant") -> dict[str, Any]:
    """Return the settings on which a loss depends, by path, with data as their fingerprint."""
    settings = drop_unset(of_variant(as_computed(variant.config)))
    if "model" in settings:
        settings["model"] = layer_by_layer(settings["model"])
    train = settings.get("train", {})
    sizes = [train.get(name) for name in ("steps", "batch_size", "seq_len")]
    environment = next((run.environment for run in variant.runs if run.environment), {})
    found = {
        path: value
        for path, value in flat(settings).items()
        if not path.startswith("eval.")
        and path not in ("data.path", "data.paths", *(f"train.{name}" for name in NOT_COMPARED))
    }
    found["data"] = (environment.get("data") or {}).get("fingerprint")
    found[TOKENS] = math.prod(sizes) if None not in sizes else None
    return found


def on_other_text(record: StudyRecord, variants: Sequence[str]) -> dict[str, str]:
    """Return those of `variants` whose losses per token are not comparable with the baseline's.

    By design they read another text, or have another tokenizer. The reason stands beside each.
    """
    found = dict[str, str]()
    groups = comparable_groups(variants, record.by_design, record.baseline)
    for name in variants:
        for what in (TOKENIZER, DATA):
            design = record.by_design.get(what, ())
            home = next((group for group in design if groups[0][0] in group), ())
            if design and name not in home:
                found[name] = (
                    f"by design its {what} is not that of {groups[0][0]}, so that losses per token "
                    "are not comparable; see bits/byte"
                )
                break
    return found


def tuned_batch(record: StudyRecord) -> tuple[str, ...]:
    """Return the conditions that differ because the study tunes the batch size."""
    tuned = (record.tuning or {}).get("settings") or {}
    return OF_BATCH if "train.batch_size" in tuned else ()


def _recorded(table: "Table") -> list[tuple[str, Conditions]]:
    return [
        (variant.name, recorded(run.config, run.environment, run.summary))
        for variant in table.variants
        for run in variant.runs
    ]


def _lines(table: "Table", different: Mapping[str, Mapping[str, list[str]]]) -> tuple[str, ...]:
    return tuple(
        f"{what}: " + "; ".join(f"{value} in {table.where(names)}" for value, names in has.items())
        for what, has in different.items()
        if what not in tuned_batch(table.study)
    )


def _groups(what: str, design: Design) -> tuple[tuple[str, ...], ...]:
    return design.get(what) or (design.get(DATA, ()) if what == MEASURED else ())


def _as_designed(values: Mapping[str, Iterable[str]], groups: Iterable[Iterable[str]]) -> bool:
    """Return True if each group of variants has one value, and no variant has one of its own."""
    place = {name: number for number, names in enumerate(groups) for name in names}
    of_group, designed = defaultdict[int, set[str]](set), set[str]()
    for value, names in values.items():
        for name in set(names) & place.keys():
            of_group[place[name]].add(value)
            designed.add(value)
    return designed == set(values) and all(len(of) == 1 for of in of_group.values())


def _joined(*values: Any) -> str:
    return " ".join(str(value) for value in values if value not in (None, "")) or UNKNOWN
