"""Simulate the comparison of finished runs where their noise is unequal, shared or spiked.

    python benchmarks/noise_simulation.py --studies 2000
    python benchmarks/noise_simulation.py --studies 2000 --ladder

For each kind of noise: how many studies of equal variants make a false claim, in all pairs and in
the comparisons with the baseline, and which share of the pairs of evenly spaced means is separated.
Beside it stand two references, both with the quantile of a studentised range:

    Games-Howell  knows nothing of the noise: the variance of each variant is that of its own runs
    oracle        knows which runs share noise, which one is spiked, and the ratios of all standard
                  deviations; estimates their scale from the same runs, by least squares

With `--ladder`, studies are ladders: several comparisons of six families, each with noise of its
own scale. Beside the error and power of comparisons by themselves stand those in which all of a
ladder tell how the variances of families differ (`noise.relative_variances`).

Noise is in units of the standard deviation of the quietest variants.
Shapes: V variants, S seeds, N runs.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attnlab.analysis.statistics.comparisons import ERROR, compare
from attnlab.analysis.statistics.noise import Relative, relative_variances
from attnlab.analysis.statistics.quantiles import all_pairs

Array = NDArray[np.float64]
STEP = 2.4  # of means, in standard errors of a difference of two of the quietest variants
FAMILIES = 3
SHARED = 3.0  # standard deviation of noise that runs share


@dataclass(frozen=True, kw_only=True)
class World:
    """Kinds of noise, as the covariance of the runs of one seed."""

    name: str
    sizes: tuple[tuple[int, int], ...]  # variants, seeds
    deviation: Callable[[int], Array] = np.ones  # by variant
    shared_by: Callable[[int], Array] | None = None  # V x V, 1 where two share SHARED
    heavy: bool = False
    missing: float = 0.0  # share of runs; two of each variant stay
    spike: float = 0.0  # added to one run
    shuffled: bool = False  # which variants are noisier is drawn anew for each comparison

    def covariance_VV(self, variants: int) -> Array:
        """Return the covariance of the runs of a seed."""
        own_VV = np.diag(self.deviation(variants) ** 2)
        if self.shared_by is None:
            return own_VV
        return own_VV + SHARED**2 * self.shared_by(variants)

    def losses(self, variants: int, seeds: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Return losses of equal variants, nan where a run is missing; and which one is spiked."""
        size = (variants, seeds)
        noise_VS = rng.standard_t(3, size) / np.sqrt(3) if self.heavy else rng.standard_normal(size)
        loss_VS = np.linalg.cholesky(self.covariance_VV(variants)) @ noise_VS
        if self.shuffled:
            rng.shuffle(loss_VS)
        missing_VS = rng.uniform(size=size) < self.missing
        missing_VS[:, :2] = False
        spiked_VS = np.zeros(size, bool)
        if self.spike:
            spiked_VS[0, rng.integers(seeds)] = True
        return np.where(missing_VS, np.nan, loss_VS + self.spike * spiked_VS), spiked_VS


def within_families(variants: int) -> Array:
    """Return 1 where two variants are of one family."""
    family_V = np.arange(variants) % FAMILIES
    return (family_V[:, None] == family_V).astype(float)


def half(times: float) -> Callable[[int], Array]:
    """Return the standard deviations of variants of which half are noisier."""
    return lambda variants: np.where(np.arange(variants) < variants // 2, times, 1.0)


def first(times: float) -> Callable[[int], Array]:
    """Return the standard deviations where the first variant, the baseline, is noisier."""
    return lambda variants: np.where(np.arange(variants) == 0, times, 1.0)


def everywhere(variants: int) -> Array:
    """Return 1 for every pair of variants."""
    return np.ones((variants, variants))


WORLDS = (
    World(name="equal, gaussian", sizes=((2, 4), (3, 4), (13, 4), (8, 10))),
    World(name="equal, a fifth of the runs missing", sizes=((13, 5),), missing=0.2),
    World(name="shared by a seed", sizes=((3, 4), (13, 4)), shared_by=everywhere),
    World(name="shared within three families", sizes=((6, 4), (13, 5)), shared_by=within_families),
    World(
        name="the baseline five times noisier",
        sizes=((2, 4), (3, 4), (13, 4)),
        deviation=first(5.0),
    ),
    World(
        name="half five times noisier, and shared by a seed",
        sizes=((5, 4),),
        deviation=half(5.0),
        shared_by=everywhere,
    ),
    World(name="half five times noisier", sizes=((13, 4), (13, 5)), deviation=half(5.0)),
    World(name="half ten times noisier", sizes=((13, 4), (50, 4)), deviation=half(10.0)),
    World(
        name="from one to ten times, evenly",
        sizes=((13, 5),),
        deviation=lambda variants: np.linspace(1, 10, variants),
    ),
    World(name="heavy tails (t, 3 degrees of freedom)", sizes=((13, 4),), heavy=True),
    World(name="one run 20 standard deviations off", sizes=((13, 5),), spike=20.0),
)


LADDER_WORLDS = (
    World(name="equal, gaussian", sizes=()),
    World(name="equal, a fifth of the runs missing", sizes=(), missing=0.2),
    World(name="shared by a seed", sizes=(), shared_by=everywhere),
    World(name="shared within three families", sizes=(), shared_by=within_families),
    World(name="the baseline five times noisier", sizes=(), deviation=first(5.0)),
    World(name="half ten times noisier", sizes=(), deviation=half(10.0)),
    World(
        name="from one to ten times, evenly",
        sizes=(),
        deviation=lambda variants: np.linspace(1, 10, variants),
    ),
    World(
        name="half five times noisier, others in each comparison",
        sizes=(),
        deviation=half(5.0),
        shuffled=True,
    ),
    World(name="heavy tails (t, 3 degrees of freedom)", sizes=(), heavy=True),
    World(name="one run 20 standard deviations off", sizes=(), spike=20.0),
)
IN_LADDER = 6  # families
SCALES = (1.0, 3.0, 10.0)  # of the noise of one comparison


def by_seed(loss_VS: Array) -> dict[str, dict[int, float]]:
    """Return the losses of the runs that exist, by variant and seed."""
    return {
        str(v): {s: loss for s, loss in enumerate(row) if np.isfinite(loss)}
        for v, row in enumerate(loss_VS.tolist())
    }


def separated(loss_VS: Array, relative: Relative | None = None) -> tuple[NDArray[np.bool_], bool]:
    """Return the pairs that attnlab separates, and if it separates any from the baseline."""
    found = compare(by_seed(loss_VS), baseline="0", relative=relative)
    return found.separable_VV, any(pair.separable for pair in found.to_baseline.values())


def games_howell(loss_VS: Array) -> NDArray[np.bool_]:
    """Return the pairs that are separated by the variances of their own runs (1976)."""
    runs_V = np.isfinite(loss_VS).sum(1)
    part_V = np.nanvar(loss_VS, axis=1, ddof=1) / runs_V
    error_VV = part_V[:, None] + part_V
    each_V = part_V**2 / (runs_V - 1)
    quantile_VV = all_pairs(len(runs_V)).quantile(ERROR, error_VV**2 / (each_V[:, None] + each_V))
    mean_V = np.nanmean(loss_VS, axis=1)
    return np.abs(mean_V[:, None] - mean_V) > quantile_VV * np.sqrt(error_VV)


def oracle(loss_VS: Array, covariance_VV: Array, spiked_VS: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pairs that are separated by whoever knows the covariance, but for its scale."""
    variants = len(loss_VS)
    v_N, s_N = np.nonzero(np.isfinite(loss_VS) & ~spiked_VS)
    loss_N = loss_VS[v_N, s_N]
    covariance_NN = covariance_VV[np.ix_(v_N, v_N)] * (s_N[:, None] == s_N)
    design_NV = (v_N[:, None] == np.arange(variants)).astype(float)
    precision_NN = np.linalg.inv(covariance_NN)
    of_means_VV = np.linalg.inv(design_NV.T @ precision_NN @ design_NV)
    mean_V = of_means_VV @ design_NV.T @ precision_NN @ loss_N
    left_N = loss_N - mean_V[v_N]
    df = len(loss_N) - variants
    own_V = np.diag(of_means_VV) * (left_N @ precision_NN @ left_N / df)
    shared_VV = of_means_VV * (left_N @ precision_NN @ left_N / df)
    error_VV = np.sqrt(np.maximum(own_V[:, None] + own_V - 2 * shared_VV, 0))
    return np.abs(mean_V[:, None] - mean_V) > all_pairs(variants).quantile(ERROR, df) * error_VV


def row(world: World, variants: int, seeds: int, studies: int) -> str:
    """Return a line of the table."""
    rng = np.random.default_rng(0)
    covariance_VV = world.covariance_VV(variants)
    mean_V1 = STEP * np.sqrt(2 / seeds) * np.arange(variants)[:, None]
    false, found = np.zeros(3), np.zeros(3)
    for _ in range(studies):
        loss_VS, spiked_VS = world.losses(variants, seeds, rng)
        claims_VV, to_baseline = separated(loss_VS)
        false += claims_VV.any(), to_baseline, games_howell(loss_VS).any()
        loss_VS = loss_VS + mean_V1
        found += (
            separated(loss_VS)[0].sum(),
            games_howell(loss_VS).sum(),
            oracle(loss_VS, covariance_VV, spiked_VS).sum(),
        )
    error, (power, theirs, best) = false / studies, found / studies / variants / (variants - 1)
    return (
        f"| {world.name} | {variants}, {seeds} | {error[0]:.3f} | {error[1]:.3f} | {power:.2f} | "
        f"{power / best:.2f} | {error[2]:.3f} | {theirs / best:.2f} |"
    )


def table(studies: int, only: str = "") -> Iterator[str]:
    """Yield the lines of a table in Markdown, as they are computed."""
    yield (
        "| noise | variants, seeds | error, all pairs | error, to the baseline | power | of the "
        "oracle's | error, Games-Howell | power, of the oracle's |"
    )
    yield "| -- | -- | -: | -: | -: | -: | -: | -: |"
    for world in WORLDS:
        for variants, seeds in world.sizes:
            if only in world.name:
                yield row(world, variants, seeds, studies)


def ladder_row(world: World, cells: int, seeds: int, comparisons: int) -> str:
    """Return a line of the table of ladders, of `cells` comparisons each."""
    rng = np.random.default_rng(0)
    family = {str(v): str(v) for v in range(IN_LADDER)}
    mean_V1 = STEP * np.sqrt(2 / seeds) * np.arange(IN_LADDER)[:, None]
    false, found, count = np.zeros((2, 2)), np.zeros(2), 0
    for _ in range(max(comparisons // cells, 1)):
        scale_C = rng.choice(SCALES, cells)
        each = [world.losses(IN_LADDER, seeds, rng)[0] for _ in range(cells)]
        relative = relative_variances(
            [by_seed(scale * loss_VS) for scale, loss_VS in zip(scale_C, each, strict=True)], family
        )
        for loss_VS in each:
            count += 1
            for at, known in enumerate((None, relative)):
                claims_VV, to_baseline = separated(loss_VS, known)
                false[at] += claims_VV.any(), to_baseline
                found[at] += separated(loss_VS + mean_V1, known)[0].mean()
    (alone, together), power = false / count, found / count * IN_LADDER / (IN_LADDER - 1)
    return (
        f"| {world.name} | {cells}, {seeds} | {alone[0]:.3f} | {alone[1]:.3f} | {power[0]:.2f} | "
        f"{together[0]:.3f} | {together[1]:.3f} | {power[1]:.2f} |"
    )


def ladder_table(comparisons: int, only: str = "") -> Iterator[str]:
    """Yield the lines of the table of ladders in Markdown, as they are computed."""
    yield (
        "| noise | comparisons, seeds | error, all pairs | error, to the baseline | power | "
        "together: error, all pairs | error, to the baseline | power |"
    )
    yield "| -- | -- | -: | -: | -: | -: | -: | -: |"
    for world in LADDER_WORLDS:
        if only in world.name:
            for cells, seeds in ((6, 3), (12, 2), (12, 3)):
                yield ladder_row(world, cells, seeds, comparisons)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--ladder", action="store_true", help="simulate ladders instead")
    parser.add_argument("--only", default="", help="a part of the name of a kind of noise")
    arguments = parser.parse_args()
    lines = ladder_table if arguments.ladder else table
    for line in lines(arguments.studies, arguments.only):
        print(line, flush=True)


if __name__ == "__main__":
    main()
