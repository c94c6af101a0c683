"""Pack the files of a study into `runs.jsonl.gz`, and unpack them again, byte for byte.

The packed file is written, flushed, read back and compared before any file is removed, and it is
removed only after every file is restored. A process that is killed at any instant loses nothing:
each run is then in a folder, in the packed file, or in both, and readers find it once.

Packed are study.json, config.json, environment.json, metrics.jsonl and summary.json of every run,
choice.json of every tuned variant, and tokenizer.json, which runs usually share. Weights are not
packed, nor the sources, which only serve to load them.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from attnlab.config.problem import with_types
from attnlab.record.atomic_files import (
    DamagedError,
    remove_folder,
    replace_file,
    replace_folder,
    sha256,
)
from attnlab.record.packed_file import (
    CHOICE,
    PACKED,
    RUN_FILES,
    STUDY,
    TOKENIZER,
    PackedRun,
    PackedStudy,
    RunKey,
    rate_of,
    read_packed,
    read_record,
    write_packed,
)
from attnlab.record.recorded_run import folder_name
from attnlab.record.run_folder import RunFolder
from attnlab.record.study_record import StudyRecord, meant
from attnlab.record.temporary_files import TEMPORARY, remove_temporary

OF_VARIANT = ("config.json", "metrics.json")  # of a variant's folder; a report writes them again
MOST_NAMED = 3  # folders in a message


class Packed(NamedTuple):
    """The result of `pack`."""

    path: Path  # the packed file
    runs: int  # runs in it
    n_bytes: int  # its size
    changed: tuple[Path, ...]  # run folders or study.json, written meanwhile and therefore kept


@with_types
def pack(study_dir: Path | str, *, drop_checkpoints: bool = False) -> Packed:
    """Pack the record and all runs of a study into one file, and remove their files.

    What is already packed stays in the file. Of a run in both, its folder counts, and of the
    record `study.json`. A file that an earlier version packed without the record is written anew.

    Args:
        study_dir: the study's folder, such as results/quickstart.
        drop_checkpoints: True to delete the weights of the runs, which a packed study cannot hold.

    Returns:
        The packed file, and what it holds.

    Raises:
        ValueError: the folder holds no study or no run, a run has weights and `drop_checkpoints` is
            False, a run folder holds other files, a run or the packed file is damaged, or another
            process is writing a run. Nothing is changed.
    """
    study_dir = Path(study_dir)
    StudyRecord.read(study_dir)
    before = read_packed(study_dir)
    remove_temporary(study_dir)
    folders = [run for run in _run_folders(study_dir) if run.in_folder()]
    with StudyRecord.held(study_dir), _holding(folders):
        _refuse_damaged(folders)
        for run in folders:
            run.finalize()
            _refuse_other_files(run)
        if not drop_checkpoints:
            _refuse_weights(folders)
        choices = {unquote(_variant(path)): path.read_bytes() for path in _choices(study_dir)}
        runs = {run.key: _read(run) for run in folders}
        record, _ = read_record(study_dir) or (None, None)
        study = PackedStudy({**before.runs, **runs}, {**before.choices, **choices}, record)
        if not study.runs:
            raise ValueError(f"{study_dir} holds no run: there is nothing to pack")
        if study != before:
            write_packed(study_dir, study)
        changed = [run.path for run in folders if not _remove(run, study.runs[run.key])]
        if (study_dir / STUDY).is_file() and not _remove_file(study_dir / STUDY, record):
            changed.append(study_dir / STUDY)
    _remove_rest(study_dir, study)
    path = study_dir / PACKED
    return Packed(path, len(study.runs), path.stat().st_size, tuple(changed))


@with_types
def unpack(study_dir: Path | str) -> int:
    """Restore `study.json` and the folders of all packed runs, and remove the packed file.

    A run that is in a folder, too, is not replaced, nor is a `study.json` beside the packed file.

    Args:
        study_dir: the study's folder.

    Returns:
        The number of runs that were restored.

    Raises:
        ValueError: the study is not packed, the packed file is damaged, a folder that has to be
            made exists with other files, or another process is writing a run. Nothing is changed.
    """
    study_dir = Path(study_dir)
    path = study_dir / PACKED
    if not path.is_file():
        where = "" if (study_dir / STUDY).is_file() else meant(study_dir)
        raise ValueError(f"{study_dir} is not packed: there is no {path}{where}")
    study = read_packed(study_dir)
    remove_temporary(study_dir)
    left = {
        run: packed
        for key, packed in study.runs.items()
        if not (run := _run(study_dir, key)).in_folder()
    }
    for folder in (folder for run in left for folder in (run.ended, run.partial)):
        if _has_files(folder):
            raise ValueError(f"{folder} holds other files: move them elsewhere, then unpack")
    with StudyRecord.held(study_dir), _holding(left):
        if study.record is not None and not os.path.lexists(study_dir / STUDY):
            replace_file(study_dir / STUDY, study.record)
        for run, packed in left.items():
            for folder in (run.ended, run.partial):
                shutil.rmtree(folder, ignore_errors=True)  # it holds empty folders at most
            replace_folder(run.ended if packed.ended else run.partial, packed.write_into)
    for variant, content in study.choices.items():
        choice = study_dir / folder_name(variant) / "tuning" / CHOICE
        if not choice.is_file():
            choice.parent.mkdir(parents=True, exist_ok=True)
            replace_file(choice, content)
    wrong = [str(run.path) for run, packed in left.items() if _read(run) != packed]
    if wrong:
        raise OSError(
            f"not as they were packed: {', '.join(wrong)}; check the disk. {path} is kept"
        )
    path.unlink()
    return len(left)


@contextlib.contextmanager
def _holding(runs: Iterable[RunFolder]) -> Generator[None]:
    """Hold the leases of all these runs. Raises HeldError if another process holds one."""
    with contextlib.ExitStack() as leases:
        for run in runs:
            leases.enter_context(run.hold(observing=True))
        yield


def _run_folders(study_dir: Path) -> Iterator[RunFolder]:
    """Yield every run that has a folder, each once."""
    seen = set[RunKey]()
    for tuning, pattern in ((False, "*/seed-*"), (True, "*/tuning/lr-*/seed-*")):
        for folder in sorted(study_dir.glob(pattern)):
            match = re.fullmatch(r"seed-(\d+)(\.partial)?", folder.name)
            if match is None or not folder.is_dir():
                continue
            with contextlib.suppress(ValueError):  # a folder of another kind
                recipe = folder.parent.name if tuning else None
                if recipe is not None:
                    rate_of(recipe)
                variant = unquote(folder.relative_to(study_dir).parts[0])
                run = _run(study_dir, RunKey(variant, int(match[1]), recipe))
                if folder in (run.ended, run.partial) and run.key not in seen:
                    seen.add(run.key)
                    yield run


def _run(study_dir: Path, key: RunKey) -> RunFolder:
    return RunFolder(study_dir, key.variant, key.seed, recipe=key.recipe)


def _read(run: RunFolder) -> PackedRun:
    paths = {name: run.path / name for name in (*RUN_FILES, TOKENIZER)}
    files = {name: path.read_bytes() for name, path in paths.items() if path.is_file()}
    return PackedRun(files, run.path == run.ended)


def _choices(study_dir: Path) -> list[Path]:
    return sorted(study_dir.glob(f"*/tuning/{CHOICE}"))


def _variant(choice: Path) -> str:
    return choice.parent.parent.name


def _refuse_damaged(runs: list[RunFolder]) -> None:
    """Raise DamagedError for runs that are not as they were written."""
    found = [damage for run in runs if (damage := run.damage() or _damaged_tokenizer(run))]
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise DamagedError(f"{found[0]}{more}; nothing was packed")


def _damaged_tokenizer(run: RunFolder) -> str | None:
    recorded = run.recorded()
    written = recorded and recorded.sums and recorded.sums.get(TOKENIZER)
    path = run.path / TOKENIZER
    if not written or (path.is_file() and sha256(path) == written):
        return None
    return f"{path} is missing, or was altered; restore it from a copy, or remove the run"


def _refuse_other_files(run: RunFolder) -> None:
    """Raise ValueError if files would be lost that nobody asked to delete."""
    if run.ended.is_dir() and _has_files(run.partial):
        raise ValueError(f"{run.ended} and {run.partial} hold the same run: delete one of them")
    known = (*RUN_FILES, TOKENIZER, "sources", "checkpoints")
    others = sorted(path.name for path in run.path.iterdir() if path.name not in known)
    others = [name for name in others if not TEMPORARY.fullmatch(name)]
    if others:
        raise ValueError(
            f"{run.path} holds {', '.join(others)}, which a packed study cannot hold: "
            "move it elsewhere, then pack"
        )


def _refuse_weights(runs: list[RunFolder]) -> None:
    """Raise ValueError if any run has checkpoints."""
    sizes = {
        run.path: sum(file.stat().st_size for file in run.checkpoints.rglob("*") if file.is_file())
        for run in runs
    }
    held = [path for path, size in sizes.items() if size]
    if held:
        named = ", ".join(map(str, held[:MOST_NAMED]))
        more = f" and {len(held) - MOST_NAMED} more" if len(held) > MOST_NAMED else ""
        runs_have = "1 run has" if len(held) == 1 else f"{len(held)} runs have"
        raise ValueError(
            f"{runs_have} checkpoints ({sum(sizes.values()) / 1e6:,.0f} MB), which a packed study "
            f"cannot hold: {named}{more}. Save the weights you need with attnlab export, then use "
            "--drop-checkpoints to delete them all"
        )


def _remove(run: RunFolder, packed: PackedRun) -> bool:
    """Remove the folders of a packed run; return False if it has changed since it was read."""
    if _read(run) != packed:
        return False
    remove_folder(run.path)
    return True


def _remove_file(path: Path, packed: bytes | None) -> bool:
    """Remove a packed file; return False if it has changed since it was read."""
    if path.read_bytes() != packed:
        return False
    path.unlink()
    return True


def _remove_rest(study_dir: Path, study: PackedStudy) -> None:
    """Remove what belongs to packed runs: tuning choices, derived files and empty folders."""
    for choice in _choices(study_dir):
        _remove_file(choice, study.choices.get(unquote(_variant(choice))))
    for variant in {key.variant for key in study.runs}:
        folder = study_dir / folder_name(variant)
        if not any(folder.glob("**/seed-*")):
            for name in OF_VARIANT:
                (folder / name).unlink(missing_ok=True)
        for empty in [*folder.glob("seed-*"), *folder.glob("tuning/lr-*/seed-*")]:
            if empty.suffix != ".lease" and not _has_files(empty):
                shutil.rmtree(empty)
        for empty in [*folder.glob("tuning/lr-*"), folder / "tuning", folder]:
            with contextlib.suppress(OSError):  # not empty, or not there
                empty.rmdir()


def _has_files(folder: Path) -> bool:
    return any(path.is_file() for path in folder.rglob("*"))
