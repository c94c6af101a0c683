"""A study: one question, its variants, and the runs that answer it.

A run's identity is the hash of its whole configuration, the fingerprint of its data and the source
of any class of the user's own. The same identity is never computed twice.
"""

import dataclasses
import hashlib
import json
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import attnlab.mechanisms  # noqa: F401  # pyright: ignore[reportUnusedImport]  the zoo of kinds
from attnlab.config import (
    Config,
    ConfigError,
    Problem,
    load_file,
    override,
    own_sources,
    suggestion,
)
from attnlab.data import DataConfig
from attnlab.mechanism import MechanismConfig
from attnlab.model import ModelConfig
from attnlab.train_config import TrainConfig

_SHIPPED = Path(__file__).parent / "studies"


@dataclass(frozen=True, kw_only=True)
class RunConfig(Config):
    """Everything that decides the result of one run."""

    data: DataConfig
    model: ModelConfig
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 0

    def problems(self) -> Iterator[Problem]:
        if self.seed < 0:
            yield Problem("seed", f"must not be negative, got {self.seed}")

    def with_mechanisms(self, *mechanisms: MechanismConfig) -> "RunConfig":
        """The same run with other mechanisms, tiled over the layers."""
        return dataclasses.replace(
            self, model=dataclasses.replace(self.model, mechanisms=mechanisms)
        )

    def identity(self, fingerprint: str) -> str:
        """Twelve hexadecimal digits of settings, data (by fingerprint) and the user's sources."""
        config = self.to_dict() | {"data": self.data.substance()}
        what = {"config": config, "data": fingerprint, "sources": own_sources(self)}
        canonical = json.dumps(what, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One variant with one seed."""

    variant: str
    config: RunConfig

    @property
    def seed(self) -> int:
        return self.config.seed


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question and the variants that answer it, each trained with seeds 0 to `seeds` - 1.

    Raises `ConfigError` for a study that cannot be run as it stands.
    """

    question: str
    variants: Mapping[str, RunConfig]
    baseline: str | None = None  # a variant's name; the first by default
    seeds: int = 3
    name: str = ""  # the file's name where it is loaded from one

    def __post_init__(self) -> None:
        problems = list[Problem]()
        if not self.variants:
            problems.append(Problem("variants", "name at least one"))
        if self.seeds < 1:
            problems.append(Problem("seeds", f"must be at least 1, got {self.seeds}"))
        if self.baseline is None and self.variants:
            object.__setattr__(self, "baseline", next(iter(self.variants)))
        elif self.baseline not in self.variants:
            known = ", ".join(self.variants)
            problems.append(Problem("baseline", f"no variant {self.baseline!r}; known: {known}"))
        if problems:
            raise ConfigError(problems)

    def runs(self) -> list[Run]:
        """All runs, seed by seed, so that every variant has a result early."""
        return [
            Run(variant=name, config=dataclasses.replace(config, seed=seed))
            for seed in range(self.seeds)
            for name, config in self.variants.items()
        ]

    def only(self, names: Iterable[str]) -> "Study":
        """The same study with these variants alone. Its baseline is kept where it is among them."""
        asked = list(names)
        problems = [
            Problem("only", f"no variant {name!r}{suggestion(name, self.variants)}")
            for name in asked
            if name not in self.variants
        ]
        if problems:
            raise ConfigError(problems)
        kept = {name: config for name, config in self.variants.items() if name in asked}
        baseline = self.baseline if self.baseline in kept else None
        return dataclasses.replace(self, variants=kept, baseline=baseline)

    def override(self, assignments: Iterable[str]) -> "Study":
        """The same study with dotted settings replaced in every variant.

        Raises `ConfigError` with every problem; one that only some variants have names them.
        """
        changes = list(assignments)
        changed, found = dict[str, RunConfig](), dict[Problem, list[str]]()
        for name, config in self.variants.items():
            try:
                changed[name] = override(config, changes)
            except ConfigError as error:
                for problem in error.problems:
                    found.setdefault(problem, []).append(name)
        if found:
            raise ConfigError(
                problem if len(names) == len(self.variants) else _only_in(problem, names)
                for problem, names in found.items()
            )
        return dataclasses.replace(self, variants=changed)


def shipped() -> dict[str, Study]:
    """The studies that attnlab ships, by name."""
    names = (module.name for module in iter_modules([str(_SHIPPED)]))
    return {name: _study_of(import_module(f"attnlab.studies.{name}"), name) for name in names}


def load_study(name: str) -> Study:
    """A shipped study by its name, or the `study` of a Python file by its path.

    Raises:
        ValueError: no such study or file, or the file defines no `study`.
    """
    if name.endswith(".py"):
        return _study_of(load_file(Path(name)), Path(name).stem)
    known = [module.name for module in iter_modules([str(_SHIPPED)])]
    if name not in known:
        raise ValueError(
            f"no study {name!r}{suggestion(name, known)}; a path to a Python file works too"
        )
    return _study_of(import_module(f"attnlab.studies.{name}"), name)


def _study_of(module: types.ModuleType, name: str) -> Study:
    study: Any = getattr(module, "study", None)
    if not isinstance(study, Study):
        raise ValueError(f"{module.__file__} defines no `study = Study(...)`")
    return study if study.name else dataclasses.replace(study, name=name)


def _only_in(problem: Problem, variants: list[str]) -> Problem:
    return problem._replace(message=f"{problem.message} (in {', '.join(variants)})")
