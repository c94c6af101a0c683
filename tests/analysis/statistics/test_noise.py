"""The error of means in the worlds of noise that studies meet, simulated.

Larger simulations are in docs/decisions/which-differences-are-separable.md.
"""

import numpy as np
import pytest

from attnlab.analysis.statistics.comparisons import compare
from attnlab.analysis.statistics.noise import fit
from attnlab.analysis.statistics.sequential import level_of, seeds_needed

STUDIES = 200  # a standard error of 1.5 % at 5 %


def losses_of(table_VS):
    return {
        f"v{v}": {s: float(y) for s, y in enumerate(row) if np.isfinite(y)}
        for v, row in enumerate(table_VS)
    }


def gaussian(rng, V, S):
    return rng.standard_normal((V, S))


def shared_by_a_seed(rng, V, S):
    return gaussian(rng, V, S) + 3 * rng.standard_normal(S)


def shared_within_families(rng, V, S):
    return gaussian(rng, V, S) + 3 * rng.standard_normal((3, S))[np.arange(V) % 3]


def one_noisy(rng, V, S):
    noise = gaussian(rng, V, S)
    noise[0] *= 5
    return noise


def half_noisy(rng, V, S):
    return gaussian(rng, V, S) * np.where(np.arange(V) < V // 2, 5.0, 1.0)[:, None]


def heavy_tailed(rng, V, S):
    return rng.standard_t(3, (V, S)) / np.sqrt(3)


def one_spike(rng, V, S):
    noise = gaussian(rng, V, S)
    noise[0, rng.integers(S)] += 20
    return noise


def unbalanced(rng, V, S):
    noise = one_noisy(rng, V, S)
    noise[1, 2:] = np.nan
    noise[2, -1] = np.nan
    return noise


WORLDS = (
    *(gaussian, shared_by_a_seed, shared_within_families, one_noisy, half_noisy),
    *(heavy_tailed, one_spike, unbalanced),
)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(("variants", "seeds"), [(4, 4), (13, 5)])
def test_no_world_makes_more_false_claims_than_one_study_in_twenty(world, variants, seeds):
    rng, false, uncovered = np.random.default_rng(variants), 0, 0
    for _ in range(STUDIES):
        found = compare(losses_of(world(rng, variants, seeds)), baseline="v0")
        false += bool(found.separable_VV.any())
        uncovered += any(pair.separable for pair in found.to_baseline.values())
    assert false / STUDIES <= 0.05 + 0.03  # two standard errors
    assert uncovered / STUDIES <= 0.05 + 0.03


@pytest.mark.parametrize("world", [gaussian, shared_by_a_seed, one_noisy, one_spike, heavy_tailed])
def test_most_differences_are_found_that_known_noise_would_show(world):
    rng, shown = np.random.default_rng(1), 0.0
    for _ in range(60):
        table = world(rng, 13, 5) + 2.4 * np.sqrt(2 / 5) * np.arange(13)[:, None]
        shown += compare(losses_of(table)).separable_VV[1:, 1:].mean() / 60 * 12 / 11
    assert shown >= 0.8 * 0.86  # of an oracle that knows the standard deviation, 1


def test_seeds_are_paired_where_runs_of_one_move_together_and_nowhere_else():
    rng = np.random.default_rng(2)
    paired = {
        world: np.mean([fit(losses_of(world(rng, 8, 5))).paired for _ in range(60)])
        for world in (gaussian, shared_by_a_seed, shared_within_families)
    }
    assert paired[shared_by_a_seed] > 0.8
    assert paired[gaussian] < 0.05
    assert paired[shared_within_families] < 0.1


def test_a_spike_is_named_and_the_rest_compared_without_it():
    table = 0.01 * gaussian(np.random.default_rng(3), 5, 5) + 0.1 * np.arange(5)[:, None]
    table[2, 1] += 1
    found = compare(losses_of(table))
    (spike,) = found.noise.spikes
    assert (spike.variant, spike.seed, spike.loss) == ("v2", 1, table[2, 1])
    assert found.separable_VV.sum() == 20  # all ten pairs, both ways
    assert found.means["v2"] == pytest.approx(np.delete(table[2], 1).mean())


def test_a_noisy_variant_is_no_spike():
    rng, spikes = np.random.default_rng(4), 0
    for _ in range(STUDIES):
        spikes += len(fit(losses_of(one_noisy(rng, 8, 5))).spikes)
    assert spikes / STUDIES < 0.03


def test_three_looks_together_keep_the_error_of_one():
    rng, false = np.random.default_rng(5), 0
    for _ in range(100):
        whole = losses_of(one_noisy(rng, 5, 10))
        ended, claimed, more = dict.fromkeys(whole, 4), False, True
        while more:
            losses = {name: dict(list(of.items())[: ended[name]]) for name, of in whole.items()}
            found = compare(losses, baseline="v0", level=level_of(4, 10))
            claimed |= bool(found.separable_VV.any())
            sizes = seeds_needed(losses, ended, first=4, most=10, baseline="v0")
            assert sizes == seeds_needed(whole, ended, first=4, most=10, baseline="v0")
            more, ended = sizes != ended, sizes
        false += claimed
    assert false / 100 <= 0.05 + 0.04


def test_seeds_are_added_to_what_is_open_alone():
    table = 0.01 * gaussian(np.random.default_rng(6), 4, 4) + np.array([[0], [0.012], [1], [2]])
    losses, ended = losses_of(table), dict.fromkeys(losses_of(table), 4)

    def needed(ended=ended, most=10, **options):
        return seeds_needed(losses, ended, first=4, most=most, baseline="v0", **options)

    assert needed() == {"v0": 7, "v1": 7, "v2": 4, "v3": 4}
    assert needed(allowance={"v1": 0.1}) == needed(most=4) == ended
    assert needed(ended | {"v3": 3}) == ended  # nothing is decided before all have ended
