"""Decisions of a study: the recipes to try, the chosen ones and the challenges.

They are functions of the outcomes of runs, wherever the study was interrupted. `Outcomes` reads
them from the run folders; `decisions` is the one place that says which runs follow.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Literal, NamedTuple

from attnlab.analysis.fairness import compared_groups
from attnlab.analysis.statistics.comparisons import ERROR, compare
from attnlab.analysis.statistics.seeds import seeds_needed
from attnlab.record import (
    SEARCH_NOISE,
    RunFolder,
    RunKey,
    StudyRecord,
    read_tuning_choice,
    tuning_runs,
)
from attnlab.study.study import Study
from attnlab.training.carried import carried
from attnlab.training.config import Recipe
from attnlab.training.recipe import Challenge, TuningResult, start_of, to_challenge, tuning_losses
from attnlab.training.run import Run
from attnlab.training.search import Search, Shared, decide

Stage = Literal["tuning", "verdict", "challenge", "ahead"]  # "ahead": it may turn out not needed
BySeed = dict[int, float | None]  # validation loss, nats/token; None: diverged


class Wanted(NamedTuple):
    """A run that a study needs."""

    stage: Stage
    variant: str
    seed: int | None  # None: the variant's tuning seed
    recipe: Recipe | None  # None: the variant's own settings


class RunCount(NamedTuple):
    """Numbers of runs."""

    done: int
    at_least: int  # in total, those that are done included
    expected: int
    at_most: int  # larger than `at_least` while recipes are searched

    @classmethod
    def exactly(cls, done: int, total: int) -> "RunCount":
        """Return a count that is known."""
        return cls(done, total, total, total)

    @classmethod
    def total(cls, counts: Iterable["RunCount"]) -> "RunCount":
        """Return the sum of counts."""
        return cls(*map(sum, zip(cls(0, 0, 0, 0), *counts, strict=True)))

    def left(self) -> tuple[int, int, int]:
        """Return the smallest, the expected and the largest number of runs that remain."""
        return self.at_least - self.done, self.expected - self.done, self.at_most - self.done


@dataclass(kw_only=True)
class Outcomes:
    """The outcomes of the runs that have ended, by variant."""

    tuning: dict[str, dict[Recipe, float | None]]
    verdict: dict[str, BySeed]
    challenge: dict[str, dict[str, BySeed]]  # by name of the recipe
    errors: dict[str, str] = field(default_factory=dict[str, str])  # of runs that tuned a variant
    failed: set[tuple[str, str | None, int]] = field(
        default_factory=set[tuple[str, str | None, int]]
    )  # ^ variant, recipe and seed; an exception ended them, and a later command tries again
    shared: Shared | None = None  # what recipes that were chosen share; None: none was
    failed_before: set[RunKey] = field(default_factory=set[RunKey])  # they are tried again

    @classmethod
    def read(cls, study: Study, study_dir: Path) -> "Outcomes":
        """Read the outcomes from the run folders."""
        names = study.variants
        found = cls(
            tuning={name: tuning_losses(study_dir, name) for name in names},
            verdict={name: {} for name in names},
            challenge={name: {} for name in names},
        )
        for name in names:
            folders = [RunFolder(study_dir, name, seed) for seed in range(study.all_seeds)]
            for folder in [*folders, *tuning_runs(study_dir, name)]:
                if folder.seed < study.all_seeds:
                    found._add(folder)
                if not folder.ended.is_dir() and folder.status() == "failed":
                    found.failed_before.add(folder.key)
        record = StudyRecord.find(study_dir)
        known = {*names, *(record.variants if record else ())}
        chosen = [read_tuning_choice(study_dir, name) for name in known]
        shared = [
            Shared(choice["warmup_level"], choice.get("noise", 0.0))
            for choice in chosen
            if choice.get("recipe") and "warmup_level" in choice
        ]
        found.shared = max(shared, default=None)
        return found

    def add(self, run: Run, study_dir: Path) -> None:
        """Add the outcome of a run that has just ended, whatever it is."""
        folder = run.folder(study_dir)
        summary = {} if folder.damage() else folder.summary() or {}
        if summary.get("status") not in ("finished", "diverged"):
            self.failed.add((run.variant, run.recipe, run.seed))
            if run.tunes:
                reason = summary.get("reason") or "its outcome could not be written"
                rate = run.config.train.learning_rate
                self.errors.setdefault(run.variant, f"at {rate:g}: {reason}")
        elif run.tunes:
            recipe = Recipe.parse(run.recipe or "")
            assert recipe is not None
            self.tuning[run.variant][recipe] = _loss(summary)
        else:
            self._add(folder)

    def ended(self, variant: str, recipe: str | None, seed: int) -> bool:
        """Return True if a run for the verdict or of a challenge has ended, or failed just now."""
        done = self.verdict[variant] if recipe is None else self.challenge[variant].get(recipe, {})
        return seed in done or (variant, recipe, seed) in self.failed

    def ended_in_the_meantime(self, folder: RunFolder) -> bool:
        """Return True if another process has ended or failed a run that was to be run."""
        status = folder.status()
        failed = status == "failed" and folder.key not in self.failed_before
        return failed or status in ("finished", "diverged")

    def _add(self, folder: RunFolder) -> None:
        if (summary := folder.ended_summary()) is not None:
            by_seed = self.verdict[folder.variant]
            if folder.recipe is not None:
                by_seed = self.challenge[folder.variant].setdefault(folder.recipe, {})
            by_seed[folder.seed] = _loss(summary)


class Decisions(NamedTuple):
    """The results of searches, and the runs that follow."""

    results: Mapping[str, TuningResult]  # of the searches that have ended
    wanted: list[Wanted]  # runs that have not ended, each once
    seeds: Mapping[str, int]  # of each variant, as far as the verdict's runs tell


def decisions(study: Study, outcomes: Outcomes) -> Decisions:
    """Return the recipes that are chosen, and the runs that remain as far as they are known."""
    if study.tuning is None:
        seeds = _seeds(study, outcomes, {}, study.variants)
        wanted = _verdict(outcomes, dict.fromkeys(study.variants), seeds)
        return Decisions({}, wanted, seeds)
    sources = study.sources()
    searched = study.variants.keys() - sources.keys() - outcomes.errors.keys()
    starts = {n: start_of(of, study.tuning) for n, of in study.variants.items() if n in searched}
    searches = decide(
        study.tuning,
        starts,
        outcomes.tuning,
        margin=study.margin,
        shared=outcomes.shared,
    )
    wanted = list[Wanted]()
    for name, search in searches.items():
        wanted += [Wanted("tuning", name, None, recipe) for recipe in search.needs]
        wanted += [Wanted("ahead", name, None, recipe) for recipe in search.may_need]
    results = {
        name: TuningResult(variant=name, search=Search(), error=error)
        for name, error in outcomes.errors.items()
    }
    for name, search in searches.items():
        if search.ended:
            results[name] = TuningResult(variant=name, search=search)
    results |= carried(study.variants, sources, results)
    recipes = {n: found.search.recipe for n, found in results.items() if found.search.recipe}
    seeds = _seeds(study, outcomes, results, recipes)
    verdict = _verdict(outcomes, recipes, seeds)
    wanted += verdict
    for name in _challenged(study, outcomes, results, recipes, decided=not verdict):
        challenge = _challenge(outcomes, name, recipes[name], seeds[name])
        if isinstance(challenge, Challenge):
            results[name] = replace(results[name], challenge=challenge)
        else:
            wanted += challenge
    ended = {
        name: replace(
            results[name], own_rate=of.train.learning_rate if name in study.ladder else None
        )
        for name, of in study.variants.items()
        if name in results
    }
    return Decisions(ended, wanted, seeds)


def _verdict(
    outcomes: Outcomes, recipes: Mapping[str, Recipe | None], seeds: Mapping[str, int]
) -> list[Wanted]:
    return [
        Wanted("verdict", name, seed, recipe)
        for seed in range(max(seeds.values()))
        for name, recipe in recipes.items()
        if seed < seeds[name] and not outcomes.ended(name, None, seed)
    ]


def _seeds(
    study: Study,
    outcomes: Outcomes,
    results: Mapping[str, TuningResult],
    trained: Iterable[str],
) -> dict[str, int]:
    """Return the number of seeds of each variant: more than `seeds` where its verdict is open.

    Validation losses decide it, when all searches have ended.
    """
    seeds = dict.fromkeys(study.variants, study.seeds)
    searched = study.tuning is None or len(results) == len(study.variants)
    if study.most_seeds is None or not searched:
        return seeds
    ended = {n: next(s for s in count() if not outcomes.ended(n, None, s)) for n in trained}
    tuned = {name: results[name].search.allowance for name in ended if name in results}
    for group, baseline, among in compared_groups(study.cells(), ended, study.by_design):
        seeds |= seeds_needed(
            {name: _finite(outcomes.verdict[name]) for name in group},
            {name: ended[name] for name in group},
            first=study.seeds,
            most=study.most_seeds,
            baseline=baseline,
            allowance=tuned,
            search_noise=dict.fromkeys(tuned, SEARCH_NOISE),
            margin=study.margin,
            among=among,
        )
    return seeds


def _challenged(
    study: Study,
    outcomes: Outcomes,
    results: Mapping[str, TuningResult],
    recipes: Mapping[str, Recipe | None],
    *,
    decided: bool,
) -> list[str]:
    """Return the variants that are challenged: those that were before, and those that may lose.

    Whether a variant may lose is `decided` by validation losses, when all runs have ended.
    """
    if study.tuning is None or not study.tuning.challenge or study.seeds < 2:
        return []
    chosen = dict.fromkeys(name for name in recipes if outcomes.challenge[name])
    if len(results) < len(study.variants) or not decided:
        return list(chosen)
    for group, _, among in compared_groups(study.cells(), recipes, study.by_design):
        losses = {name: _finite(outcomes.verdict[name]) for name in group}
        losses = {name: by_seed for name, by_seed in losses.items() if len(by_seed) > 1}
        if len(losses) < 2:
            continue
        compared = compare(
            losses,
            allowance={name: results[name].search.allowance for name in losses},
            search_noise=dict.fromkeys(losses, SEARCH_NOISE),
            margin=study.margin,
            level=ERROR / among,
        )
        difference_VV, half_VV = compared.noise.difference_VV, compared.half_VV
        may_lose = to_challenge(difference_VV, half_VV, compared.allowance_V)
        chosen |= {name: None for name, loses in zip(losses, may_lose, strict=True) if loses}
    return list(chosen)


def _challenge(
    outcomes: Outcomes, name: str, chosen: Recipe | None, n_seeds: int
) -> Challenge | list[Wanted]:
    """Return the challenge of one variant if all of its runs have ended, else those that remain."""
    assert chosen is not None
    own, *others = recipes = Challenge.of(chosen)
    left = [
        Wanted("challenge", name, seed, recipe)
        for seed in range(n_seeds)
        for recipe in others
        if not outcomes.ended(name, recipe.name, seed)
    ]
    seeds = set(outcomes.verdict[name])
    losses = {recipe: outcomes.challenge[name].get(recipe.name, {}) for recipe in others}
    losses = {own: outcomes.verdict[name], **losses}
    if left or len(seeds) < 2 or any(set(by_seed) != seeds for by_seed in losses.values()):
        return left
    return Challenge(recipes=recipes, losses=losses)


def _finite(by_seed: BySeed) -> dict[int, float]:
    return {s: loss for s, loss in by_seed.items() if loss is not None and math.isfinite(loss)}


def _loss(summary: Mapping[str, object]) -> float | None:
    loss = summary.get("final_loss") if summary["status"] == "finished" else None
    return loss if isinstance(loss, float | int) else None
