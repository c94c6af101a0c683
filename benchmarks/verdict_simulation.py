"""Simulate whole studies, search included, on curves of loss against learning rate that are known.

    python benchmarks/verdict_simulation.py --studies 2000

A world draws, for each variant, a curve with its own best rate, and noise per run. Each simulated
study searches the recipes, trains the verdict's seeds at them and publishes orders of variants,
with the functions that attnlab itself uses. Beside it stand the search of an octave grid without an
allowance, and an oracle that knows the best recipes. Losses are in nats/token; a position x counts
half octaves from the first rate of the grid.

Shapes: R studies, V variants, S seeds, L warm-up levels, X positions.
"""

import argparse
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from attnlab.analysis.statistics.comparisons import ERROR, compare
from attnlab.analysis.statistics.noise import missed_by_search
from attnlab.record import SEARCH_NOISE
from attnlab.training.config import Recipe, Tuning
from attnlab.training.recipe import (
    BESIDE,
    CHALLENGED,
    allowance_after,
    confirms,
    cross_fit,
    to_challenge,
)
from attnlab.training.search import Start, decide

Array = NDArray[np.float64]
MARGIN = 0.01
FIRST, LAST = -40, 40  # positions that a search can reach
LEVELS = 2  # warm-ups: the variant's own, and three times as long
FAR_BELOW = (-21.0, -6.0)  # up to five octaves below the lowest rate that is reached in octaves
FAR_ABOVE = (8.0, 20.0)  # up to seven octaves above the highest rate of the grid
FLAT, STEEP = (0.001, 0.008), (0.04, 0.15)
START = Start(Recipe(2.0**-10, 100), 300)
TUNING = Tuning()


@dataclass(frozen=True, kw_only=True)
class World:
    """The truth that studies are simulated in. Constants are those of the published studies."""

    name: str
    variants: int = 11
    seeds: int = 5
    noise: float = 0.01  # standard deviation of one run
    seed_noise: float = 0.02  # shared by all variants of a seed
    families: int = 0  # number of families that share noise; 0: none
    curvature: tuple[float, float] = (0.008, 0.06)  # c of the half-octave parabola, log-uniform
    best: tuple[float, float] = (1.0, 6.0)  # position of the best rate, uniform
    shape: str = "parabola"  # or "v": a kink, its slope c / 2 per half octave; or "exponential"
    wall: tuple[float, float] | None = None  # runs diverge above best + this, uniform
    cliff: float | None = (
        None  # above best + this, loss and noise grow; with a longer warm-up later
    )
    later: float = 3.0  # half octaves by which a longer warm-up moves the cliff
    uneven: float = 1.0  # every second variant is noisier by this ratio
    growth: float = 0.0  # noise grows by exp(this) per half octave, four at most to either side
    heavy_tails: bool = False  # noise has Student's t distribution with 3 degrees of freedom
    spikes: float = 0.0  # share of the runs that end 20 standard deviations too high

    def truths(self) -> Array:
        """Return the loss of each variant at its best recipe: a third of them are equal."""
        n_equal = max(1, self.variants // 3)
        steps = np.arange(1, self.variants - n_equal + 1)
        return np.concatenate([np.zeros(n_equal), 0.02 * steps])


class Curves:
    """The curves of R studies of a world, and their noise."""

    def __init__(self, world: World, studies: int, rng: np.random.Generator) -> None:
        self.world, self.rng = world, rng
        self.size = (studies, world.variants)
        low, high = world.curvature
        self.c_RV = low * (high / low) ** rng.uniform(size=self.size)
        self.best_RV = rng.uniform(*world.best, size=self.size)
        wall = world.wall
        self.wall_RV = self.best_RV + (rng.uniform(*wall, size=self.size) if wall else np.inf)
        self.noise_V = world.noise * np.where(np.arange(world.variants) % 2, world.uneven, 1.0)

    def excess(self, x: Array, level: int | Array) -> Array:
        """Return the mean loss above the curve's lowest point, and past the cliff; shape as x."""
        extra = x.ndim - 2
        c, best = _expand(self.c_RV, extra), _expand(self.best_RV, extra)
        off = x - best
        if self.world.shape == "exponential":  # as curved at its lowest point, steeper above
            rise = c * (np.expm1(np.minimum(off, 6.0)) - np.minimum(off, 6.0))
        else:
            rise = c / 2 * (np.abs(off) if self.world.shape == "v" else off**2)
        return rise + c / 2 * self.past(x, level) ** 2

    def past(self, x: Array, level: int | Array) -> Array:
        """Return how far a position lies past the cliff; 0 without one."""
        if self.world.cliff is None:
            return np.zeros_like(x)
        best = _expand(self.best_RV, x.ndim - 2)
        cliff = best + self.world.cliff + self.world.later * level
        return 2 * np.maximum(0.0, x - cliff)

    @cached_property
    def optimum_RV(self) -> tuple[Array, Array]:
        """The best position over all warm-ups, and the excess there; a cliff moves both."""
        wall = self.wall_RV[..., None]
        x_RVX = np.minimum(self.best_RV[..., None] + np.linspace(-4, 3, 281), wall)
        excess_RVX = self.excess(x_RVX, LEVELS - 1)
        at = excess_RVX.argmin(-1)[..., None]
        return (
            np.take_along_axis(x_RVX, at, -1)[..., 0],
            np.take_along_axis(excess_RVX, at, -1)[..., 0],
        )

    def loss(self, x: Array, level: int | Array, shared: Array) -> Array:
        """Return losses of runs; infinite past the wall. `shared` is the noise of their seeds."""
        extra = x.ndim - 2
        floor = -self.optimum_RV[1]  # so that all variants are equal at their best recipes
        off = np.clip(x - _expand(self.best_RV, extra), -4.0, 4.0)
        spread = _expand(self.noise_V, extra) * np.exp(self.world.growth * off)
        noise = spread * (1 + 2 * self.past(x, level)) * self._draw(x.shape)
        found = _expand(floor, extra) + self.excess(x, level) + noise + shared
        return np.where(x > _expand(self.wall_RV, extra) + 1e-9, np.inf, found)

    def _draw(self, shape: tuple[int, ...]) -> Array:
        """Return noise in standard deviations of a run, spikes aside."""
        if self.world.heavy_tails:
            return self.rng.standard_t(3, shape) / 3**0.5
        drawn = self.rng.standard_normal(shape)
        if self.world.spikes:
            drawn += 20 * (self.rng.uniform(size=shape) < self.world.spikes)
        return drawn

    def seeds_RVS(self, count: int) -> Array:
        """Return noise that runs share: by all variants of a seed, and by those of a family."""
        world, (studies, variants) = self.world, self.size
        shared = world.seed_noise * self.rng.standard_normal((studies, 1, count))
        if not world.families:
            return np.broadcast_to(shared, (studies, variants, count))
        family = np.arange(variants) % world.families
        by_family = world.noise * self.rng.standard_normal((studies, world.families, count))
        return shared + by_family[:, family]


def _expand(values: Array, extra: int) -> Array:
    return values.reshape(values.shape + (1,) * extra)


class Recipes(NamedTuple):
    """What a search has found, by study and variant."""

    x_RV: Array
    level_RV: Array
    allowance_RV: Array
    runs_RV: Array
    search_noise: float = 0.0  # standard deviations of a run


class KnownLosses(Mapping[Recipe, float | None]):
    """The losses of one variant's tuning runs, as if all had been made."""

    def __init__(self, loss_LX: Array) -> None:
        self.loss_LX = loss_LX

    def __getitem__(self, recipe: Recipe) -> float:
        x, level = place(recipe)
        assert FIRST <= round(x) <= LAST
        return self.loss_LX[level, round(x) - FIRST]

    def __contains__(self, recipe: object) -> bool:
        return True

    def __iter__(self) -> Iterator[Recipe]:
        return iter(())

    def __len__(self) -> int:
        return self.loss_LX.size


def place(recipe: Recipe) -> tuple[float, int]:
    """Return position and warm-up level of a recipe."""
    x = 2 * np.log2(recipe.learning_rate / START.recipe.learning_rate)
    return float(x), int(recipe.warmup_steps > START.recipe.warmup_steps)


def tuning_losses(curves: Curves, *, same_seed: bool) -> Array:
    """Return losses_RVLX of every run that a search may ask for."""
    x_X = np.arange(FIRST, LAST + 1.0)
    x_RVLX = np.broadcast_to(x_X, (*curves.size, LEVELS, x_X.size))
    level_L1 = np.arange(LEVELS)[:, None]
    seeds = curves.seeds_RVS(1 if same_seed else curves.size[1])
    shared = seeds if same_seed else np.diagonal(seeds, axis1=1, axis2=2)[..., None]
    return curves.loss(x_RVLX, level_L1, shared[..., None])


def search(curves: Curves) -> Recipes:
    """Search with `attnlab.training.search`, each variant with a tuning seed of its own."""
    losses_RVLX = tuning_losses(curves, same_seed=False)
    names = [str(v) for v in range(curves.size[1])]
    starts = dict.fromkeys(names, START)
    found = np.empty((*curves.size, 4))
    for r, losses_VLX in enumerate(losses_RVLX):
        known = {name: KnownLosses(losses_VLX[v]) for v, name in enumerate(names)}
        searched = decide(TUNING, starts, known, margin=MARGIN)
        for v, name in enumerate(names):
            one = searched[name]
            assert one.recipe is not None
            found[r, v] = (*place(one.recipe), one.allowance, len(one.tried))
    return Recipes(*np.moveaxis(found, -1, 0), SEARCH_NOISE)


def octave_grid(curves: Curves) -> Recipes:
    """Search an octave grid with one seed for all, widened until the best rate is bracketed."""
    losses_RVX = tuning_losses(curves, same_seed=True)[..., 0, :]
    x_RV, runs_RV = np.empty(curves.size), np.empty(curves.size)
    for index in np.ndindex(curves.size):
        tried = [0, 2, 4, 6]
        while True:
            losses = losses_RVX[index][np.array(tried) - FIRST]
            at = int(losses.argmin())
            if 0 < at < len(tried) - 1 or len(tried) >= TUNING.most:
                break
            tried = [tried[0] - 2, *tried] if at == 0 else [*tried, tried[-1] + 2]
        x_RV[index], runs_RV[index] = tried[at], len(tried)
    return Recipes(x_RV, np.zeros(curves.size), np.zeros(curves.size), runs_RV)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The rates of one procedure in one world, over all studies."""

    error: float  # of studies that publish an order that is equal or opposite in truth
    coverage: float  # of studies whose intervals all cover the true differences
    power: float  # of truly different pairs whose order is published; nan if there are none
    regret: float  # nats/token, of the chosen recipes
    runs: float  # per variant, those of the verdict included


class Verdicts:
    """The verdict's runs of one procedure, and what is published of them in the world's truths."""

    def __init__(self, curves: Curves, recipes: Recipes) -> None:
        self.curves, self.recipes = curves, recipes
        self.shared_RVS = curves.seeds_RVS(curves.world.seeds)
        self.loss_RVS = self._train(0.0)
        self.difference_RVV, self.half_RVV, deviation_RV = intervals(self.loss_RVS)
        noise_RV = np.full(curves.size, recipes.search_noise)
        self.missed_RV = missed_by_search(recipes.allowance_RV, noise_RV, deviation_RV, ERROR)
        self.deviation_RV = deviation_RV

    def outcome(self, truth_V: Array, *, challenges: bool) -> Outcome:
        """Compare what is published with the truth: the loss of each variant at its best recipe."""
        curves, recipes, seeds = self.curves, self.recipes, self.curves.world.seeds
        true_VV = truth_V[:, None] - truth_V
        d_RVV, half_RVV = self.difference_RVV + true_VV, self.half_RVV
        x_RVS = np.repeat(recipes.x_RV[..., None], seeds, -1)
        missed_RV, runs_RV = self.missed_RV, recipes.runs_RV + seeds
        if challenges:
            chosen_RV = to_challenge(d_RVV, half_RVV, missed_RV)
            index_RVS = cross_fit(self.beside_RVBS)
            fitted = np.take_along_axis(self.beside_RVBS, index_RVS[..., None, :], -2)[..., 0, :]
            loss_RVS = np.where(chosen_RV[..., None], fitted, self.loss_RVS)
            moved = x_RVS + np.array(BESIDE)[index_RVS]
            x_RVS = np.where(chosen_RV[..., None], moved, x_RVS)
            missed_RV = np.where(chosen_RV, self.missed_after_RV, missed_RV)
            runs_RV = runs_RV + (len(BESIDE) - 1) * seeds * chosen_RV
            d_RVV, half_RVV, _ = intervals(loss_RVS)
            d_RVV = d_RVV + true_VV
        low = d_RVV - np.hypot(half_RVV, missed_RV[..., :, None])
        high = d_RVV + np.hypot(half_RVV, missed_RV[..., None, :])
        apart = ~np.eye(len(truth_V), dtype=bool)
        published = (low > 0) & apart  # the row is worse than the column
        covers = (low <= true_VV + 1e-12) & (true_VV <= high + 1e-12) | ~apart
        different = true_VV > 1e-12
        level = recipes.level_RV[..., None]
        excess = curves.excess(x_RVS, level) - curves.optimum_RV[1][..., None]
        return Outcome(
            error=float((published & ~different).any((-2, -1)).mean()),
            coverage=float(covers.all((-2, -1)).mean()),
            power=float(published[:, different].mean()) if different.any() else float("nan"),
            regret=float(excess.mean()),
            runs=float(runs_RV.mean()),
        )

    @cached_property
    def beside_RVBS(self) -> Array:
        """Losses at the rates B of a challenge, by seed."""
        return np.stack([self.loss_RVS, *map(self._train, BESIDE[1:])], -2)

    @cached_property
    def missed_after_RV(self) -> Array:
        """What the searches may have missed after a challenge of every variant."""
        noise_RV = np.where(confirms(self.beside_RVBS), CHALLENGED, 1.0) * self.recipes.search_noise
        allowance_RV = allowance_after(self.recipes.allowance_RV, self.beside_RVBS)
        return missed_by_search(allowance_RV, noise_RV, self.deviation_RV, ERROR)

    def _train(self, step: float) -> Array:
        seeds = self.curves.world.seeds
        x_RVS = np.repeat(self.recipes.x_RV[..., None] + step, seeds, -1)
        return self.curves.loss(x_RVS, self.recipes.level_RV[..., None], self.shared_RVS)


def intervals(loss_RVS: Array) -> tuple[Array, Array, Array]:
    """Return differences and half-widths of all pairs, and the deviation of a run, by study."""
    difference, half, deviation = zip(*map(_compared, loss_RVS), strict=True)
    return np.stack(difference), np.stack(half), np.stack(deviation)


def _compared(loss_VS: Array) -> tuple[Array, Array, Array]:
    losses = {str(v): dict(enumerate(loss_S)) for v, loss_S in enumerate(loss_VS.tolist())}
    compared = compare(losses)
    return compared.noise.difference_VV, compared.half_VV, compared.noise.deviation_V


def simulate(world: World, studies: int, seed: int = 0) -> dict[str, tuple[Outcome, Outcome]]:
    """Return the outcomes of each procedure: with different variants, and if all are equal."""
    curves = Curves(world, studies, np.random.default_rng(seed))
    oracle = Recipes(
        curves.optimum_RV[0], np.full(curves.size, LEVELS - 1.0), *np.zeros((2, *curves.size))
    )
    procedures = {"attnlab": search(curves), "octave grid": octave_grid(curves), "oracle": oracle}
    found = dict[str, tuple[Outcome, Outcome]]()
    for name, recipes in procedures.items():
        verdicts, challenges = Verdicts(curves, recipes), name == "attnlab"
        found[name] = (
            verdicts.outcome(world.truths(), challenges=challenges),
            verdicts.outcome(np.zeros(world.variants), challenges=challenges),
        )
    return found


WORLDS = (
    World(name="11 variants, 5 seeds"),
    World(name="3 variants, 3 seeds", variants=3, seeds=3),
    World(name="3 variants, 10 seeds", variants=3, seeds=10),
    World(name="13 variants, 3 seeds", variants=13, seeds=3),
    World(name="13 variants, 10 seeds", variants=13, seeds=10),
    World(name="flat curves", curvature=FLAT),
    World(name="steep curves", curvature=STEEP),
    World(name="kinks in place of parabolas", shape="v"),
    World(name="divergence above the best rate", wall=(0.0, 2.0)),
    World(name="divergence about the best rate", wall=(-1.0, 0.5)),
    World(name="a cliff above the best rate, which a longer warm-up moves", cliff=1.5, later=4.0),
    World(name="a cliff below the best rate, which a longer warm-up moves", cliff=-1.5, later=4.0),
    World(name="a cliff near the best rate, whatever the warm-up", cliff=0.5, later=0.0),
    World(name="the best rate up to five octaves below the lowest one tried", best=FAR_BELOW),
    World(name="far below, flat curves", best=FAR_BELOW, curvature=FLAT),
    World(name="far below, kinks", best=FAR_BELOW, shape="v"),
    World(name="far below, flat kinks", best=FAR_BELOW, curvature=FLAT, shape="v"),
    World(name="far below, noise three times as large", best=FAR_BELOW, noise=0.03),
    World(
        name="far below, three times the noise, flat", best=FAR_BELOW, noise=0.03, curvature=FLAT
    ),
    World(name="far below, three times the noise, kinks", best=FAR_BELOW, noise=0.03, shape="v"),
    World(name="below, flat curves", best=(-8.0, -1.0), curvature=FLAT),
    World(name="below, kinks", best=(-8.0, -1.0), shape="v"),
    World(name="above, flat curves", best=(6.0, 13.0), curvature=FLAT),
    World(name="above, kinks", best=(6.0, 13.0), shape="v"),
    World(name="far above", best=FAR_ABOVE),
    World(name="far above, flat curves", best=FAR_ABOVE, curvature=FLAT),
    World(name="far above, kinks", best=FAR_ABOVE, shape="v"),
    World(name="far above, flat kinks", best=FAR_ABOVE, curvature=FLAT, shape="v"),
    World(name="far above, noise three times as large", best=FAR_ABOVE, noise=0.03),
    World(name="far above, three times the noise, kinks", best=FAR_ABOVE, noise=0.03, shape="v"),
    World(name="kinks, 13 variants, 10 seeds", shape="v", variants=13, seeds=10),
    World(name="kinks, a third of the noise", shape="v", noise=0.003),
    World(
        name="kinks, a third of the noise, 13 variants, 10 seeds",
        shape="v",
        noise=0.003,
        variants=13,
        seeds=10,
    ),
    World(name="steep kinks", shape="v", curvature=STEEP),
    World(name="kinks, divergence above the best rate", shape="v", wall=(0.0, 2.0)),
    World(name="kinks, a cliff near the best rate", shape="v", cliff=0.5, later=0.0),
    World(name="noise shared by families", families=3),
    World(name="noise three times as large", noise=0.03),
    World(name="24 variants, 4 seeds", variants=24, seeds=4),
    World(name="exponential curves", shape="exponential"),
    World(name="every second variant five times noisier", uneven=5.0),
    World(name="noise that grows with the rate", growth=0.5),
    World(name="heavy tails (t, 3 degrees of freedom)", heavy_tails=True),
    World(name="one run in thirty 20 standard deviations off", spikes=1 / 30),
)


def table(studies: int, only: str, seed: int, workers: int | None) -> Iterator[str]:
    """Yield the lines of a table in Markdown, as they are computed, a process per world."""
    yield (
        "| world | error | all equal | coverage | power | of the oracle's | regret | runs "
        "| of the grid's | all equal, by the grid |"
    )
    yield "| -- " + "| -: " * 9 + "|"
    worlds = [world for world in WORLDS if only in world.name]
    with ProcessPoolExecutor(workers) as pool:
        outcomes = pool.map(partial(simulate, studies=studies, seed=seed), worlds)
        for world, found in zip(worlds, outcomes, strict=True):
            (mixed, equal), (grid, equal_grid) = found["attnlab"], found["octave grid"]
            yield (
                f"| {world.name} | {mixed.error:.3f} | {equal.error:.3f} "
                f"| {min(mixed.coverage, equal.coverage):.3f} | {mixed.power:.2f} "
                f"| {mixed.power / found['oracle'][0].power:.2f} | {mixed.regret:.4f} "
                f"| {mixed.runs:.1f} | {mixed.runs / grid.runs:.2f} | {equal_grid.error:.3f} |"
            )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--only", default="", help="a part of the name of a world")
    parser.add_argument("--seed", type=int, default=0, help="of the curves and of their noise")
    parser.add_argument("--workers", type=int, help="processes; by default one per core")
    given = parser.parse_args()
    for line in table(given.studies, given.only, given.seed, given.workers):
        print(line, flush=True)


if __name__ == "__main__":
    main()
