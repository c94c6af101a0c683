"""What a study can be trusted to find, said before it is run."""

import numpy as np
import pytest

from attnlab.analysis.statistics.power import detectable
from attnlab.analysis.statistics.separation import Layout, separable_VV


@pytest.mark.parametrize(("variants", "seeds"), [(2, 3), (3, 5), (11, 3), (11, 5)])
def test_a_difference_of_that_size_is_found_four_times_in_five(variants, seeds):
    rng = np.random.default_rng(0)
    size = detectable(0.01, variants, seeds)
    losses_RSV = 0.01 * rng.standard_normal((2500, seeds, variants))
    losses_RSV += rng.standard_normal((2500, seeds, 1))
    losses_RSV[..., -1] += size
    assert separable_VV(Layout(losses_RSV))[:, 0, -1].mean() == pytest.approx(0.8, abs=0.03)


def test_more_seeds_find_less_and_more_variants_or_noise_hide_more():
    by_seeds = [detectable(0.01, 11, seeds) for seeds in (2, 3, 5, 10, 20)]
    assert by_seeds == sorted(by_seeds, reverse=True)
    by_variants = [detectable(0.01, variants, 5) for variants in (2, 5, 13)]
    assert by_variants == sorted(by_variants)
    assert detectable(0.02, 11, 5) == pytest.approx(2 * detectable(0.01, 11, 5))


def test_one_seed_or_one_variant_finds_nothing():
    assert detectable(0.01, 11, 1) is None
    assert detectable(0.01, 1, 5) is None
