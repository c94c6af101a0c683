"""A tidy table of results: one row per run, one column per number or setting.

The rows are dicts with the same keys, which `pandas.DataFrame(rows)` takes unchanged. A value that
a run does not have, or that is not finite, is None.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from attnlab.analysis.sentences import in_words
from attnlab.analysis.settings import describe, flat, of_variant
from attnlab.analysis.table import read_run
from attnlab.config.problem import with_types
from attnlab.record import (
    TUNING_SEED,
    RunFolder,
    StudyRecord,
    meant,
    rate_of,
    runs_in,
    tuning_runs,
)

Row = dict[str, Any]
# keys of summary.json that have a column of another name, or none
NOT_COPIED = ("status", "reason", "variant", "seed", "identity", "attention_type", "device")


class _Columns(NamedTuple):
    run: Row  # names and state
    results: Row  # numbers of the summary
    settings: Row


@with_types
def load_results(folders: Path | str | Iterable[Path | str]) -> list[Row]:
    """Return one row per run of one or several folders, packed or not.

        import attnlab, pandas

        runs = pandas.DataFrame(attnlab.load_results("results/mechanisms"))
        runs[runs.purpose == "verdict"].groupby("variant").test_loss.mean()

    Args:
        folders: the folder of a study, or several; also folders of variants or of single runs.

    Returns:
        Rows with the columns study, variant, seed, purpose ("verdict", "tuning" for a run that
        chose the recipe, "challenge" for one that repeats a seed of the verdict at a neighbouring
        learning rate), recipe, learning_rate, status, reason, mechanism, device, processes (one
        per GPU; "2, then 1" for a run that went on with another number), precision and identity;
        then the numbers of the run's summary (losses in nats/token, times in seconds);
        then its settings, such as `train.steps`. Nested names are joined by dots. A run that is
        planned but has not begun has no row.

    Raises:
        ValueError: a folder holds no run, or the record of the study is damaged. A run of which a
            file is damaged has the status "damaged", and the damage as its reason.
    """
    given = [folders] if isinstance(folders, Path | str) else list(folders)
    found = [_columns(study, run) for folder in given for study, run in _runs(Path(folder))]
    names = [
        *(name for columns in found for name in columns.run),
        *(name for columns in found for name in columns.results),
        *(name for columns in found for name in columns.settings),
    ]
    rows = [columns.run | columns.results | columns.settings for columns in found]
    return [{name: row.get(name) for name in dict.fromkeys(names)} for row in rows]


def _runs(folder: Path) -> Iterator[tuple[str, RunFolder]]:
    """Yield the runs of a folder that have begun, each with the name of its study."""
    runs = runs_in(folder)
    if not runs:
        asked = f"give the folder of a study, a variant or a run{meant(folder)}"
        raise ValueError(f"{folder} holds no run: {asked}")
    study_dir = runs[0].study_dir
    record = StudyRecord.find(study_dir)
    study = record.name if record else study_dir.name
    if not folder.resolve().name.startswith("seed-"):
        for variant in dict.fromkeys(run.variant for run in runs):
            runs.extend(tuning_runs(study_dir, variant))
    yield from ((study, run) for run in runs if run.status() != "absent")


def _columns(study: str, run: RunFolder) -> _Columns:
    found = read_run(run)
    config, summary, environment = found.config, found.summary, found.environment
    device = environment.get("device")
    tried = None if run.recipe is None else rate_of(run.recipe)
    kinds = summary.get("attention_type")
    return _Columns(
        run={
            "study": study,
            "variant": run.variant,
            "seed": run.seed,
            "purpose": _purpose(run),
            "recipe": run.recipe,
            "learning_rate": config.get("train", {}).get("learning_rate", tried),
            "status": found.status,
            "reason": found.reason,
            "mechanism": in_words(kinds) if isinstance(kinds, list) else kinds,
            "device": device.get("name") if isinstance(device, Mapping) else device,
            "processes": found.processes,
            "precision": environment.get("precision"),
            "identity": config.get("identity"),
        },
        results=_results({k: v for k, v in summary.items() if k not in NOT_COPIED}),
        settings={name: _setting(value) for name, value in flat(of_variant(config)).items()},
    )


def _purpose(run: RunFolder) -> str:
    if run.recipe is None:
        return "verdict"
    return "tuning" if run.seed >= TUNING_SEED else "challenge"


def _results(values: Mapping[str, Any], prefix: str = "") -> Row:
    """Return numbers and texts by dotted name, without curves, which are lists of numbers."""
    found: Row = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            if name != "not_finite":
                found |= _results(cast("Mapping[str, Any]", value), f"{prefix}{name}.")
        elif not isinstance(value, list):
            found[prefix + name] = _finite(value)
        elif all(isinstance(item, str) for item in value):
            found[prefix + name] = ", ".join(value)
    return found


def _setting(value: Any) -> Any:
    return describe(value) if isinstance(value, list | Mapping) else _finite(value)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
