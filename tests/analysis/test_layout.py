"""The noise of a study, when what seeds and variants do is taken out."""

import numpy as np
import pytest
from scipy import stats

from attnlab.analysis.statistics.separation import Layout


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
