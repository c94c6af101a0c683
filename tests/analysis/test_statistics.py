"""The error of means in the worlds of noise that studies meet, simulated.

Larger simulations are in docs/decisions/verdicts.md.

Simultaneous comparisons of all runs, and the differences that a study can detect.
"""

import math
from itertools import combinations, permutations, product

import numpy as np
import pytest
from scipy import stats

from attnlab.analysis.scaling import crossover
from attnlab.analysis.statistics.comparisons import compare
from attnlab.analysis.statistics.letters import letter_display, tau_range
from attnlab.analysis.statistics.noise import fit, relative_variances
from attnlab.analysis.statistics.power_law import Point, fit_of, speedup
from attnlab.analysis.statistics.quantiles import all_pairs, one_sided, to_one
from attnlab.analysis.statistics.seeds import detectable, level_of, seeds_needed, seeds_to_decide
from attnlab.analysis.texts import decided_order

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


def few_runs_of_the_noisy_one(rng, V, S):
    noise = one_noisy(rng, V, S)
    noise[0, 2:] = np.nan
    return noise


def shared_by_a_seed_and_half_noisy(rng, V, S):
    return half_noisy(rng, V, S) + 3 * rng.standard_normal(S)


@pytest.mark.parametrize(
    ("world", "variants", "seeds", "studies"),
    [
        (gaussian, 2, 4, 400),
        (one_noisy, 2, 4, 400),
        (one_spike, 2, 5, 300),
        (few_runs_of_the_noisy_one, 2, 5, 400),
        (shared_by_a_seed_and_half_noisy, 5, 4, 300),
        (half_noisy, 50, 4, 100),
    ],
)
def test_no_world_names_a_winner_among_equals_or_separates_them(world, variants, seeds, studies):
    rng, false = np.random.default_rng(variants), np.zeros(2)
    for _ in range(studies):
        found = compare(losses_of(world(rng, variants, seeds)))
        winners = [name for name, best in found.to_best.items() if best.low < 0]
        false += len(winners) == 1, found.separable_VV.any()
    assert (false / studies <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / studies)).all()


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


def test_two_variants_that_move_together_are_paired_whatever_the_rounding():
    """What is left of two variants without the seed effect is one component, but for rounding."""
    rng = np.random.default_rng(2)
    tables = [0.1 * gaussian(rng, 2, 6) + 3 * rng.standard_normal(6) for _ in range(60)]
    assert all(fit(losses_of(table)).paired for table in tables)


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


@pytest.mark.parametrize("count", [2, 3, 13])
def test_the_studentized_range_is_scipys(count):
    for df in (3, 8, 40):
        theirs = stats.studentized_range.ppf(0.95, count, df) / np.sqrt(2)
        assert all_pairs(count).quantile(0.05, df) == pytest.approx(theirs, rel=0.004)
        assert all_pairs(count).beyond(theirs, df) == pytest.approx(0.05, rel=0.02)


def test_dunnetts_quantiles_are_those_of_the_published_tables():
    # Dunnett 1964 (two-sided) and 1955 (one-sided): correlation 0.5, error rate 0.05
    for count, df, two_sided in ((1, 10, 2.23), (5, 10, 2.99), (9, 20, 2.95)):
        assert to_one(count).quantile(0.05, df) == pytest.approx(two_sided, abs=0.02)
    for count, df, one in ((1, 10, 1.81), (5, 10, 2.56), (9, 20, 2.60)):
        assert one_sided(count).quantile(0.05, df) == pytest.approx(one, abs=0.02)


def test_letters_are_shared_exactly_by_what_is_not_distinguishable():
    rng = np.random.default_rng(0)
    for count in (2, 5, 9, 30):
        same = np.triu(rng.random((count, count)) < 0.6, 1)
        same = same | same.T | np.eye(count, dtype=bool)
        letters = letter_display(same)
        shared = [[bool(set(one) & set(other)) for other in letters] for one in letters]
        assert (np.array(shared) == same).all()
        assert all(letters)


def test_a_comparison_holds_the_errors_of_seeds_and_of_tuning_apart():
    table = np.random.default_rng(1).standard_normal((3, 4)) * 0.01 + np.array([[0], [0.03], [1]])
    seeds = compare(losses_of(table), baseline="v0").pairs["v1", "v0"]
    both = compare(losses_of(table), baseline="v0", allowance={"v1": 0.02}).pairs["v1", "v0"]
    assert both.half_width == seeds.half_width
    assert both.low == pytest.approx(both.mean - math.hypot(seeds.half_width, 0.02))
    assert both.high == seeds.high


def ladder_of(rng, deviation_CV, seeds=3):
    names = [f"v{v}" for v in range(len(deviation_CV[0]))]
    tables = [d_V[:, None] * rng.standard_normal((len(d_V), seeds)) for d_V in deviation_CV]
    return [losses_of(table_VS) for table_VS in tables], {name: name for name in names}


def test_the_comparisons_of_a_ladder_tell_which_families_are_noisy():
    scale_C1, deviation_V = np.geomspace(1, 30, 12)[:, None], np.array([1, 5, 5, 1, 1, 5.0])
    comparisons, family = ladder_of(np.random.default_rng(0), scale_C1 * deviation_V)
    found = relative_variances(comparisons, family)
    of_V = np.array([found.variance[name] for name in family])
    noisy, quiet = of_V[deviation_V > 1], of_V[deviation_V == 1]
    assert 0.5 * 25 < math.exp(np.log(noisy).mean() - np.log(quiet).mean()) < 2 * 25
    assert found.prior > 1
    alone, together = fit(comparisons[0]), fit(comparisons[0], found)
    assert (together.df_V > alone.df_V).all()
    quiet = together.error_VV[0, 3]
    assert quiet < alone.error_VV[0, 3], "the noise of others is not that of quiet families"


@pytest.mark.parametrize(("shuffled", "comparisons"), [(True, 12), (False, 5)])
def test_a_ladder_tells_nothing_where_families_have_no_noise_of_their_own(shuffled, comparisons):
    rng = np.random.default_rng(1)
    deviation_V = np.array([1, 10, 10, 1, 1, 10.0])
    each = [rng.permutation(deviation_V) if shuffled else deviation_V for _ in range(comparisons)]
    assert relative_variances(*ladder_of(rng, each)) is None


def test_families_that_a_size_lacks_are_known_from_the_others():
    deviation_CV = np.tile([1, 4, 1, 4, 1.0], (12, 1))
    comparisons, family = ladder_of(np.random.default_rng(2), deviation_CV)
    for at in range(0, 12, 2):
        del comparisons[at]["v1"]
    found = relative_variances(comparisons, family)
    assert found.variance["v1"] / found.variance["v0"] > 5
    assert fit(comparisons[0], found).names == ("v0", "v2", "v3", "v4")


def test_the_noise_of_the_search_adds_to_what_its_curve_can_hide():
    losses = losses_of(np.random.default_rng(1).standard_normal((3, 5)) * 0.01)
    found = compare(losses, allowance={"v1": 0.02}, search_noise={"v1": 0.5, "v2": 0.5})
    deviation = found.noise.deviation_V
    assert found.noise.error_VV[0, 1] == pytest.approx(math.hypot(*deviation[:2]) / math.sqrt(5))
    noise = 0.5 * 3.31 / math.sqrt(2) * deviation  # studentised range of three means
    assert found.allowance_V == pytest.approx([0, math.hypot(0.02, noise[1]), noise[2]], rel=5e-3)


@pytest.mark.parametrize(("variants", "runs"), [(2, 2), (2, 501), (3, 501), (12, 5)])
def test_intervals_for_many_pairs_are_never_narrower_than_those_for_one(variants, runs):
    rng = np.random.default_rng(variants)
    losses = {f"v{v}": dict(enumerate(rng.standard_normal(runs).tolist())) for v in range(variants)}
    found = compare(losses, baseline="v0")
    for pair in (*found.pairs.values(), *found.to_baseline.values()):
        assert pair.half_width >= pair.alone


@pytest.mark.parametrize(("variants", "seeds", "allowance"), [(3, 5, 0), (11, 4, 0), (5, 5, 0.01)])
def test_a_difference_of_that_size_is_found_four_times_in_five(variants, seeds, allowance):
    rng, found = np.random.default_rng(0), 0
    size = detectable(0.01, variants, seeds, allowance)
    for _ in range(600):
        table = 0.01 * rng.standard_normal((variants, seeds))
        table[-1] += size
        losses = {f"v{v}": dict(enumerate(row.tolist())) for v, row in enumerate(table)}
        given = {name: float(allowance) for name in losses}
        found += bool(compare(losses, allowance=given).low_VV[-1, 0] > 0)
    assert found / 600 == pytest.approx(0.8, abs=0.05)


def test_the_seeds_that_decide_are_the_fewest_that_detect():
    needed = seeds_to_decide(0.03, spread=0.01, variants=8)
    assert detectable(0.01, 8, needed) <= 0.03 < detectable(0.01, 8, needed - 1)
    assert seeds_to_decide(0.03, spread=0.01, variants=8, allowance=0.03) is None
    assert seeds_to_decide(0.0001, spread=0.01, variants=8) is None


def test_more_seeds_find_less_and_more_variants_or_noise_hide_more():
    by_seeds = [detectable(0.01, 11, seeds) for seeds in (2, 3, 5, 10, 20)]
    assert by_seeds == sorted(by_seeds, reverse=True)
    by_variants = [detectable(0.01, variants, 5) for variants in (2, 5, 13)]
    assert by_variants == sorted(by_variants)
    assert detectable(0.02, 11, 5) == pytest.approx(2 * detectable(0.01, 11, 5))


def test_one_seed_or_one_variant_finds_nothing():
    assert detectable(0.01, 11, 1) is None
    assert detectable(0.01, 1, 5) is None


def tau(first, second):
    """Kendall's tau of two lists of numbers."""
    pairs = list(combinations(range(len(first)), 2))
    return sum(np.sign((first[i] - first[j]) * (second[i] - second[j])) for i, j in pairs) / len(
        pairs
    )


def orders_with(count, pairs):
    orders = permutations(range(count))
    return [places for places in orders if all(places[i] < places[j] for i, j in pairs)]


@pytest.mark.parametrize("seed", range(12))
def test_the_range_of_kendalls_tau_is_that_of_all_orders_that_are_possible(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 6))
    known = []
    for undecided in rng.choice([0.0, 0.2, 0.5], 2):
        means = rng.random(count)
        pairs = permutations(range(count), 2)
        known.append(frozenset((i, j) for i, j in pairs if means[j] - means[i] > undecided))
    taus = [tau(*two) for two in product(*(orders_with(count, pairs) for pairs in known))]
    assert tau_range(count, *known) == pytest.approx((min(taus), max(taus)))


@pytest.mark.parametrize(("spread", "width"), [(0.003, 2.0), (0.1, 0.8)])
def test_the_interval_of_kendalls_tau_covers_the_true_one_with_errors_of_seeds_and_tuning(
    spread, width
):
    """Three texts with planted means; each search misses its best by up to its allowance."""
    rng, found, widths = np.random.default_rng(0), [], []
    for _ in range(40):
        shared, best, known = rng.standard_normal(4), [], []
        for _ in range(3):
            mean_V = spread * (0.8 * shared + 0.6 * rng.standard_normal(4))
            allowance_V = 0.015 * rng.random(4)
            seen_V = mean_V + allowance_V * rng.random(4)
            losses = losses_of(seen_V[:, None] + 0.01 * gaussian(rng, 4, 5))
            allowance = dict(zip(losses, allowance_V.tolist(), strict=True))
            pairs = compare(losses, allowance=allowance, level=0.05 / 3).pairs
            best.append(mean_V)
            known.append(decided_order(list(losses), pairs))
        ranges = [
            (tau(best[i], best[j]), *tau_range(4, known[i], known[j]))
            for i, j in combinations(range(3), 2)
        ]
        found.append(all(low - 1e-9 <= true <= high + 1e-9 for true, low, high in ranges))
        widths += [high - low for _, low, high in ranges]
    assert np.mean(found) >= 0.95
    assert np.mean(widths) <= width


X_I = np.geomspace(1e14, 1e16, 6)


def fitted(loss_I, sd=0.0, family="f", x_I=X_I, seed=0, draws=400):
    """Return a fit to planted losses, with draws of means over three seeds of this deviation."""
    rng, loss_I = np.random.default_rng(seed), np.asarray(loss_I)
    runs_SI = loss_I + sd * rng.standard_normal((3, len(loss_I)))
    mean_I, error = runs_SI.mean(0), np.sqrt(runs_SI.var(0, ddof=1).mean() / 3)
    noise_RI = error * rng.standard_t(2 * len(loss_I), (draws, len(loss_I)))
    loss_RI = mean_I + np.concatenate([np.zeros((1, len(loss_I))), noise_RI])
    points = [Point(f"{family}{i}", str(i), "long", x_I[i], mean_I[i]) for i in range(len(loss_I))]
    drawn = {point.variant: loss_RI[:, i] for i, point in enumerate(points)}
    return fit_of(family, points, drawn)


def law(exponent, offset=0.0, scale=2.0, x_I=X_I):
    return offset + scale * (x_I / 1e15) ** -exponent


@pytest.mark.parametrize(
    ("exponent", "offset", "sd", "points"),
    [(0.05, 0.0, 0.02, 4), (0.3, 0.0, 0.01, 4), (0.3, 2.0, 0.01, 6), (0.15, 3.0, 0.005, 6)],
)
def test_the_exponent_of_a_planted_law_is_in_its_interval(exponent, offset, sd, points):
    x_I = np.geomspace(1e13, 1e17, points)
    planted, inside = law(exponent, offset, x_I=x_I), 0
    for seed in range(60):
        low, high = fitted(planted, sd, x_I=x_I, seed=seed, draws=100).exponent
        inside += low <= exponent <= high
    assert inside >= 0.88 * 60  # 0.95 less two standard errors


def test_without_noise_law_and_offset_are_found():
    found = fitted(law(0.2, 1.5)).laws
    assert found.exponent_R[0] == pytest.approx(0.2, abs=0.01)
    assert found.offset_R[0] == pytest.approx(1.5, abs=0.1)
    assert found.loss(1e15)[0] == pytest.approx(3.5, abs=1e-3)
    few = fitted(law(0.2)[:4], x_I=X_I[:4])
    assert (few.offset, few.laws.offset_R[0]) == (None, 0.0)


def test_a_size_that_breaks_the_law_is_an_error_without_that_size():
    broken = law(0.2)
    broken[-1] += 0.1
    assert fitted(law(0.2)).error < 0.02
    assert fitted(broken).error > 0.08


@pytest.mark.parametrize("ratio", [0.5, 1.0, 3.0])
def test_a_planted_speedup_is_found_with_its_interval(ratio):
    inside = 0
    for seed in range(20):
        base = fitted(law(0.2, 2.0), 0.01, "base", seed=seed)
        other = fitted(law(0.2, 2.0, x_I=X_I * ratio), 0.01, seed=100 + seed)
        found = speedup(other, base)
        low, high = found.interval
        inside += low < ratio < high
        assert high / low < 1.3
        assert max(found.x, found.baseline_x) <= X_I[-1] * 1.01  # within the measured range
    assert inside >= 17
    wider = speedup(other, base, {"f": 0.01, "base": 0.01}, among=5).interval
    assert wider[0] < low < high < wider[1]


def test_a_loss_that_the_baseline_never_had_is_beyond_the_measured_range():
    found = speedup(fitted(law(0.3, 9.0)), fitted(law(0.3, 1.0), family="base"))
    assert (found.ratio, found.interval) == (None, None)


@pytest.mark.parametrize("scale", [2.0, 0.5, 1.0])
def test_crossovers_are_claimed_where_they_are_and_nowhere_else(scale):
    inside = 0
    for seed in range(20):
        one = fitted(law(0.3), 0.01, seed=seed)
        found = crossover(one, fitted(law(0.1, scale=scale), 0.01, "g", seed=100 + seed))
        if scale == 2.0:  # they cross at 1e15; the others far beyond, and far before
            low, high = found.interval
            inside += found.shown and low < 1e15 < high
        else:
            inside += found.excluded
    assert inside >= 17


def test_equal_families_have_no_crossover_and_none_is_excluded():
    found = crossover(fitted(law(0.2), 0.01), fitted(law(0.2), 0.01, "g", seed=1))
    assert not found.shown
    assert not found.excluded


def test_families_that_share_no_range_have_no_crossover_to_show_or_to_exclude():
    far = crossover(fitted(law(0.2), 0.01), fitted(law(0.3), 0.01, "g", x_I=X_I * 1e9, seed=1))
    assert (far.measured, far.shown, far.excluded) == (False, False, False)


def test_two_sizes_give_a_law_without_an_error_and_without_an_extrapolation():
    two = fitted(law(0.2)[:2], 0.001)
    assert (two.error, two.extrapolated) == (None, None)
    assert two.exponent is not None


def test_extrapolation_goes_to_ten_times_the_largest_run_with_an_interval():
    broken = law(0.2)
    broken[2] += 0.05
    found = fitted(broken, 0.001)
    x, loss, (low, high) = found.extrapolated
    assert x == pytest.approx(10 * X_I[-1])
    assert low < loss < high
    assert high - low > 2 * found.error
