"""The recipe of each variant and the sensitivity of its loss to the learning rate.

    loss(rate) = best + curvature * log2(rate / best rate)^2

fitted through the best rate that was tried and its two neighbours: a parabola in the logarithm of
the rate. They are runs with the chosen warm-up and the other chosen settings.

On a ladder, the searched rates of a family are carried to its other variants (`training.carried`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import numpy as np

from attnlab.analysis.sentences import several
from attnlab.analysis.table import Table, Variant
from attnlab.record import (
    SEARCH_NOISE,
    TUNING_SEED,
    RunFolder,
    Rung,
    rate_of,
    read_tuning_choice,
    tuning_runs,
)


@dataclass(frozen=True, kw_only=True)
class RateCurve:
    """The recipe of one variant, and its validation loss against the peak learning rate."""

    rates: tuple[float, ...]  # ascending, those tried with the chosen warm-up and settings
    losses: tuple[float | None, ...]  # nats/token; None if it diverged
    chosen: float  # the best of `rates`, or the vertex of the parabola between two of them
    interior: bool  # the optimum is bracketed: a lower and a higher rate were no better
    curvature: float | None  # nats/token per squared factor of 2; None without a minimum
    within_factor_2: float | None  # loss increase at 2x the rate or half of it, nats/token
    warmup_steps: int | None = None
    settings: Mapping[str, float] = field(default_factory=dict[str, float])  # further tuned ones
    allowance: float | None = None  # nats/token that the search can have missed; None: no bound
    runs: int = 0  # that searched the recipe, with all warm-ups and settings
    challenged: Literal["no", "unfinished", "yes"] = "no"
    # ^ "yes": each seed has the rate, of three, that the other seeds chose


def rate_curves(table: Table) -> dict[str, RateCurve]:
    """Return the curve of each variant whose recipe was searched, as far as that has come."""
    curves = {variant.name: _curve(variant) for variant in table.variants}
    return {name: curve for name, curve in curves.items() if curve is not None}


def _choice(variant: Variant) -> Mapping[str, Any]:
    return read_tuning_choice(variant.folder.parent, unquote(variant.folder.name))


def _curve(variant: Variant) -> RateCurve | None:
    choice = _choice(variant)
    warmup_steps = choice.get("warmup_steps")
    losses = _losses(variant.folder, choice)
    worth = {rate: loss for rate, loss in losses.items() if loss is not None}
    if not worth:
        return None
    used = choice.get("learning_rate") or variant.config.get("train", {}).get("learning_rate")
    best = used if used in worth else min(worth, key=lambda rate: worth[rate])
    rates = list(losses)
    place = rates.index(best)
    around = rates[max(0, place - 1) : place + 2]
    beside = [losses[rate] for rate in around if rate != best]
    fitted = _parabola({rate: worth[rate] for rate in around if rate in worth})
    chosen = best if used is None or warmup_steps is None else used
    return RateCurve(
        rates=tuple(rates),
        losses=tuple(losses.values()),
        chosen=chosen,
        interior=len(beside) == 2 and all(x is None or x >= worth[best] for x in beside),
        curvature=None if fitted is None else fitted[0],
        within_factor_2=None if fitted is None else _rise(fitted, math.log2(chosen)),
        warmup_steps=warmup_steps,
        settings=choice.get("settings") or {},
        allowance=choice.get("allowance"),
        runs=len(choice.get("losses") or losses),
        challenged=_challenged(variant.folder, choice),
    )


def _losses(folder: Path, choice: Mapping[str, Any]) -> dict[float, float | None]:
    """Return the loss by rate, ascending, of runs that finished or diverged (None).

    With a chosen recipe, these are the runs that differ from it in the rate alone.
    """
    _, _, rest = (choice.get("recipe") or "").partition(",")
    found: dict[float, float | None] = {}
    for run in _tuning_runs(folder):
        summary, recipe = run.ended_summary(), run.recipe or ""
        if run.seed < TUNING_SEED or (rest and recipe.partition(",")[2] != rest):
            continue
        if summary is not None:
            finished = summary["status"] == "finished"
            found[rate_of(recipe)] = summary.get("final_loss") if finished else None
    return found


def _challenged(folder: Path, choice: Mapping[str, Any]) -> Literal["no", "unfinished", "yes"]:
    if choice.get("challenge") is not None:
        return "yes"
    return "unfinished" if any(run.seed < TUNING_SEED for run in _tuning_runs(folder)) else "no"


def _tuning_runs(folder: Path) -> list[RunFolder]:
    return tuning_runs(folder.parent, unquote(folder.name))


def _parabola(points: Mapping[float, float]) -> tuple[float, float] | None:
    """Return `(a, b)` of a x^2 + b x + c, x = log2(rate), through 3 points; None for a <= 0."""
    if len(points) != 3:
        return None
    a, b, _ = np.polyfit([math.log2(rate) for rate in points], list(points.values()), 2)
    return (float(a), float(b)) if a > 0 else None


def _rise(fitted: tuple[float, float], x: float) -> float:
    """Return the increase of the parabola at a factor of 2 in the rate, on the steeper side."""
    a, b = fitted
    return a + abs(2 * a * x + b)


@dataclass(frozen=True, kw_only=True)
class LadderRate:
    """A peak learning rate of one family of a ladder at one size."""

    family: str
    size: str
    budgets: tuple[str, ...]  # training lengths that have it
    searched: tuple[str, ...]  # those at which it was searched; empty: it was carried
    rate: float
    own: float  # rate in the settings, before the searches
    exponent: float | None  # q of the family; None if nothing was carried, or from other folders
    plain: float | None  # rate if q were 0: the own one times the mean factor of the searches

    @property
    def factor(self) -> float:
        """m: the rate relative to the own one."""
        return self.rate / self.own

    @property
    def correction(self) -> float | None:
        """The rate relative to the one if q were 0."""
        return None if self.plain is None else self.rate / self.plain


def ladder_rates(table: Table) -> tuple[LadderRate, ...]:
    """Return the rates of a ladder, by family and size; empty where none was searched."""
    rungs = table.study.rungs
    choices = {variant.name: _choice(variant) for variant in table.variants}
    known = {
        name: choice
        for name, choice in choices.items()
        if name in rungs and choice.get("learning_rate") and choice.get("own_learning_rate")
    }
    places = dict[tuple[str, str, str], list[str]]()
    for name, choice in known.items():
        rate = f"{choice['learning_rate']:.3g}"
        places.setdefault((rungs[name].family, rungs[name].size, rate), []).append(name)
    laws = {family: _law(family, rungs, known) for family, _, _ in places}
    found = list[LadderRate]()
    for (family, size, _), names in places.items():
        of, law = known[names[0]], laws[family]
        found.append(
            LadderRate(
                family=family,
                size=size,
                budgets=tuple(rungs[name].budget for name in names),
                searched=tuple(rungs[n].budget for n in names if "exponent" not in known[n]),
                rate=of["learning_rate"],
                own=of["own_learning_rate"],
                exponent=law and law[0],
                plain=law and of["own_learning_rate"] * law[1],
            )
        )
    order = [list(dict.fromkeys(rung[i] for rung in rungs.values())) for i in (0, 1)]
    return tuple(sorted(found, key=lambda it: (order[0].index(it.family), order[1].index(it.size))))


def _law(
    family: str, rungs: Mapping[str, Rung], known: Mapping[str, Mapping[str, Any]]
) -> tuple[float, float] | None:
    """Return q of a family and the mean factor of its searches; None if either is unknown."""
    carried = [c for name, c in known.items() if rungs[name].family == family and "exponent" in c]
    sources = dict.fromkeys(source for choice in carried for source in choice["carried_from"])
    if not sources or not known.keys() >= sources.keys():
        return None
    factors = [known[n]["learning_rate"] / known[n]["own_learning_rate"] for n in sources]
    return carried[0]["exponent"], math.prod(factors) ** (1 / len(factors))


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The tuning of the variants that are compared, and the losses that it may have missed."""

    allowance: Mapping[str, float]  # nats/token by variant; infinite: the search found no bound
    search_noise: Mapping[str, float]  # standard deviations of a run by variant, to be added
    derived: tuple[str, ...]  # allowances derived from a grid of rates, by `_half_step`
    unknown: tuple[str, ...]  # tuned, but without an estimate of what tuning may have missed
    untuned: tuple[str, ...]  # compared at the recipe of the study
    carried: Mapping[str, tuple[str, ...]]  # variants whose recipe was carried: from which

    @property
    def at_recipe(self) -> bool:
        """True if no variant was tuned: a comparison then holds at this recipe."""
        return not (self.allowance or self.unknown)

    @staticmethod
    def of_functions(
        values: Mapping[str, float], functions: Sequence[Sequence[str]]
    ) -> dict[str, float]:
        """Return the largest value among the names of each function, by its first name.

        0 for a name without any.
        """
        return {names[0]: max(values.get(name, 0.0) for name in names) for names in functions}


def tuning_of(table: Table, names: Sequence[str]) -> Tuning:
    """Return how the named variants were tuned."""
    allowance, noise = dict[str, float](), dict[str, float]()
    derived, unknown, untuned = list[str](), list[str](), list[str]()
    carried = dict[str, tuple[str, ...]]()
    for variant in table.variants:
        name = variant.name
        if name not in names:
            continue
        choice = _choice(variant)
        if sources := choice.get("carried_from"):
            carried[name] = tuple(sources)
        if "allowance" in choice:
            bound = choice["allowance"]
            allowance[name] = math.inf if bound is None else float(bound)
            noise[name] = float(choice.get("search_noise", SEARCH_NOISE))
        elif (curve := _curve(variant)) is None:
            untuned.append(name)
        elif (missed := _half_step(curve)) is None:
            unknown.append(name)
        else:
            allowance[name], noise[name] = missed, SEARCH_NOISE
            derived.append(name)
    return Tuning(
        allowance=allowance,
        search_noise=noise,
        derived=tuple(derived),
        unknown=tuple(unknown),
        untuned=tuple(untuned),
        carried=carried,
    )


def how_rates_were_chosen(
    curves: Mapping[str, RateCurve], tuning: Tuning, variants: Sequence[str]
) -> str:
    """Return how the learning rates of variants were chosen, in words.

    Args:
        curves: of the variants whose recipe was searched.
        tuning: of the variants that are compared.
        variants: all that were started.
    """
    if not curves and not tuning.carried:
        return "not tuned: each variant trained with the rate in its settings"
    said = list[str]()
    if curves:
        said.append(f"tuned for {len(curves)} variants on the validation split")
    if tuning.carried:
        sources = dict.fromkeys(source for of in tuning.carried.values() for source in of)
        said.append(
            f"carried along the ladder for {len(tuning.carried)} variants, from the searches of "
            f"{several(list(sources))}"
        )
    if untuned := [n for n in variants if n not in curves and n not in tuning.carried]:
        said[-1] += f", not for {', '.join(untuned)}"
    if edge := [name for name, curve in curves.items() if not curve.interior]:
        said.append(f"optimum not bracketed for {', '.join(edge)}")
    elif curves:
        said.append("optimum bracketed for all")
    return "; ".join(said)


def _half_step(curve: RateCurve) -> float | None:
    """Return the rise of the parabola half a step of the grid from its vertex, in nats/token.

    None if the best rate is not bracketed, or its neighbours show no minimum.
    """
    if curve.curvature is None or not curve.interior:
        return None
    place = curve.rates.index(curve.chosen)
    steps = [abs(math.log2(curve.rates[i] / curve.chosen)) for i in (place - 1, place + 1)]
    return curve.curvature * (max(steps) / 2) ** 2
