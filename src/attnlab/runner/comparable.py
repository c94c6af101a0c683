"""Comparable runs: nothing is trained into a folder whose other runs it cannot be compared with.

The requested runs are compared with every other run of the folder, of whatever variant and seed:
same data, tokenizer, steps, batch and splits. Where the variants of the study itself differ, its
design says which of them share a condition. A run that exists already must be the same run
(`conflict`).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from attnlab.analysis.fairness import (
    UNKNOWN,
    Conditions,
    conditions,
    recorded,
    tuned_batch,
    unequal,
)
from attnlab.analysis.sentences import listed
from attnlab.analysis.table import read_run
from attnlab.config import differences
from attnlab.data import Corpus
from attnlab.record import (
    TUNING_SEED,
    RunFolder,
    StudyRecord,
    reading_once,
    tuning_runs,
    tuning_seed,
)
from attnlab.study.study import Study
from attnlab.training.config import Recipe
from attnlab.training.recipe import start_of
from attnlab.training.run import Run, RunConfig

BEFORE_SEARCH = "it was trained before its recipe was searched"


def require_comparable(study: Study, study_dir: Path, requested: Mapping[str, Conditions]) -> None:
    """Raise ValueError if the study's folder holds runs that its own cannot be compared with.

    Args:
        study: the study, with all options applied.
        study_dir: the study's folder; its runs may be packed.
        requested: the conditions of each variant, as from `of_run`.
    """
    differ = unlike_others(requested, study.record(command="", checked=False), study_dir)
    if differ:
        lines = "\n".join(f"  {line}" for line in differ)
        raise ValueError(
            f"the requested runs are not comparable with those in {study_dir}; nothing was run:\n"
            f"{lines}\nchoose another --out, or use --anyway to train them regardless; the report "
            "then carries this warning"
        )


def of_run(config: RunConfig, corpus: Corpus | None) -> Conditions:
    """Return the conditions of a run that is to be trained; without its data, those of settings."""
    if corpus is None:
        of_settings = conditions(config.to_dict(), {}, None)
        return {what: value for what, value in of_settings.items() if value != UNKNOWN}
    data = dict(corpus.description) | {"fingerprint": corpus.fingerprint}
    splits = ["validation"] if corpus.test is None else ["validation", "test"]
    return conditions(config.to_dict(), data, splits)


def unlike_others(
    requested: Mapping[str, Conditions], record: StudyRecord, study_dir: Path
) -> tuple[str, ...]:
    """Return one line per condition in which requested runs differ from others in the folder.

    Args:
        requested: the conditions of each variant.
        record: the record of the requested runs alone.
        study_dir: the folder, whose other runs are read.
    """
    others = list(_others(record, study_dir))
    by_variant = [(f"{name} (requested)", found) for name, found in requested.items()]
    design = {
        what: tuple((*group, *(f"{name} (requested)" for name in group)) for group in groups)
        for what, groups in record.by_design.items()
    }
    lines = list[str]()
    for what, values in unequal([*others, *by_variant], design).items():
        if what not in tuned_batch(record):
            has = "; ".join(f"{value} in {listed(names)}" for value, names in values.items())
            lines.append(f"{what}: {has}")
    return tuple(lines)


def _others(record: StudyRecord, study_dir: Path) -> Iterator[tuple[str, Conditions]]:
    """Yield the conditions of the folder's runs that are not in the record, with their variant."""
    for variant, runs in record.runs(study_dir).items():
        for run in runs:
            if variant not in record.variants or run.seed not in record.seeds:
                found = read_run(run)
                yield variant, recorded(found.config, found.environment, found.summary)


@reading_once()
def conflict(run: Run, folder: RunFolder, fingerprint: str | None) -> str:
    """Return in what the existing run differs from `run`: settings, files of code, data.

    The text is empty if there is no existing run, if it is the same run, or if it is damaged and
    run again. A `fingerprint` of None, of data that could not be read, stands for that of the
    existing run.
    """
    if folder.damage():
        return ""
    environment = folder.environment() or {}
    own_code, data = environment.get("own_code") or {}, environment.get("data") or {}
    read = fingerprint or data.get("fingerprint") or ""
    different = folder.conflict(run.config.to_dict() | {"identity": run.config.identity(read)})
    if not different:
        return ""
    found = [
        f"{path} is {a!r} there, {b!r} requested"
        for path, (a, b) in different.items()
        if path != "identity" and not re.search(r"\.(keep|paths?)\b", path)
    ][:4]
    for name, (before, now) in differences(
        own_code.get("sources", {}), run.config.sources()
    ).items():
        how = "was edited" if before and now else "is new" if now else "is no longer used"
        found.append(f"{name} {how}")
    if (there := data.get("fingerprint")) not in (None, read):
        paths = [getattr(run.config.data, "path", None), *getattr(run.config.data, "paths", ())]
        which = ", ".join([run.config.data.kind(), *(str(path) for path in paths if path)])
        found.append(f"the data has changed ({which}: {there} there, {read} now)")
    if found or (fingerprint is None and different.keys() == {"identity"}):
        return "; ".join(found)
    if "identity" not in different:
        return "; ".join(
            f"{path} is {a!r} there, {b!r} requested" for path, (a, b) in different.items()
        )
    there, requested = different["identity"]
    return (
        f"identity is {there!r} there, {requested!r} requested: its data has changed, or another "
        "version of attnlab made it; its record does not say which"
    )


def conflicts(
    study: Study, study_dir: Path, variant: str, fingerprint: str | None, chosen: Recipe | None
) -> Iterator[tuple[RunFolder, str]]:
    """Yield the existing runs of a variant that were made with different settings, and which.

    `chosen` is the recipe of the variant's runs for the verdict; None if it is not known yet.
    """
    tuning, sources = study.tuning, study.sources().get(variant)
    if tuning is not None:
        own = start_of(study.variants[variant], tuning).recipe
        for folder in tuning_runs(study_dir, variant):
            recipe = Recipe.parse(folder.recipe or "")
            if recipe is None or dict(recipe.settings).keys() != dict(own.settings).keys():
                continue  # of another search
            if folder.seed == tuning_seed(variant):
                run = study.tuning_run(variant, recipe)
            elif folder.seed < TUNING_SEED:
                run = study.challenge_run(variant, folder.seed, recipe)
            else:
                continue
            if why := conflict(run, folder, fingerprint):
                yield folder, why
    for seed in range(study.all_seeds):
        run = study.verdict_run(variant, seed, chosen)
        folder = run.folder(study_dir)
        searched = tuning is None or chosen is not None
        why = conflict(run, folder, fingerprint) if searched else _before_search(folder, sources)
        if why:
            yield folder, why


def _before_search(folder: RunFolder, sources: Sequence[str] | None) -> str:
    """Return why the recipe of a recorded run is unknown; empty if the search is damaged.

    It is then searched again. `sources` are the variants that the recipe is carried from.
    """
    runs = [folder, *tuning_runs(folder.study_dir, folder.variant)]
    if any(run.status() == "damaged" for run in runs) or folder.identity() is None:
        return ""
    carried = f"its recipe is carried from {listed(sources or ())}, whose searches are "
    return f"{carried}not in the folder" if sources else BEFORE_SEARCH
