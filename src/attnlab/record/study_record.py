"""study.json: what a study set out to do, and how."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Self
from urllib.parse import unquote

from attnlab.record.json_text import Json, parse, write_json
from attnlab.record.run_folder import RunFolder, folder_name


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """What a study set out to do, as its folder says."""

    name: str
    question: str
    baseline: str | None
    variants: tuple[str, ...]  # in the study's order
    seeds: tuple[int, ...]
    command: str
    attnlab_version: str
    checked: bool = False  # the mechanism of every run had passed the checks before it was trained
    learning_rates: Json | None = None  # how they were tuned; None: as the variants say
    match: Json | None = None  # what all variants have alike, and the "mismatch" left, relative
    margin: float = 0.01  # nats/token; smaller differences count as equivalent
    hypotheses: tuple[Json, ...] = ()  # each with its "kind" and fields
    families: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    def joined(self, study_dir: Path) -> Self:
        """This study, and the variants and seeds that the folder has besides."""
        if not (study_dir / "study.json").is_file():
            return self
        before = type(self).read(study_dir)
        left_out = [name for name in before.variants if name not in self.variants]
        first, then = (before, self) if left_out else (self, before)
        match = self.match or before.match
        if self.match and before.match:
            mismatch = {**before.match.get("mismatch", {}), **self.match["mismatch"]}
            match = {**self.match, "mismatch": mismatch}
        return replace(
            self,
            # a baseline that is left out on the command line is not given up
            baseline=before.baseline if before.baseline in left_out else self.baseline,
            variants=tuple(dict.fromkeys([*first.variants, *then.variants])),
            seeds=tuple(sorted({*before.seeds, *self.seeds})),
            checked=self.checked and before.checked,
            learning_rates=self.learning_rates or before.learning_rates,
            match=match,
            families={
                name: tuple(
                    dict.fromkeys([*first.families.get(name, ()), *then.families.get(name, ())])
                )
                for name in dict.fromkeys([*first.families, *then.families])
            },
        )

    def write(self, study_dir: Path) -> None:
        """Raises ValueError where two variants would share a folder."""
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
        """Raises ValueError where the folder holds no study."""
        path = study_dir / "study.json"
        if not path.is_file():
            raise ValueError(f"no study in {study_dir}: there is no {path}")
        fields = parse(path.read_text(encoding="utf-8"), path)
        for name in ("variants", "seeds", "hypotheses"):
            fields[name] = tuple(fields.get(name, ()))
        families = fields.get("families", {})
        fields["families"] = {name: tuple(variants) for name, variants in families.items()}
        return cls(**fields)

    def runs(self, study_dir: Path) -> dict[str, list[RunFolder]]:
        """By variant, in order: every run planned, and any other that the folder holds."""
        seeds = {variant: set(self.seeds) for variant in self.variants}
        for folder in sorted(study_dir.glob("*/seed-*")):
            match = re.fullmatch(r"seed-(\d+)(\.partial)?", folder.name)
            if match and folder.is_dir():
                seeds.setdefault(unquote(folder.parent.name), set()).add(int(match[1]))
        return {
            variant: [RunFolder(study_dir, variant, seed) for seed in sorted(found)]
            for variant, found in seeds.items()
        }
