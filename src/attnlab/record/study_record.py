"""A study's record: `study.json` with its question and settings, packed or not, and its runs."""

import os
import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import NamedTuple, Self, get_type_hints
from urllib.parse import unquote

from attnlab.config.problem import nearest
from attnlab.record.atomic_files import PUBLISHED, DamagedError, advising, replace_file
from attnlab.record.file_types import JudgementForm
from attnlab.record.json_text import Json, mismatch, to_json
from attnlab.record.lease import waiting_for
from attnlab.record.packed_file import PACKED, STUDY, read_packed, read_record
from attnlab.record.recorded_run import folder_name
from attnlab.record.run_folder import RunFolder
from attnlab.record.verified_folder import add_checksums, parse_object

MOST_NAMED = 5  # folders, in a message


class Rung(NamedTuple):
    """The place of a variant on a ladder of sizes and training lengths."""

    family: str  # what is the same at all sizes, such as the mechanism
    size: str
    budget: str  # of training tokens


class Cell(NamedTuple):
    """The variants of one size and training length, which are compared with one another."""

    size: str
    budget: str
    variants: tuple[str, ...]
    baseline: str | None


def cells_of(
    variants: Sequence[str], baseline: str | None, ladder: Mapping[str, Rung]
) -> tuple[Cell, ...]:
    """Return the variants that are compared with one another, the baseline's first.

    Without a ladder, these are all. A variant without a rung is compared with the baseline's.
    """
    home = ladder.get(baseline or "", Rung("", "", ""))
    groups: dict[tuple[str, str], list[str]] = {home[1:]: []}
    for name in variants:
        groups.setdefault(ladder.get(name, home)[1:], []).append(name)
    family = {(rung.family, *rung[1:]): name for name, rung in ladder.items()}
    return tuple(
        Cell(*place, tuple(names), family.get((home.family, *place), baseline))
        for place, names in groups.items()
        if names
    )


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """The question of a study and how its runs were made, as recorded in its folder."""

    name: str
    question: str
    baseline: str | None
    variants: tuple[str, ...]  # in the study's order
    seeds: tuple[int, ...]  # that every variant has
    command: str
    attnlab_version: str
    checked: bool = False  # every mechanism passed the checks before its runs were trained
    most_seeds: int | None = None  # of variants whose comparisons are open; None: `seeds` for all
    tuning: Json | None = None  # how recipes were searched; None: those in the variants' settings
    match: Json | None = None  # what all variants share, and the remaining relative "mismatch"
    margin: float = 0.01  # nats/token; smaller differences count as equivalent
    target_loss: float | None = None  # nats/token, for sample efficiency; None: the baseline's
    hypotheses: tuple[Json, ...] = ()  # each with its "kind" and fields
    judgements: tuple[JudgementForm, ...] = ()  # by the user's own code, each with its "hypothesis"
    families: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    labels: Mapping[str, str] = field(default_factory=dict[str, str])  # of variants, for papers
    swept: tuple[str, ...] = ()  # settings whose values the variants combine, by path
    ladder: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    # ^ family, size and budget of the variants of a ladder
    lengths: Mapping[str, str] = field(default_factory=dict[str, str])
    # ^ studies of all training lengths, by name: the value of --length, or "" without it
    by_design: Mapping[str, tuple[tuple[str, ...], ...]] = field(
        default_factory=dict[str, tuple[tuple[str, ...], ...]]
    )  # ^ conditions in which variants differ, such as "data": the groups of variants that share it

    @property
    def numbers_of_seeds(self) -> tuple[int, int]:
        """The number of seeds that every variant has, and the largest of any."""
        first = len(self.seeds)
        return first, max(first, self.most_seeds or first)

    @property
    def rungs(self) -> dict[str, Rung]:
        """The places of variants on the ladder; empty for a study that is none."""
        return {name: Rung(*place) for name, place in self.ladder.items()}

    def joined(self, study_dir: Path) -> Self:
        """Return this record with the variants, seeds and commands of the folder's record added."""
        before = type(self).find(study_dir)
        if before is None:
            return self
        left_out = [name for name in before.variants if name not in self.variants]
        first, then = (before, self) if left_out else (self, before)
        # the baseline of runs that are left out stays the baseline, unless another is declared
        keeps = before.baseline in left_out and self.baseline in self.variants
        match = self.match or before.match
        if self.match and before.match:
            mismatch = {**before.match.get("mismatch", {}), **self.match["mismatch"]}
            match = {**self.match, "mismatch": mismatch}
        commands = [*before.command.splitlines(), *self.command.splitlines()]
        return replace(
            self,
            command="\n".join(dict.fromkeys(commands)),
            baseline=before.baseline if keeps else self.baseline,
            variants=tuple(dict.fromkeys([*first.variants, *then.variants])),
            seeds=tuple(sorted({*before.seeds, *self.seeds})),
            most_seeds=max((m for m in (before.most_seeds, self.most_seeds) if m), default=None),
            checked=self.checked and before.checked,
            tuning=self.tuning or before.tuning,
            match=match,
            labels={**before.labels, **self.labels},
            swept=self.swept or before.swept,
            ladder={**before.ladder, **self.ladder},
            lengths=self.lengths or before.lengths,
            target_loss=before.target_loss if self.target_loss is None else self.target_loss,
            by_design=self._designs(before),
            judgements=before.judgements,
            families={
                name: tuple(
                    dict.fromkeys([*first.families.get(name, ()), *then.families.get(name, ())])
                )
                for name in dict.fromkeys([*first.families, *then.families])
            },
        )

    def _designs(self, before: Self) -> dict[str, tuple[tuple[str, ...], ...]]:
        """Return the groups of this record, with the variants that only `before` has."""
        found = dict[str, tuple[tuple[str, ...], ...]]()
        for what in {**before.by_design, **self.by_design}:
            groups = [list(group) for group in self.by_design.get(what, ())]
            known = {*self.variants, *(name for group in groups for name in group)}
            for group in before.by_design.get(what, ()):
                home = next((it for it in groups if set(it) & set(group)), None)
                if home is None:
                    groups.append(home := [])
                home.extend(name for name in group if name not in known)
            if len(groups := [group for group in groups if group]) > 1:
                found[what] = tuple(map(tuple, groups))
        return found

    @staticmethod
    @contextmanager
    def held(study_dir: Path) -> Generator[None]:
        """Hold the record of a folder: no other process changes it while the context lasts.

        Waits for another process that holds it. Raises WriteError.
        """
        study_dir.mkdir(parents=True, exist_ok=True)
        with waiting_for(study_dir / "study.lease"):
            yield

    def write(self, study_dir: Path) -> None:
        """Write `study.json`, unless it is packed with the same content.

        Raises ValueError if two variants would share a folder.
        """
        folders: dict[str, str] = {}
        for variant in self.variants:
            other = folders.setdefault(folder_name(variant).casefold(), variant)
            if other != variant:
                raise ValueError(
                    f"variants {other!r} and {variant!r} would share a folder where file names "
                    "ignore case; rename one"
                )
        study_dir.mkdir(parents=True, exist_ok=True)
        path, content = study_dir / STUDY, to_json(add_checksums(asdict(self), STUDY, {}))
        if os.path.lexists(path) or read_packed(study_dir).record != content:
            replace_file(path, content)

    @classmethod
    def read(cls, study_dir: Path) -> Self:
        """Return the record of a folder. Raises ValueError as `find`, and if it has none."""
        found = cls.find(study_dir)
        if found is None:
            packed = os.path.lexists(study_dir / PACKED)
            besides = f", which {PACKED} lacks, too: restore it from a copy" if packed else ""
            where = besides or meant(study_dir)
            raise ValueError(f"no study in {study_dir}: there is no {study_dir / STUDY}{where}")
        return found

    @classmethod
    def find(cls, study_dir: Path) -> Self | None:
        """Return the record of a folder, packed or not; None if it has none.

        Fields that only another version of attnlab knows are ignored. Raises ValueError if the
        record is damaged or incomplete.
        """
        there = read_record(study_dir)
        if there is None:
            return None
        content, path = there
        again = ", or delete it and run the study again" if path == study_dir / STUDY else ""
        with advising(f"restore it from a copy{again}"):
            recorded = parse_object(content, path)
            recorded.setdefault("tuning", recorded.get("learning_rates"))  # in older records
            known = get_type_hints(cls)
            found = {name: value for name, value in recorded.items() if name in known}
            required = {
                field.name
                for field in dataclass_fields(cls)
                if field.default is MISSING and field.default_factory is MISSING
            }
            if missing := sorted(required - found.keys()):
                raise DamagedError(f"{path} lacks {', '.join(missing)}")
            if wrong := [m for name in found if (m := mismatch(known[name], found[name], name))]:
                raise DamagedError(f"{path} is damaged ({wrong[0]})")
        for name in ("variants", "seeds", "hypotheses", "judgements", "swept"):
            found[name] = tuple(found.get(name, ()))
        families = found.get("families", {})
        found["families"] = {name: tuple(variants) for name, variants in families.items()}
        found["ladder"] = {name: tuple(at) for name, at in found.get("ladder", {}).items()}
        if any(len(at) != len(Rung._fields) for at in found["ladder"].values()):
            raise DamagedError(f"{path} is damaged (ladder: family, size and budget per variant)")
        found["by_design"] = {
            what: tuple(map(tuple, groups)) for what, groups in found.get("by_design", {}).items()
        }
        return cls(**found)

    def runs(self, study_dir: Path) -> dict[str, list[RunFolder]]:
        """Return planned runs, and any others in the folder, by variant, in the study's order."""
        seeds = {variant: set(self.seeds) for variant in self.variants}
        for key in read_packed(study_dir).runs:
            if key.recipe is None:
                seeds.setdefault(key.variant, set()).add(key.seed)
        for folder in sorted(study_dir.glob("*/seed-*")):
            if (seed := _seed(folder.name)) is not None:
                seeds.setdefault(unquote(folder.parent.name), set()).add(seed)
        return {
            variant: [RunFolder(study_dir, variant, seed) for seed in sorted(found)]
            for variant, found in seeds.items()
        }


def meant(path: Path) -> str:
    """Return the end of a message about a path that is no study's folder: which one is, probably.

    It may be around the path, below it, beside it under a similar name, or in results/ or
    published/ under this name.
    """
    around = (*path.parents, *path.absolute().parents)
    homes = (Path("results"), Path(PUBLISHED))
    found = next(filter(_has_record, (*around, *(home / path.stem for home in homes))), None)
    if found is not None:
        return f"; the study's folder is {found}"
    if below := sorted(filter(_has_record, path.glob("*")))[:MOST_NAMED]:
        return f"; did you mean {' or '.join(map(str, below))}?"
    beside = {it.name: it for it in path.parent.glob("*") if _has_record(it)}
    if (near := nearest(path.name, beside)) is not None:
        return f"; did you mean {beside[near]}?"
    is_name = len(path.parts) == 1 and not path.is_dir()
    example = homes[0] / (path.stem if is_name else "STUDY")
    return f"; attnlab run writes the folder of a study, such as {example}"


def _has_record(folder: Path) -> bool:
    return any(os.path.lexists(folder / name) for name in (STUDY, PACKED))


def runs_in(path: Path) -> list[RunFolder]:
    """Return the verdict's runs in the folder of a study, a variant or a run, packed or not.

    The list is empty if there are none. Raises ValueError if the name of a variant's folder is not
    the one that this package gives it.
    """
    folder = path.resolve()
    if (study := StudyRecord.find(folder)) is not None:
        return [run for runs in study.runs(folder).values() for run in runs]
    asked = _seed(folder.name)
    variant = folder if asked is None else folder.parent
    study_dir, name = variant.parent, unquote(variant.name)
    packed = (key for key in read_packed(study_dir).runs if key.recipe is None)
    seeds = {key.seed for key in packed if key.variant == name}
    seeds |= {seed for path in variant.glob("seed-*") if (seed := _seed(path.name)) is not None}
    if asked is not None:
        seeds &= {asked}
    if seeds and folder_name(name) != variant.name:
        raise ValueError(f"{variant}: call this folder {folder_name(name)}, or without dots")
    return [RunFolder(study_dir, name, seed) for seed in sorted(seeds)]


def _seed(name: str) -> int | None:
    match = re.fullmatch(r"seed-(\d+)(\.partial)?", name)
    return int(match[1]) if match else None
