"""A study: a question, the variants that are compared to answer it, and their runs."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from attnlab.analysis.fairness import Design, designed
from attnlab.analysis.hypotheses import Hypothesis
from attnlab.config import ConfigError, Problem, suggestion
from attnlab.config.problem import type_problems
from attnlab.mechanism import MechanismConfig
from attnlab.record import Cell, Rung, StudyRecord, cells_of, tuning_seed
from attnlab.study import shorter_runs
from attnlab.study.matching import Match
from attnlab.study.problems import (
    group_problems,
    ladder_problems,
    name_problems,
    number_problems,
    seeds_problems,
    swept_problems,
)
from attnlab.study.shorter_runs import changed_runs, override_run
from attnlab.training.carried import sources_of
from attnlab.training.config import EvalConfig, Recipe, Tuning
from attnlab.training.recipe import at_recipe, tuning_problems
from attnlab.training.run import Run, RunConfig
from attnlab.version import __version__


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question and the variants that are compared, each trained with seeds 0 to `seeds` - 1.

    With `most_seeds`, variants whose comparison with the best or with the baseline is still open
    get more, up to that number (`analysis.statistics.seeds`).
    With `tuning`, each variant's recipe is searched first. With `match`, the constructor makes
    every variant as large as the baseline: `variants` are those that are trained.

    Raises:
        ConfigError: the study cannot be run; it lists all reasons.
    """

    question: str
    variants: Mapping[str, RunConfig]
    baseline: str | None = None  # a variant's name; the first by default
    seeds: int = 4
    most_seeds: int | None = None  # of variants whose comparisons are open; None: `seeds` for all
    tuning: Tuning | None = None  # the search for each variant's recipe; None: as in its settings
    match: Match | None = None
    reference: RunConfig | None = None  # what `match` compares with; None: the baseline
    margin: float = 0.01  # nats/token; smaller differences count as equivalent
    target_loss: float | None = None  # nats/token; when it was reached; None: the baseline's last
    hypotheses: tuple[Hypothesis, ...] = ()  # each judged in the report
    families: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    # ^ groups of variants, whose means the report compares, too
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    # ^ names of variants in figures and tables for papers, which may hold `\\cite{key}`
    lengths: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    name: str = ""  # by default that of the file that it is loaded from
    length_of: str = ""  # name of the study that `at_length` changed
    notes: tuple[str, ...] = ()  # for the user: what options changed beyond what they name
    swept: tuple[str, ...] = ()  # settings along which the report shows the loss, by path
    ladder: Mapping[str, Rung] = field(default_factory=dict[str, Rung])
    # ^ places of variants of several sizes and budgets, compared within one size and budget
    whole: "Study | None" = None  # the study that `only` chose from; it may hold the baseline

    def __post_init__(self) -> None:
        if problems := list(type_problems(self)):
            raise ConfigError(problems)
        of_all = (self.whole or self).variants
        problems.extend(name_problems(self.name, self.variants))
        problems.extend(seeds_problems(self.seeds, self.most_seeds))
        problems.extend(number_problems(margin=self.margin, target_loss=self.target_loss))
        if self.baseline is None and self.variants:
            object.__setattr__(self, "baseline", next(iter(self.variants)))
        elif self.baseline is not None and self.baseline not in of_all:
            message = f"no variant {self.baseline!r}{suggestion(self.baseline, of_all)}"
            problems.append(Problem("baseline", message))
        problems.extend(swept_problems(self.swept, [of.to_dict() for of in of_all.values()]))
        problems.extend(group_problems(self.families, self.variants, self.labels, of_all))
        searched = () if self.tuning is None else self.tuning.only
        problems.extend(ladder_problems(self.ladder, searched, {**of_all, **self.variants}))
        if self.tuning is not None:
            problems.extend(tuning_problems(self.variants, self.tuning))
        if problems:
            raise ConfigError(problems)
        if self.match is not None:
            object.__setattr__(self, "variants", changed_runs(self.variants, self._matched))

    def runs(self, recipes: Mapping[str, Recipe] | None = None) -> list[Run]:
        """Return the runs for the verdict, seed by seed, so that every variant has a result early.

        `recipes` holds chosen recipes by variant; other variants have the settings of their own.
        """
        return [
            self.verdict_run(name, seed, (recipes or {}).get(name))
            for seed in range(self.seeds)
            for name in self.variants
        ]

    def verdict_run(self, variant: str, seed: int, recipe: Recipe | None = None) -> Run:
        """Return a run for the verdict, at a chosen recipe or else with the variant's settings."""
        return Run(variant=variant, config=self._at(variant, seed, recipe))

    def challenge_run(self, variant: str, seed: int, recipe: Recipe) -> Run:
        """Return a run of the verdict at a recipe beside the chosen one. It keeps no weights."""
        config = self._at(variant, seed, recipe)
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, keep="none"))
        return Run(variant=variant, config=config, recipe=recipe.name)

    def tuning_run(self, variant: str, recipe: Recipe) -> Run:
        """Return the run that tries a recipe. It keeps no weights and measures no other lengths."""
        run = self.challenge_run(variant, tuning_seed(variant), recipe)
        config = dataclasses.replace(run.config, eval=EvalConfig())
        return dataclasses.replace(run, config=config)

    def _at(self, variant: str, seed: int, recipe: Recipe | None) -> RunConfig:
        config = dataclasses.replace(self.variants[variant], seed=seed)
        if recipe is None:
            return config
        assert self.tuning is not None
        return at_recipe(config, recipe, self.tuning)

    def fewest_runs(self) -> int:
        """Return the number of all runs, with the smallest number of tuning runs."""
        tuning_runs = 0 if self.tuning is None else self.tuning.bounds()[0]
        searched = len(self.variants) - len(self.sources())
        return len(self.variants) * self.seeds + searched * tuning_runs

    def cells(self) -> tuple[Cell, ...]:
        """Return the variants that are compared with one another, the baseline's first."""
        return cells_of(tuple(self.variants), self.baseline, self.ladder)

    def sources(self) -> dict[str, tuple[str, ...]]:
        """Return the variants that carry their recipe, each with the searched ones it comes from.

        A variant whose family has no searched variant in this study is searched itself.
        """
        return sources_of(self.variants, self.ladder, self.tuning.only if self.tuning else ())

    def mismatch(self) -> dict[str, float]:
        """Return each variant's remaining difference in size, relative to the reference.

        It is empty without `match`.
        """
        if self.match is None:
            return {}
        target = self._size(self._reference())
        return {
            name: (self._size(config) - target) / max(1, target)
            for name, config in self.variants.items()
        }

    def record(self, *, command: str, checked: bool) -> StudyRecord:
        """Return the record of the study, for its folder."""
        tuning, match = self.tuning, self.match
        return StudyRecord(
            name=self.name,
            question=self.question,
            baseline=self.baseline,
            variants=tuple(self.variants),
            seeds=tuple(range(self.seeds)),
            most_seeds=self.most_seeds,
            command=command,
            attnlab_version=__version__,
            checked=checked,
            tuning=tuning and tuning.to_dict(),
            match=match and {**match.to_dict(), "mismatch": self.mismatch()},
            margin=self.margin,
            target_loss=self.target_loss,
            hypotheses=tuple(of.to_dict() for of in self.hypotheses if self.name not in of.reads),
            families=self.families,
            swept=self.swept,
            ladder={n: of for n, of in self.ladder.items() if n in {*self.variants, self.baseline}},
            lengths=shorter_runs.names_of_lengths(self.length_of or self.name, self.lengths),
            labels={name: of for name, of in self.labels.items() if name in self.variants},
            by_design=self.by_design,
        )

    @property
    def by_design(self) -> Design:
        """The conditions in which variants differ, with the groups that share them."""
        return designed(
            {n: config.to_dict() for n, config in (self.whole or self).variants.items()}
        )

    def only(self, names: Iterable[str]) -> "Study":
        """Return the study with these variants only. Its baseline and its size stay the same."""
        wanted = list(names)
        problems = [
            Problem("only", f"no variant {name!r}{suggestion(name, self.variants)}")
            for name in wanted
            if name not in self.variants
        ]
        if problems:
            raise ConfigError(problems)
        kept = {name: config for name, config in self.variants.items() if name in wanted}
        return dataclasses.replace(
            self,
            variants=kept,
            families={
                family: left
                for family, names in self.families.items()
                if (left := tuple(name for name in names if name in kept))
            },
            reference=self._reference() if self.match else None,
            whole=self.whole or self,
        )

    def add(self, mechanisms: Mapping[str, MechanismConfig]) -> "Study":
        """Return the study with a variant per mechanism: the baseline with it in every layer.

        Raises ConfigError if a name is taken, or the mechanism does not fit the baseline.
        """
        assert self.baseline is not None
        added, problems = dict[str, RunConfig](), list[Problem]()
        for name, mechanism in mechanisms.items():
            if name in self.variants:
                problems.append(Problem("add", f"the study has a variant {name!r}; choose a name"))
                continue
            try:
                added[name] = self.variants[self.baseline].in_every_layer(mechanism)
            except ConfigError as error:
                problems += [problem.under(f"add.{name}") for problem in error.problems]
        if problems:
            raise ConfigError(problems)
        return dataclasses.replace(self, variants={**self.variants, **added})

    def in_folder(self, folder: Path) -> "Study":
        """Return the study with the relative paths of data that exist in `folder` made absolute."""

        def moved(config: RunConfig) -> RunConfig:
            return dataclasses.replace(config, data=config.data.in_folder(folder))

        variants = {name: moved(config) for name, config in self.variants.items()}
        if variants == self.variants:
            return self
        return dataclasses.replace(
            self, variants=variants, reference=self.reference and moved(self.reference)
        )

    def override(self, assignments: Iterable[str]) -> "Study":
        """Return the study with dotted settings replaced in every variant.

        Fewer `train.steps` shorten the warm-up in proportion, unless `train.warmup_steps` is set,
        too; `notes` says so. On a ladder they are the steps of the longest budget, and those of the
        others keep their ratio to it.

        Raises:
            ConfigError: settings are invalid; a problem of some variants only names them.
        """
        changes = list(assignments)
        of_run = shorter_runs.in_proportion(changes, self.variants if self.ladder else {})
        variants = changed_runs(self.variants, lambda of: override_run(of, of_run(of)))
        notes = shorter_runs.notes_of(self.variants, variants, changes)
        return dataclasses.replace(
            self,
            variants=variants,
            reference=self.reference and override_run(self.reference, changes),
            notes=tuple(dict.fromkeys([*self.notes, *notes])),
        )

    def at_length(self, length: str) -> "Study":
        """Return the study with the settings of one of its `lengths` in every variant.

        If the length changes settings, the study is called `name_length`, with its own folder.
        """
        if length not in self.lengths:
            known = suggestion(length, self.lengths)
            raise ConfigError([Problem("length", f"no length {length!r}{known}")])
        if not (changes := self.lengths[length]):
            return self
        changed = self.override(changes)
        return dataclasses.replace(changed, name=f"{self.name}_{length}", length_of=self.name)

    @property
    def all_seeds(self) -> int:
        """The largest number of seeds that a variant can have."""
        return self.most_seeds or self.seeds

    def _matched(self, config: RunConfig) -> RunConfig:
        reference = self._reference()
        if self.match is None or config == reference:
            return config
        return self.match.solve(config, self._size, self._size(reference))

    def _size(self, config: RunConfig) -> int:
        assert self.match is not None
        model, what = config.model, self.match.what
        if what != "params" and not (model.states_flops if what == "flops" else model.states_cost):
            unknown = {"flops": "FLOPs", "state_bytes": "bytes of state"}[what]
            message = f"the {unknown} of a mechanism are not known: match params"
            raise ConfigError([Problem("match.what", message)])
        return getattr(config.cost(), self.match.what)

    def _reference(self) -> RunConfig:
        assert self.baseline is not None
        return self.reference or self.variants[self.baseline]
