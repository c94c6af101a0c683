"""The runs of several folders as one table: studies, variants and single runs.

A variant has the name of its folder, preceded by as many parent folders as make it unique: `mla`,
but `mechanisms/mha` and `attention_needed/mha`. The runs of a variant are its seeds. A comparison
is fair if all runs read the same tokens in the same steps and were measured on the same splits;
all other settings may be the subject of the comparison.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

from attnlab.analysis.fairness import UNKNOWN
from attnlab.analysis.sentences import listed
from attnlab.analysis.table import Run, Table, read_run, variant_of
from attnlab.config import suggestion
from attnlab.record import (
    DamagedError,
    RunFolder,
    StudyRecord,
    folder_name,
    harness_results,
    meant,
    runs_in,
)

Folders = Mapping[Path, Sequence[RunFolder]]  # by the variant's folder
MOST_NAMED = 4  # variants in a heading
MARGIN = 0.01  # nats/token, if no study states one


def read_folders(
    given: Sequence[Path], *, out: Path, command: str, baseline: str | None = None
) -> Table:
    """Read all runs of the folders as one table, whose report will be written to `out`.

    Its `unfair` holds one line per condition that differs.

    Raises:
        ValueError: a folder holds no run, or two hold the same; `out` belongs to a study; no
            variant has the name of the baseline.
    """
    if not given:
        raise ValueError("name the folders of studies, variants or runs to compare")
    held = {folder: _held(folder) for folder in given}
    _refuse_repeats(given, held)
    _refuse_to_overwrite(out, given)
    folders = dict[Path, list[RunFolder]]()
    for found in held.values():
        for folder, runs in found.items():
            folders.setdefault(folder, []).extend(runs)
    if len(folders) < 2:
        raise ValueError(f"one variant, {next(iter(folders))}: nothing to compare it with")
    names = _names(list(folders))
    variants = tuple(
        variant_of(
            names[folder],
            folder,
            tuple(_with_data(read_run(run)) for run in sorted(runs, key=lambda run: run.seed)),
        )
        for folder, runs in folders.items()
    )
    if baseline is not None and baseline not in names.values():
        raise ValueError(f"no variant {baseline!r}{suggestion(baseline, names.values())}")
    sources = {str(path): tuple(names[folder] for folder in held[path]) for path in given}
    study = _study(given, folders, names, baseline, command)
    damage = tuple(_damage(dict.fromkeys(folder.parent for folder in folders)))
    return Table(path=out, study=study, variants=variants, sources=sources, other_damage=damage)


def _damage(study_dirs: Iterable[Path]) -> Iterator[str]:
    for study_dir in study_dirs:
        try:
            harness_results(study_dir)
        except DamagedError as error:
            yield str(error)


def _held(given: Path) -> Folders:
    """Return the runs of a study's, a variant's or a run's folder, by the variant's folder."""
    found: dict[Path, list[RunFolder]] = {}
    for run in runs_in(given):
        found.setdefault(run.ended.parent, []).append(run)
    if all(run.status() == "absent" for runs in found.values() for run in runs):
        raise ValueError(
            f"{given} holds no run: give the folder of a study (with study.json or runs.jsonl.gz), "
            f"of a variant (with seed-0 and so on) or of a run (seed-0){meant(given)}"
        )
    return found


def _names(folders: Sequence[Path]) -> dict[Path, str]:
    """Return the shortest end of each path that is unique."""
    length = dict.fromkeys(folders, 1)
    while True:
        ends = {folder: folder.parts[-n:] for folder, n in length.items()}
        often = Counter(ends.values())
        shared = [folder for folder, end in ends.items() if often[end] > 1]
        if not shared:
            return {folder: "/".join([*end[:-1], unquote(end[-1])]) for folder, end in ends.items()}
        for folder in shared:
            length[folder] += 1


def _refuse_repeats(given: Sequence[Path], held: Mapping[Path, Folders]) -> None:
    seen: dict[Path, Path] = {}
    for path in given:
        for run in (run for runs in held[path].values() for run in runs):
            other = seen.get(run.ended)
            if other is not None:
                raise ValueError(f"{other} and {path} hold the same run, {run.ended}: give it once")
            seen[run.ended] = path


def _refuse_to_overwrite(out: Path, given: Sequence[Path]) -> None:
    for path in given:
        if path.resolve() in (out.resolve(), *out.resolve().parents):
            raise ValueError(f"--out {out} lies in {path}, which is compared and never written to")
    if StudyRecord.find(out):
        raise ValueError(f"--out {out} is a study's folder, and has a report of its own")


def _study(
    given: Sequence[Path],
    folders: Folders,
    names: Mapping[Path, str],
    baseline: str | None,
    command: str,
) -> StudyRecord:
    """Return the record of the comparison: its question, and how the runs were made."""
    homes = dict.fromkeys(folder.parent for folder in folders)
    records = {home: StudyRecord.find(home) for home in homes}
    known = [record for record in records.values() if record is not None]
    first = next(iter(folders))
    usual = records[first.parent]
    usual_baseline = usual and usual.baseline and first.parent / folder_name(usual.baseline)
    shown = list(names.values())
    if len(shown) > MOST_NAMED:
        shown = list(_names([path.resolve() for path in given]).values())
    return StudyRecord(
        name="comparison",
        question=f"Comparison of {listed(shown)}",
        baseline=baseline or names.get(usual_baseline or first, names[first]),
        variants=tuple(names.values()),
        seeds=tuple(sorted({run.seed for runs in folders.values() for run in runs})),
        command="\n".join([*dict.fromkeys(record.command for record in known), command]),
        attnlab_version=" | ".join(dict.fromkeys(record.attnlab_version for record in known))
        or UNKNOWN,
        checked=all(record is not None and record.checked for record in records.values()),
        margin=min((record.margin for record in known), default=MARGIN),
    )


def _with_data(run: Run) -> Run:
    """Return the run with the fingerprint of its data as a setting: other data, other function."""
    fingerprint = (run.environment.get("data") or {}).get("fingerprint")
    if not run.config or fingerprint is None:
        return run
    data = {**run.config.get("data", {}), "fingerprint": fingerprint}
    return replace(run, config={**run.config, "data": data})
