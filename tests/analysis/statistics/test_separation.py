"""The two-way layout, and a family-wise error of at most 5 %, or hardly more."""

import numpy as np
import pytest
from scipy import stats

from attnlab.analysis.statistics.separation import (
    Layout,
    half_width_VV,
    method_for,
    p_VV,
    separable_VV,
    tukey_half_width,
)

STUDIES = 4000  # a standard error of 0.35 % at 5 %


def simulated(seeds, variants, spreads=1.0, studies=STUDIES):
    """Studies with strong effects of seed and none of variant."""
    rng = np.random.default_rng(seeds * 100 + variants)
    noise_RSV = rng.standard_normal((studies, seeds, variants)) * spreads
    return noise_RSV + 3 * rng.standard_normal((studies, seeds, 1))


def false_claims(losses_RSV):
    return separable_VV(Layout(losses_RSV)).any((1, 2)).mean()


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("variants", [2, 3, 8, 13])
def test_of_equal_variants_at_most_six_studies_in_a_hundred_separate_any(seeds, variants):
    assert false_claims(simulated(seeds, variants)) <= 0.06


@pytest.mark.parametrize("spread", [3, 5])
@pytest.mark.parametrize("variants", [3, 5, 13])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_one_noisy_variant_does_not_make_false_claims_likelier(seeds, variants, spread):
    spreads = np.ones(variants)
    spreads[0] = spread
    assert false_claims(simulated(seeds, variants, spreads)) <= 0.06


@pytest.mark.parametrize("seeds", [3, 10])
@pytest.mark.parametrize("noisy", [6, 12])
def test_nor_do_many_noisy_variants(seeds, noisy):
    spreads = np.where(np.arange(13) < noisy, 4.0, 1.0)
    assert false_claims(simulated(seeds, 13, spreads)) <= 0.06


def test_nor_do_two_variants_that_are_nearly_the_same_numbers():
    losses_RSV = simulated(3, 3)
    losses_RSV[..., 1] = losses_RSV[..., 0] + 1e-6 * simulated(3, 3)[..., 1]
    assert separable_VV(Layout(losses_RSV))[:, 2].any(-1).mean() <= 0.06


def test_nor_do_true_differences_among_the_others():
    losses_RSV = simulated(5, 8) + np.array([0, 0, 0, 0, 9, 9, 20, 30])
    separable_RVV = separable_VV(Layout(losses_RSV))
    assert separable_RVV[:, :4, :4].any((1, 2)).mean() <= 0.06
    assert separable_RVV[:, 0, 4].mean() > 0.99


@pytest.mark.parametrize(("seeds", "variants"), [(3, 4), (3, 13), (5, 8), (10, 2), (10, 13)])
def test_tukeys_intervals_hold_all_true_differences_in_95_studies_of_100(seeds, variants):
    layout = Layout(simulated(seeds, variants))
    inside_R = (np.abs(layout.difference_VV) <= tukey_half_width(layout)[:, None, None]).all((1, 2))
    assert 0.935 <= inside_R.mean() <= 0.965


def test_the_plain_paired_interval_holds_the_true_difference_in_95_studies_of_100():
    for seeds in (3, 5, 10):
        layout = Layout(simulated(seeds, 5, spreads=np.array([1, 4, 1, 1, 1])))
        half_R = stats.t.ppf(0.975, seeds - 1) * np.sqrt(layout.paired_VV[:, 0, 1] / seeds)
        assert 0.935 <= (np.abs(layout.difference_VV[:, 0, 1]) <= half_R).mean() <= 0.965


def test_tukeys_interval_is_scipys_where_seeds_have_no_effect():
    # scipy knows no blocks: with 1,000 seeds the degrees of freedom no longer matter
    losses_SV = np.random.default_rng(0).standard_normal((1000, 4))
    theirs = stats.tukey_hsd(*losses_SV.T).confidence_interval(0.95)
    ours = tukey_half_width(Layout(losses_SV))
    assert ours == pytest.approx((theirs.high - theirs.low)[0, 1] / 2, rel=0.02)


def test_two_variants_get_the_paired_t_test():
    losses_SV = np.array([[5.11, 5.02], [5.09, 5.04], [5.13, 5.01], [5.1, 5.05]])
    layout = Layout(losses_SV)
    theirs = stats.ttest_rel(losses_SV[:, 0], losses_SV[:, 1])
    interval = theirs.confidence_interval(0.95)
    assert method_for(layout) == "tukey"
    assert p_VV(layout, "tukey")[0, 1] == pytest.approx(theirs.pvalue, rel=1e-6)
    assert half_width_VV(layout, "tukey")[0, 1] == pytest.approx((interval.high - interval.low) / 2)


def test_holms_p_is_the_smallest_times_the_number_of_pairs_and_never_descends():
    losses_SV = simulated(5, 3, studies=1)[0] + np.array([0.0, 1.0, 4.0])
    plain = [
        stats.ttest_rel(losses_SV[:, i], losses_SV[:, j]).pvalue
        for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    first, second, third = sorted(plain)
    stepped = [3 * first, max(3 * first, 2 * second), max(3 * first, 2 * second, third)]
    found = p_VV(Layout(losses_SV), "holm")[np.triu_indices(3, 1)]
    assert sorted(found) == pytest.approx(sorted(min(1, p) for p in stepped))


def test_a_variant_of_ten_times_the_spread_does_not_hide_what_the_others_show():
    spreads = np.ones(8)
    spreads[0] = 10
    shown = simulated(5, 8, spreads, studies=400) + np.array([0] * 7 + [6])
    assert separable_VV(Layout(shown))[:, 1, 7].mean() > 0.5
    assert (
        np.abs(Layout(shown).difference_VV[:, 1, 7]) > tukey_half_width(Layout(shown))
    ).mean() < 0.5


@pytest.mark.parametrize("method", ["tukey", "holm"])
def test_p_is_under_five_per_cent_exactly_where_the_interval_leaves_out_0(method):
    for seed in range(20):
        layout = Layout(np.random.default_rng(seed).standard_normal((4, 2)) + np.array([0, 1.5]))
        outside = abs(layout.difference_VV[0, 1]) > half_width_VV(layout, method)[0, 1]
        assert (p_VV(layout, method)[0, 1] < 0.05) == outside


def test_without_any_noise_what_differs_is_separable_and_what_does_not_is_not():
    layout = Layout(np.array([[1.0, 1.0, 2.0]] * 3))
    for method in ("tukey", "holm"):
        p = p_VV(layout, method)
        assert p[0, 1] == 1
        assert p[0, 2] < 1e-6


def test_what_a_seed_does_to_all_variants_alike_is_no_noise():
    noise_SV = np.random.default_rng(0).standard_normal((4, 3))
    shifted_SV = noise_SV + np.array([[0], [50], [-7], [1000]]) + np.array([1, 2, 3])
    assert Layout(shifted_SV).pooled == pytest.approx(Layout(noise_SV).pooled)
    assert Layout(shifted_SV).own_V == pytest.approx(Layout(noise_SV).own_V)


def test_two_variants_have_the_variance_of_the_paired_t_test():
    losses_SV = np.array([[5.0, 5.2], [5.1, 5.4], [5.3, 5.35]])
    layout = Layout(losses_SV)
    error = np.sqrt(2 * layout.pooled / layout.seeds)
    t = stats.ttest_rel(losses_SV[:, 0], losses_SV[:, 1])
    assert layout.difference_VV[0, 1] / error == pytest.approx(t.statistic)
    assert layout.df == t.df


def test_each_variants_own_spread_is_found_on_average():
    spread_V = np.array([1.0, 1.0, 2.0, 5.0])
    noise_RSV = np.random.default_rng(0).standard_normal((500, 400, 4)) * spread_V
    layout = Layout(noise_RSV + np.random.default_rng(1).standard_normal((500, 400, 1)))
    assert layout.own_V.mean(0) == pytest.approx(spread_V**2, rel=0.05)
    assert layout.pooled.mean() == pytest.approx((spread_V**2).mean(), rel=0.02)


def test_studies_in_a_batch_do_not_mix():
    losses_RSV = np.random.default_rng(0).standard_normal((5, 4, 3))
    batch = Layout(losses_RSV)
    for study, losses_SV in enumerate(losses_RSV):
        alone = Layout(losses_SV)
        assert batch.own_V[study] == pytest.approx(alone.own_V)
        assert batch.paired_VV[study] == pytest.approx(alone.paired_VV)
