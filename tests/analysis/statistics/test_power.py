"""The differences that a study can be trusted to find, said before it is run."""

import numpy as np
import pytest

from attnlab.analysis.statistics.comparisons import compare
from attnlab.analysis.statistics.power import detectable, seeds_to_decide


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
