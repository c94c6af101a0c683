"""Comparable runs: nothing is trained into a folder whose other runs it cannot be compared with.

The requested runs are compared with every other run of the folder, of whatever variant and seed:
same data, tokenizer, steps, batch and splits. A condition in which the variants of the study itself
differ is the study's subject, and is not compared.
"""

import json
from collections.abc import Container, Iterator, Mapping
from pathlib import Path

from attnlab.analysis.fairness import OF_BATCH, Conditions, conditions, recorded, unequal
from attnlab.analysis.sentences import listed
from attnlab.analysis.table import read_run
from attnlab.data import Corpus
from attnlab.record import StudyRecord
from attnlab.study.study import Study
from attnlab.training.run import RunConfig


def require_comparable(study: Study, study_dir: Path, requested: Mapping[str, Conditions]) -> None:
    """Raise ValueError if the study's folder holds runs that its own cannot be compared with.

    Args:
        study: the study, with all options applied.
        study_dir: the study's folder; its runs may be packed.
        requested: the conditions of each variant, as from `of_run`.
    """
    record, subject = study.record(command="", checked=False), _subject(study.whole or study)
    differ = unlike_others(requested, record, study_dir, subject=subject)
    if differ:
        lines = "\n".join(f"  {line}" for line in differ)
        raise ValueError(
            f"the requested runs are not comparable with those in {study_dir}; nothing was run:\n"
            f"{lines}\nchoose another --out, or use --anyway to train them regardless; the report "
            "then carries this warning"
        )


def of_run(config: RunConfig, corpus: Corpus) -> Conditions:
    """Return the conditions of a run that is to be trained."""
    data = dict(corpus.description) | {"fingerprint": corpus.fingerprint}
    splits = ["validation"] if corpus.test is None else ["validation", "test"]
    return conditions(config.to_dict(), data, splits)


def unlike_others(
    requested: Mapping[str, Conditions],
    record: StudyRecord,
    study_dir: Path,
    *,
    subject: Container[str] = (),
) -> tuple[str, ...]:
    """Return one line per condition in which requested runs differ from others in the folder.

    Args:
        requested: the conditions of each variant.
        record: the record of the requested runs alone.
        study_dir: the folder, whose other runs are read.
        subject: conditions that are not compared.
    """
    others = list(_others(record, study_dir))
    by_variant = [(f"{name} (requested)", found) for name, found in requested.items()]
    lines = list[str]()
    for what, values in unequal([*others, *by_variant]).items():
        if what not in subject:
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


def _subject(study: Study) -> frozenset[str]:
    """Return the conditions in which the variants of the study differ by design."""
    settings = [
        conditions(
            config.to_dict(),
            {
                "fingerprint": json.dumps(config.data.to_dict()),
                "tokenizer": config.data.tokenizer.to_dict(),
            },
            None,
        )
        for config in study.variants.values()
    ]
    tuned = study.tuning.settings if study.tuning else ()
    return frozenset(unequal(("", found) for found in settings)).union(
        OF_BATCH if "train.batch_size" in tuned else ()
    )
