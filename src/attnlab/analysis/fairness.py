"""Fairness: the conditions that runs must share for their losses to be comparable.

All runs of a comparison read the same tokens in the same steps and are measured on the same splits;
all other settings may be the subject of the comparison.
"""

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from attnlab.analysis.sentences import listed
from attnlab.analysis.settings import describe

if TYPE_CHECKING:
    from attnlab.analysis.table import Run, Table

UNKNOWN = "not recorded"


def unlike(table: "Table") -> tuple[str, ...]:
    """Return one line per condition that differs between runs, with the variants that have it.

    Runs that were never started are ignored.
    """
    found: dict[str, dict[str, dict[str, None]]] = defaultdict(lambda: defaultdict(dict))
    for variant in table.variants:
        for run in variant.runs:
            for what, value in _conditions(run).items():
                found[what][value][variant.name] = None
    return tuple(
        f"{what}: " + "; ".join(f"{v} in {table.where(names)}" for v, names in values.items())
        for what, values in found.items()
        if len(values) > 1
    )


def _conditions(run: "Run") -> dict[str, str]:
    """Return the conditions that must be equal for losses to be comparable, in words."""
    if not run.config:
        return {}
    data, train = run.environment.get("data") or {}, run.config.get("train", {})
    said = {
        "data": _joined(data.get("source"), data.get("fingerprint")),
        "tokenizer": _joined(describe(data.get("tokenizer", ""))),
        "training steps": _joined(train.get("steps")),
        "sequences/step": _joined(train.get("batch_size")),
        "tokens/sequence": _joined(train.get("seq_len")),
    }
    if run.status == "finished":
        splits = {"validation": "final_loss", "test": "test_loss"}
        measured = [split for split, key in splits.items() if run.summary.get(key) is not None]
        said["measured on"] = listed(measured) if measured else "no split"
    return said


def _joined(*values: Any) -> str:
    return " ".join(str(value) for value in values if value not in (None, "")) or UNKNOWN
