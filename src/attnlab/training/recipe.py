"""Recipes in a study's folder: the settings of a run at a recipe, and the result of a search.

The search itself is `search.decide`. Here are its inputs, read from the runs that have ended, its
result, `tuning/choice.json` of each variant, and the challenge of a result by the verdict's seeds.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnlab.config import ConfigError, Problem, override
from attnlab.record import SEARCH_NOISE, tuning_runs, tuning_seed, write_tuning_choice
from attnlab.training.config import Recipe, Tuning
from attnlab.training.run import RunConfig
from attnlab.training.search import MOST_WARMUP, Search, Start

BESIDE = (0.0, -1.0, 1.0)  # rates of a challenge, in half octaves from the chosen one
CHALLENGED = 0.5  # allowance after a challenge that confirms the rate, relative to the search's
HIDDEN = 0.75  # of the difference between the rates beside: a kink between them hides half of it
CONTESTED = 1.5  # times the allowance: a separation that this much would undo is challenged
EXPECTED_CHALLENGES = 0.04  # of the variants, in simulations with differences
Array = NDArray[np.float64]

BATCH = "train.batch_size"
IN_STEPS = ("steps", "log_every", "eval_every", "checkpoint_every")


def expected_challenge_runs(variants: int, seeds: int) -> int:
    """Return the mean number of runs of challenges in simulations, rounded up.

    >>> expected_challenge_runs(11, seeds=5)
    5
    """
    return math.ceil(EXPECTED_CHALLENGES * variants * (len(BESIDE) - 1) * seeds)


def start_of(config: RunConfig, tuning: Tuning) -> Start:
    """Return the recipe that a variant has in its settings, where its search begins."""
    own = tuple((_short(path), float(_value(config, path))) for path in tuning.settings)
    recipe = Recipe(float(f"{config.train.learning_rate:g}"), config.train.warmup_steps, own)
    steps, starts = config.train.steps, config.train.decay_starts
    return Start(recipe, min(MOST_WARMUP * steps, steps if starts is None else starts))


def at_recipe(config: RunConfig, recipe: Recipe, tuning: Tuning) -> RunConfig:
    """Return a variant's settings at a recipe.

    A run with another batch size has as many steps as reads the same number of tokens, and a
    warm-up, which the recipe counts in steps of the variant's own batch, of as many tokens.
    """
    values, paths = dict(recipe.settings), {_short(path): path for path in tuning.settings}
    changes = [f"{paths[name]}={value:.12g}" for name, value in values.items()]
    changes += [f"train.learning_rate={recipe.learning_rate:g}"]
    changes += [f"train.warmup_steps={recipe.warmup_steps}"]
    if BATCH in paths.values() and (batch := values[_short(BATCH)]) != config.train.batch_size:
        ratio = config.train.batch_size / batch
        given = {name: getattr(config.train, name) for name in IN_STEPS}
        steps = {name: value for name, value in given.items() if value is not None}
        steps["warmup_steps"] = recipe.warmup_steps
        changes += [f"train.{name}={max(1, round(n * ratio))}" for name, n in steps.items()]
    return override(config, changes)


def tuning_problems(variants: Mapping[str, RunConfig], tuning: Tuning) -> Iterator[Problem]:
    """Yield the declared settings that a variant lacks, and values that it cannot have."""
    found = dict[Problem, None]()
    for config in variants.values():
        for path, values in tuning.settings.items():
            at, value = f"tuning.settings.{path}", _value(config, path)
            if isinstance(value, bool) or not isinstance(value, int | float):
                found[Problem(at, "is not a number among the settings of every variant")] = None
                continue
            own = start_of(config, dataclasses.replace(tuning, settings={path: values})).recipe
            for each in values:
                recipe = own._replace(settings=((_short(path), each),))
                try:
                    at_recipe(config, recipe, dataclasses.replace(tuning, settings={path: values}))
                except ConfigError as error:
                    found |= {Problem(at, f"{each:g}: {p.message}"): None for p in error.problems}
    yield from found


@dataclass(frozen=True, kw_only=True)
class Challenge:
    """The verdict's runs of one variant at the rates beside its own."""

    recipes: tuple[Recipe, ...]  # the chosen one first
    losses: Mapping[Recipe, Mapping[int, float | None]]  # validation, by seed; None: diverged

    @classmethod
    def of(cls, chosen: Recipe) -> tuple[Recipe, ...]:
        """Return the recipes of a challenge, the chosen one first."""
        rates = [chosen.learning_rate * 2 ** (step / 2) for step in BESIDE]
        return tuple(chosen._replace(learning_rate=float(f"{rate:g}")) for rate in rates)

    def by_seed(self) -> dict[int, Recipe]:
        """Return for each seed the recipe that the other seeds choose."""
        seeds, losses_RS = sorted(self.losses[self.recipes[0]]), self._losses_RS
        chosen = cross_fit(losses_RS)
        return {seed: self.recipes[int(r)] for seed, r in zip(seeds, chosen, strict=True)}

    @property
    def confirms(self) -> bool:
        """True if all seeds together choose the first rate."""
        return bool(confirms(self._losses_RS))

    def allowance(self, searched: float) -> float:
        """Return the allowance (nats/token) after the challenge, from that of the search."""
        return float(allowance_after(np.array(searched), self._losses_RS))

    @property
    def _losses_RS(self) -> Array:
        seeds = sorted(self.losses[self.recipes[0]])
        return np.array([[_or_infinity(self.losses[r][s]) for s in seeds] for r in self.recipes])


def to_challenge(difference_VV: Array, half_VV: Array, allowance_V: Array) -> NDArray[np.bool_]:
    """Return which variants are trained again at rates beside their own.

    These are the variants whose separation from the best one hangs on their tuning: they are
    separated with the smaller allowance after a challenge, and are not with 1.5 times their own.

    Args:
        difference_VV: mean of one variant (row) minus that of another (column), nats/token.
        half_VV: half widths of their intervals.
        allowance_V: what each variant's search may have missed, by shape and by noise. Leading axes
            are separate studies.
    """
    best_1 = difference_VV.mean(-1).argmin(-1)[..., None, None]
    behind_V = np.take_along_axis(difference_VV, best_1, -1)[..., 0]
    half_V = np.take_along_axis(half_VV, best_1, -1)[..., 0]
    low_V, high_V = (np.hypot(half_V, k * allowance_V) for k in (CHALLENGED, CONTESTED))
    return (behind_V > low_V) & (behind_V <= high_V) & np.isfinite(allowance_V)


def cross_fit(losses_RS: Array) -> NDArray[np.intp]:
    """Return for each seed the index of the rate that all other seeds choose.

    A seed thus has no part in the choice of its own rate, and its loss there no bias of selection.

    Args:
        losses_RS: validation loss by rate and seed; leading axes are separate variants.
    """
    finite_RS = np.where(np.isfinite(losses_RS), losses_RS, 1e6)  # so that inf - inf is no number
    others_RS = finite_RS.sum(-1, keepdims=True) - finite_RS
    return others_RS.argmin(-2)


def confirms(losses_RS: Array) -> NDArray[np.bool_]:
    """Return whether all seeds together choose the first rate, between the two others.

    If they choose one of those, the best rate may lie beyond it; beside one that diverged, before
    it. Leading axes are separate variants, as everywhere here.
    """
    mean_R = losses_RS.mean(-1)
    return (mean_R.argmin(-1) == 0) & np.isfinite(mean_R).all(-1)


def allowance_after(searched: Array, losses_RS: Array) -> Array:
    """Return the loss (nats/token) that the curve's shape can hide after a challenge.

    Where it confirms the rate, that is half of what it was after the search, and not less than what
    a kink between the rates beside can hide.

    Args:
        searched: the allowance of the search, nats/token.
        losses_RS: validation loss by rate and seed.
    """
    mean_R = losses_RS.mean(-1)
    finite_R = np.where(np.isfinite(mean_R), mean_R, 0.0)
    kink = HIDDEN * np.abs(finite_R[..., 1] - finite_R[..., 2])
    return np.where(confirms(losses_RS), np.maximum(CHALLENGED * searched, kink), searched)


@dataclass(frozen=True, kw_only=True)
class TuningResult:
    """The result of the search for one variant's recipe."""

    variant: str
    search: Search
    challenge: Challenge | None = None
    error: str | None = None  # the reason why a recipe could not be tried
    carried_from: tuple[str, ...] = ()  # variants; empty: it was searched
    exponent: float | None = None  # q of `training.carried`; None: it was searched
    own_rate: float | None = None  # in the settings, of a variant of a ladder

    @property
    def failure(self) -> str | None:
        """The reason why the variant cannot be trained; None if it can."""
        if self.error is not None:
            return f"no recipe was found for it: {self.error}"
        if self.search.recipe is None:
            tried = ", ".join(f"{rate:g}" for rate in self.rates())
            return f"it diverged at every learning rate that was tried: {tried}"
        return None

    @property
    def allowance(self) -> float | None:
        """The loss (nats/token) that the curve's shape can hide; None if that has no bound."""
        found = self.search.allowance
        found = found if self.challenge is None else self.challenge.allowance(found)
        return found if math.isfinite(found) else None

    @property
    def search_noise(self) -> float:
        """Standard deviations of a run by which noise misleads the search."""
        confirmed = self.challenge is not None and self.challenge.confirms
        return SEARCH_NOISE * (CHALLENGED if confirmed else 1.0)

    def rates(self) -> list[float]:
        """Return the learning rates that were tried, ascending."""
        return sorted({recipe.learning_rate for recipe in self.search.tried})

    def to_json(self) -> dict[str, Any]:
        """Return the content of `choice.json`; losses in nats/token, null for a diverged run."""
        recipe, challenge = self.search.recipe, self.challenge
        of_ladder = {
            "own_learning_rate": self.own_rate,
            "carried_from": list(self.carried_from) or None,
            "exponent": self.exponent,
        }
        tried = sorted(self.search.tried.items())
        return {
            "learning_rate": recipe and recipe.learning_rate,
            "warmup_steps": recipe and recipe.warmup_steps,
            "settings": dict(recipe.settings) if recipe else {},
            "recipe": recipe and recipe.name,
            **self.search.shared._asdict(),
            "bracketed": self.search.bracketed,
            "allowance": self.allowance if self.failure is None else None,
            "search_noise": self.search_noise,
            "losses": {tried.name: _or_none(loss) for tried, loss in tried},
            "seed": tuning_seed(self.variant),
            "challenge": challenge
            and {
                "losses": {
                    tried.name: {str(seed): loss for seed, loss in challenge.losses[tried].items()}
                    for tried in challenge.recipes
                },
                "recipe_by_seed": {str(s): tried.name for s, tried in challenge.by_seed().items()},
            },
            "failure": self.failure,
        } | {name: value for name, value in of_ladder.items() if value is not None}

    def write(self, study_dir: Path) -> None:
        """Write `tuning/choice.json` in the variant's folder."""
        write_tuning_choice(study_dir, self.variant, self.to_json())


def tuning_losses(study_dir: Path, variant: str) -> dict[Recipe, float | None]:
    """Return the validation loss (nats/token) by recipe of the tuning runs that have ended.

    None: the run diverged. Left out are failed and damaged runs, and those of older searches.
    """
    found = dict[Recipe, float | None]()
    for folder in tuning_runs(study_dir, variant):
        recipe = Recipe.parse(folder.recipe or "")
        if recipe is None or folder.seed != tuning_seed(variant):
            continue
        if (summary := folder.ended_summary()) is not None:
            finished = summary["status"] == "finished"
            found[recipe] = summary.get("final_loss") if finished else None
    return found


def _short(path: str) -> str:
    return path.rpartition(".")[2]


def _value(config: RunConfig, path: str) -> Any:
    value: Any = config.to_dict()
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _or_infinity(loss: float | None) -> float:
    return math.inf if loss is None or not math.isfinite(loss) else loss


def _or_none(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None
