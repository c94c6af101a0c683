"""Fairness: the conditions that runs must share for their losses to be comparable.

All runs of a comparison read the same tokens in the same steps and are measured on the same splits;
all other settings may be the subject of the comparison.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from attnlab.analysis.sentences import listed
from attnlab.analysis.settings import describe

if TYPE_CHECKING:
    from attnlab.analysis.table import Table

UNKNOWN = "not recorded"
OF_BATCH = ("training steps", "sequences/step")  # differ where a study tunes the batch size
TOKENIZER = "tokenizer"

Conditions = Mapping[str, str]  # what must be equal: its value, in words


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
        "data": _joined(data.get("source"), data.get("fingerprint")),
        TOKENIZER: _joined(describe(data.get("tokenizer", ""))),
        "training steps": _joined(train.get("steps")),
        "sequences/step": _joined(train.get("batch_size")),
        "tokens/sequence": _joined(train.get("seq_len")),
    }
    if measured is not None:
        said["measured on"] = listed(list(measured)) or "no split"
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


def unequal(runs: Iterable[tuple[str, Conditions]]) -> dict[str, dict[str, list[str]]]:
    """Return `{condition: {value: names}}` of the conditions that differ between named runs."""
    found: dict[str, dict[str, dict[str, None]]] = defaultdict(lambda: defaultdict(dict))
    for name, of_run in runs:
        for what, value in of_run.items():
            found[what][value][name] = None
    return {
        what: {value: list(names) for value, names in values.items()}
        for what, values in found.items()
        if len(values) > 1
    }


def unlike(table: "Table") -> tuple[str, ...]:
    """Return one line per condition that differs between runs, with the variants that have it.

    Runs that were never started are ignored. A study that tunes the batch size compares runs of as
    many tokens.
    """
    tuned = (table.study.tuning or {}).get("settings") or {}
    subject = OF_BATCH if "train.batch_size" in tuned else ()
    runs = (
        (variant.name, recorded(run.config, run.environment, run.summary))
        for variant in table.variants
        for run in variant.runs
    )
    return tuple(
        f"{what}: " + "; ".join(f"{value} in {table.where(names)}" for value, names in has.items())
        for what, has in unequal(runs).items()
        if what not in subject
    )


def _joined(*values: Any) -> str:
    return " ".join(str(value) for value in values if value not in (None, "")) or UNKNOWN
