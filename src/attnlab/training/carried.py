"""Recipes carried along a ladder: to the variants of a family from those that were searched.

    rate = own rate x m       log m = a + q log(L D^2)       |q| <= 1/2

The own rate is the one in a variant's settings; m is by how much the search changed it. a and q are
fitted by least squares to the searched variants of the family: with two sizes the line goes through
both optima, unless q is clipped. Layers L and width D are those of the variant. Own rates fall as
1/width (`RunConfig.with_size`), so that rates change between about the power 0 and -1 of L D^2, the
number of parameters outside the embedding. The training length does not change m: published
exponents of the best rate in the number of tokens differ in sign (Bjorck et al. 2024,
arXiv:2409.19913: -0.3; Li et al. 2025, arXiv:2503.04715: +0.3).

The warm-up is the own one times the factor that the search chose; further settings are those of the
nearest searched size. A search is credited with a miss of a quarter of an octave, a carried rate
with half an octave: four times the allowance on the same parabola.
"""

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from attnlab.record import Rung
from attnlab.training.config import Recipe
from attnlab.training.recipe import TuningResult
from attnlab.training.run import RunConfig
from attnlab.training.search import LONGER, Search

MOST_EXPONENT = 0.5  # of the correction, in L D^2
ALLOWANCE = 4.0  # of a carried recipe, relative to the searched ones


def sources_of(
    variants: Collection[str], ladder: Mapping[str, Rung], searched: Collection[str]
) -> dict[str, tuple[str, ...]]:
    """Return the variants that carry their recipe, each with the searched ones of its family.

    A variant whose family has no searched variant among `variants` is none of them.
    """
    families = dict[str, tuple[str, ...]]()
    for name in searched:
        if name in variants and name in ladder:
            family = ladder[name].family
            families[family] = (*families.get(family, ()), name)
    return {
        name: families[ladder[name].family]
        for name in variants
        if name in ladder and name not in searched and ladder[name].family in families
    }


def carried(
    variants: Mapping[str, RunConfig],
    sources: Mapping[str, Sequence[str]],
    results: Mapping[str, TuningResult],
) -> dict[str, TuningResult]:
    """Return the recipes that follow from the searches that have ended, by variant.

    Args:
        variants: the settings of all variants, before the searches.
        sources: the searched variants that each variant carries its recipe from.
        results: the results of searches; a variant waits until all of its sources have one.
    """
    ended = {name: of for name, of in sources.items() if all(source in results for source in of)}
    return {name: _carried(name, of, variants, results) for name, of in ended.items()}


def _carried(
    name: str,
    sources: Sequence[str],
    variants: Mapping[str, RunConfig],
    results: Mapping[str, TuningResult],
) -> TuningResult:
    searches = [(variants[source], results[source].search) for source in sources]
    known = [(config, search) for config, search in searches if search.recipe is not None]
    if not known:
        return TuningResult(
            variant=name,
            search=Search(),
            error=f"{' and '.join(sources)}, whose recipe it carries, found none",
        )
    from_ = tuple(source for source in sources if results[source].search.recipe is not None)
    search, q = carry(variants[name], known)
    return TuningResult(variant=name, search=search, carried_from=from_, exponent=q)


def carry(config: RunConfig, sources: Sequence[tuple[RunConfig, Search]]) -> tuple[Search, float]:
    """Return the recipe of a variant, carried from searched ones of its family, and q.

    Args:
        config: the settings of the variant.
        sources: settings before the search, and the search, of each searched variant with a recipe;
            at least one.
    """
    found = [(of, search, search.recipe) for of, search in sources]
    points = [
        (_log_size(source), math.log(recipe.learning_rate / source.train.learning_rate))
        for source, _, recipe in found
        if recipe is not None
    ]
    assert len(points) == len(found) > 0, "only recipes that were found are carried"
    x, y = np.array(points).T
    at, q = _log_size(config), exponent(points)
    log_m = float(y.mean() + q * (at - x.mean()))
    _, nearest, recipe = found[int(np.abs(x - at).argmin())]
    assert recipe is not None
    search = Search(
        ended=True,
        recipe=Recipe(
            float(f"{config.train.learning_rate * math.exp(log_m):g}"),
            config.train.warmup_steps * LONGER**nearest.shared.warmup_level,
            recipe.settings,
        ),
        shared=nearest.shared,
        bracketed=all(search.bracketed for _, search, _ in found),
        allowance=ALLOWANCE * max(search.allowance for _, search, _ in found),
    )
    return search, q


def exponent(points: list[tuple[float, float]]) -> float:
    """Return q, the clipped slope of log m in log(L D^2); 0 if only one size was searched.

    >>> exponent([(0.0, 0.0), (2.0, 0.5)]), exponent([(0.0, 0.0), (1.0, -3.0)])
    (0.25, -0.5)
    """
    x, y = np.array(points).T
    away = x - x.mean()
    if not (square := float(away @ away)) > 1e-12:
        return 0.0
    return float(np.clip(away @ y / square, -MOST_EXPONENT, MOST_EXPONENT))


def _log_size(config: RunConfig) -> float:
    return math.log(config.model.n_layers * config.model.d_model**2)
