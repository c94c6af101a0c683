"""A study's record: `study.json` with its question and settings, and the runs of its folder."""

import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Self
from urllib.parse import unquote

from attnlab.record.json_text import Json, parse, write_json
from attnlab.record.packed_file import read_packed
from attnlab.record.run_folder import RunFolder, folder_name


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """The question of a study and how its runs were made, as recorded in its folder."""

    name: str
    question: str
    baseline: str | None
    variants: tuple[str, ...]  # in the study's order
    seeds: tuple[int, ...]
    command: str
    attnlab_version: str
    checked: bool = False  # every mechanism passed the checks before its runs were trained
    tuning: Json | None = None  # how recipes were searched; None: those in the variants' settings
    match: Json | None = None  # what all variants share, and the remaining relative "mismatch"
    margin: float = 0.01  # nats/token; smaller differences count as equivalent
    hypotheses: tuple[Json, ...] = ()  # each with its "kind" and fields
    families: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    def joined(self, study_dir: Path) -> Self:
        """Return this record with the variants and seeds of the folder's record added."""
        if not (study_dir / "study.json").is_file():
            return self
        before = type(self).read(study_dir)
        left_out = [name for name in before.variants if name not in self.variants]
        first, then = (before, self) if left_out else (self, before)
        # the baseline of runs that are left out stays the baseline, unless another is declared
        keeps = before.baseline in left_out and self.baseline in self.variants
        match = self.match or before.match
        if self.match and before.match:
            mismatch = {**before.match.get("mismatch", {}), **self.match["mismatch"]}
            match = {**self.match, "mismatch": mismatch}
        return replace(
            self,
            baseline=before.baseline if keeps else self.baseline,
            variants=tuple(dict.fromkeys([*first.variants, *then.variants])),
            seeds=tuple(sorted({*before.seeds, *self.seeds})),
            checked=self.checked and before.checked,
            tuning=self.tuning or before.tuning,
            match=match,
            families={
                name: tuple(
                    dict.fromkeys([*first.families.get(name, ()), *then.families.get(name, ())])
                )
                for name in dict.fromkeys([*first.families, *then.families])
            },
        )

    def write(self, study_dir: Path) -> None:
        """Write `study.json`. Raises ValueError if two variants would share a folder."""
        folders: dict[str, str] = {}
        for variant in self.variants:
            other = folders.setdefault(folder_name(variant).casefold(), variant)
            if other != variant:
                raise ValueError(
                    f"variants {other!r} and {variant!r} would share a folder where file names "
                    "ignore case; rename one"
                )
        study_dir.mkdir(parents=True, exist_ok=True)
        write_json(study_dir / "study.json", asdict(self))

    @classmethod
    def read(cls, study_dir: Path) -> Self:
        """Read `study.json`. Fields that only another version of attnlab knows are ignored.

        Raises:
            ValueError: the folder holds no study, or its record is damaged or incomplete.
        """
        path = study_dir / "study.json"
        if not path.is_file():
            raise ValueError(f"no study in {study_dir}: there is no {path}")
        recorded = parse(path.read_text(encoding="utf-8"), path)
        recorded.setdefault("tuning", recorded.get("learning_rates"))  # the name in older records
        known = {field.name: field for field in dataclass_fields(cls)}
        found = {name: value for name, value in recorded.items() if name in known}
        required = [
            name
            for name, field in known.items()
            if field.default is MISSING and field.default_factory is MISSING
        ]
        if missing := [name for name in required if name not in found]:
            raise ValueError(
                f"{path} lacks {', '.join(missing)}; restore it, or run the study again"
            )
        for name in ("variants", "seeds", "hypotheses"):
            found[name] = tuple(found.get(name, ()))
        families = found.get("families", {})
        found["families"] = {name: tuple(variants) for name, variants in families.items()}
        return cls(**found)

    def runs(self, study_dir: Path) -> dict[str, list[RunFolder]]:
        """Return planned runs, and any others in the folder, by variant, in the study's order."""
        seeds = {variant: set(self.seeds) for variant in self.variants}
        for key in read_packed(study_dir).runs:
            if key.recipe is None:
                seeds.setdefault(key.variant, set()).add(key.seed)
        for folder in sorted(study_dir.glob("*/seed-*")):
            if (seed := _seed_of(folder)) is not None:
                seeds.setdefault(unquote(folder.parent.name), set()).add(seed)
        return {
            variant: [RunFolder(study_dir, variant, seed) for seed in sorted(found)]
            for variant, found in seeds.items()
        }


def runs_in(path: Path) -> list[RunFolder]:
    """Return the verdict's runs in the folder of a study, a variant or a run, packed or not.

    The list is empty if there are none. Raises ValueError if the name of a variant's folder is not
    the one that this package gives it.
    """
    folder = path.resolve()
    if (folder / "study.json").is_file():
        by_variant = StudyRecord.read(folder).runs(folder)
        return [run for runs in by_variant.values() for run in runs]
    asked = _seed(folder.name)
    variant = folder if asked is None else folder.parent
    study_dir, name = variant.parent, unquote(variant.name)
    packed = (key for key in read_packed(study_dir).runs if key.recipe is None)
    seeds = {key.seed for key in packed if key.variant == name}
    seeds |= {seed for path in variant.glob("seed-*") if (seed := _seed_of(path)) is not None}
    if asked is not None:
        seeds &= {asked}
    if seeds and folder_name(name) != variant.name:
        raise ValueError(f"{variant}: call this folder {folder_name(name)}, or without dots")
    return [RunFolder(study_dir, name, seed) for seed in sorted(seeds)]


def _seed(name: str) -> int | None:
    match = re.fullmatch(r"seed-(\d+)(\.partial)?", name)
    return int(match[1]) if match else None


def _seed_of(folder: Path) -> int | None:
    return _seed(folder.name) if folder.is_dir() else None
