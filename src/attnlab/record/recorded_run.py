"""The files of one run as they were recorded, read strictly: checksums and types are compared.

`summary.json` of a run that has ended holds the SHA-256 of the run's other files and of its own
content. Runs that are in progress, that failed or that were recorded before there were checksums
have none; their files are compared with the types below and with each other.
"""

import os
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, cast

from attnlab.record.atomic_files import DamagedError, read_file
from attnlab.record.file_types import ConfigForm, EnvironmentForm, MeasurementForm, SummaryForm
from attnlab.record.json_text import Json, parse
from attnlab.record.packed_file import (
    PACKED,
    RUN_FILES,
    TOKENIZER,
    PackedRun,
    RunKey,
    read_packed,
    read_record,
)
from attnlab.record.verified_folder import add_checksums, split_checksums

Read = dict[tuple[Path, RunKey], "RecordedRun | str | None"]  # a text is the damage
_read_once = ContextVar[Read | None]("_read_once", default=None)
Status = Literal["absent", "partial", "finished", "diverged", "failed", "damaged"]


@contextmanager
def reading_once() -> Generator[None]:
    """Read each run once, however often it is asked for: a report is of one state of the disk.

    The records must not be changed. Within another `reading_once`, the state is that one's.
    """
    token = _read_once.set({} if (known := _read_once.get()) is None else known)
    try:
        yield
    finally:
        _read_once.reset(token)


class RecordedRun:
    """The files of one run. Making the object compares all checksums."""

    def __init__(self, run: PackedRun, folder: Path, seed: int) -> None:
        """Compare the checksums.

        Args:
            run: the files, and whether the run has ended.
            folder: the place that messages name.
            seed: the seed of the folder's name.

        Raises:
            DamagedError: a file is missing, or is not as it was written.
        """
        self._files, self._folder = run.files, folder
        self.ended = run.ended
        summary, sums = None, None
        if "summary.json" in run.files:
            summary = parse(run.files["summary.json"], folder / "summary.json", SummaryForm)
            summary, sums = split_checksums(summary, folder / "summary.json")
        self.summary: Json | None = summary
        for name in self._required(sums):
            if name not in run.files:
                raise DamagedError(f"{folder / name} is missing")
        for name in (*RUN_FILES, TOKENIZER):
            written = None if sums is None else sums.get(name)
            if written is not None and written != sha256(run.files.get(name, b"")).hexdigest():
                if name == TOKENIZER and name not in run.files:
                    continue  # its weights need it, its results do not
                raise DamagedError(
                    f"{folder / name} was altered or cut short: its checksum differs"
                )
        self.sums = sums
        if sums is None:
            self._compare()
        if (recorded := (self.config or {}).get("seed", seed)) != seed:
            raise DamagedError(
                f"{folder} holds a run of seed {recorded}; call this folder seed-{recorded}"
            )

    @property
    def status(self) -> Status:
        """The state of the run."""
        return "partial" if self.summary is None else self.summary["status"]

    @cached_property
    def config(self) -> Json | None:
        """The settings with the variant's name and the identity, or None."""
        return self._parsed("config.json", ConfigForm)

    @cached_property
    def environment(self) -> Json | None:
        """The record of code, packages and device, or None."""
        return self._parsed("environment.json", EnvironmentForm)

    @cached_property
    def metrics(self) -> list[Json]:
        """Every measurement in order; an incomplete last line of a run in progress is none."""
        *lines, rest = self._files.get("metrics.jsonl", b"").split(b"\n")
        path = self._folder / "metrics.jsonl"
        if rest and self.ended:
            raise DamagedError(f"{path} is damaged at line {len(lines) + 1} (it is cut short)")
        return [parse(line, path, MeasurementForm, n) for n, line in enumerate(lines, 1)]

    def _required(self, sums: Mapping[str, str] | None) -> list[str]:
        return [name for name in RUN_FILES if self.ended or name in (sums or ())]

    def _compare(self) -> None:
        """Compare the files of a run without checksums with their types and with each other."""
        _ = self.config, self.environment  # reading them compares their types
        measured = [line["step"] for line in self.metrics]
        if not self.ended or self.summary is None:
            return
        if self.summary["status"] == "failed":
            raise DamagedError(f"{self._folder / 'summary.json'} is that of a run in progress")
        steps = self.summary.get("steps")
        if self.summary["status"] == "finished" and measured and steps not in (None, measured[-1]):
            path = self._folder / "metrics.jsonl"
            raise DamagedError(f"{path} ends at step {measured[-1]}, and the run at step {steps}")

    def _parsed(self, name: str, form: Any) -> Json | None:
        content = self._files.get(name)
        return None if content is None else parse(content, self._folder / name, form)


class StoredRun:
    """One seed of one variant of a study, wherever it is stored, for reading.

    A run that tries another recipe than the verdict's is also named by that recipe.
    """

    def __init__(
        self, study_dir: Path, variant: str, seed: int, *, recipe: str | None = None
    ) -> None:
        self.variant, self.seed, self.recipe = variant, seed, recipe
        self.study_dir, self.key = study_dir, RunKey(variant, seed, recipe)
        folder = study_dir / folder_name(variant)
        if recipe is not None:
            folder = folder / "tuning" / recipe
        self.ended, self.partial = folder / f"seed-{seed}", folder / f"seed-{seed}.partial"

    @property
    def path(self) -> Path:
        """The folder that the run has, or will have."""
        if self.ended.is_dir():
            return self.ended
        packed = None if self.partial.is_dir() else self.packed()
        return self.partial if packed is None or not packed.ended else self.ended

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints. It moves with the run when the run ends."""
        return self.path / "checkpoints"

    def in_folder(self) -> bool:
        """True if a folder holds files of the run, even if it is packed, too."""
        return any(
            os.path.lexists(folder / name)
            for folder in (self.ended, self.partial)
            for name in RUN_FILES
        )

    def packed(self) -> PackedRun | None:
        """Return the packed run, or None if it is not packed or is in a folder."""
        found = read_packed(self.study_dir).runs.get(self.key)
        return None if found is None or self.in_folder() else found

    def recorded(self) -> RecordedRun | None:
        """Return what is recorded of the run; None if there is nothing.

        Raises DamagedError if a file is not as it was written. The message names it, and the
        command that runs the run again.
        """
        known, place = _read_once.get(), (self.study_dir, self.key)
        try:
            found = known[place] if known and place in known else self._recorded()
        except DamagedError as error:
            found = str(error)
        if known is not None:
            known[place] = found
        if isinstance(found, str):
            raise DamagedError(f"{found}; to run it again: {command_of(self.study_dir)}")
        return found

    def read_again(self) -> None:
        """Forget what was read within `reading_once`: the run was written since."""
        if (known := _read_once.get()) is not None:
            known.pop((self.study_dir, self.key), None)

    def damage(self) -> str | None:
        """Return the damaged file, the damage, and the command that helps; None if all is well."""
        try:
            self.recorded()
        except DamagedError as error:
            return str(error)
        return None

    def status(self) -> Status:
        """Return the state of the run; "absent" if nothing of it is stored."""
        try:
            recorded = self.recorded()
        except DamagedError:
            return "damaged"
        if recorded is not None:
            return recorded.status
        return "partial" if self.path.is_dir() else "absent"

    @reading_once()
    def ended_summary(self) -> Json | None:
        """Return the summary of a run that finished or diverged and is not damaged, else None."""
        return self.summary() if self.status() in ("finished", "diverged") else None

    def identity(self) -> str | None:
        """Return the identity of the stored run, or None if there is none."""
        config = self.config()
        return None if config is None else cast("str", config["identity"])

    def config(self) -> Json | None:
        """Return the settings with the variant's name and the identity, or None."""
        return (recorded := self.recorded()) and recorded.config

    def environment(self) -> Json | None:
        """Return the record of code, packages and device, or None."""
        return (recorded := self.recorded()) and recorded.environment

    def summary(self) -> Json | None:
        """Return status, reason and final numbers; None while the run is in progress."""
        return (recorded := self.recorded()) and recorded.summary

    def metrics(self) -> list[Json]:
        """Return every line in order, except for an incomplete last one of a run in progress."""
        recorded = self.recorded()
        return [] if recorded is None else recorded.metrics

    def _recorded(self) -> RecordedRun | None:
        for folder in (self.ended, self.partial, self.ended):  # it may be renamed meanwhile
            files = read_run_files(folder) if os.path.lexists(folder) else None
            if files and (folder == self.ended or not os.path.lexists(self.ended)):
                return RecordedRun(PackedRun(files, folder == self.ended), folder, self.seed)
        if os.path.lexists(self.ended):
            raise DamagedError(f"{self.ended} holds no run")
        packed = self.packed()
        if packed is None:
            return None
        place = Path(f"{self.study_dir / PACKED}, {self.ended.relative_to(self.study_dir)}")
        return RecordedRun(packed, place, self.seed)


def read_run_files(folder: Path) -> dict[str, bytes]:
    """Return the files of a run's folder by name, without the tokenizer.

    Raises DamagedError if something else than a file has such a name.
    """
    if not folder.is_dir():
        raise DamagedError(f"{folder} is no folder")
    found = dict[str, bytes]()
    for name in ("summary.json", *RUN_FILES):  # if there is a summary, the others are complete
        content = read_file(folder / name)
        if content is not None:
            found.setdefault(name, content)
    return found


def summary_with_checksums(summary: Mapping[str, Any], folder: Path) -> Json:
    """Return the summary of a run that ends with the checksums of all files of its folder."""
    names = (*RUN_FILES, TOKENIZER)
    contents = {name: read_file(folder / name) for name in names if name != "summary.json"}
    sums = {name: sha256(of).hexdigest() for name, of in contents.items() if of is not None}
    return add_checksums(summary, "summary.json", sums)


def command_of(study_dir: Path) -> str:
    """Return the commands that ran a study, as its record names them; of many, the last three."""
    try:
        said = parse(*found) if (found := read_record(study_dir)) else Json()
    except (OSError, ValueError):
        said = Json()
    return " or ".join(str(said.get("command", "")).splitlines()[-3:]) or "the command that made it"


def folder_name(variant: str) -> str:
    """Return the variant's name, with `%XX` for characters that some file systems refuse.

    `urllib.parse.unquote` gives the name back. A dot stays between digits only, so that no variant
    has the name of a file of the study.

    >>> folder_name("top_k 0.5"), folder_name("hybrid 3:1"), folder_name("../mha")
    ('top_k 0.5', 'hybrid 3%3A1', '%2E%2E%2Fmha')
    """
    if not variant.strip():
        raise ValueError("a variant needs a name")
    unsafe = r'[\x00-\x1f\x7f%/\\:*?"<>|]|(?<!\d)\.|\.(?!\d)|^ | $'
    return re.sub(unsafe, lambda match: f"%{ord(match[0]):02X}", variant)
