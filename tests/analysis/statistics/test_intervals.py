"""The best and what cannot be told from it, then the best of the rest, and so on."""

import pytest
from support.written_study import steady, write_study

from attnlab.analysis.statistics.intervals import tiers
from attnlab.analysis.table import read_table
from attnlab.analysis.verdict import verdict_of


def test_a_tier_is_what_cannot_be_told_from_its_best():
    apart = {("a", "c"), ("a", "d"), ("a", "e"), ("b", "d"), ("c", "e")}
    found = tiers(["a", "b", "c", "d", "e"], lambda one, other: (one, other) in apart)
    assert found == {"a": 1, "b": 1, "c": 2, "d": 2, "e": 3}


def test_a_noisy_variant_can_share_a_tier_that_a_better_one_does_not():
    assert tiers(["a", "b", "c"], lambda one, other: {one, other} == {"a", "b"}) == {
        "a": 1,
        "b": 2,
        "c": 1,
    }


def test_what_the_seeds_tell_apart_stands_in_different_tiers(tmp_path):
    losses = {"mha": steady(5.0, 1), "near": steady(5.0003, 2), "far": steady(5.1, 3)}
    verdict = verdict_of(read_table(write_study(tmp_path, losses)))
    assert verdict.tiers == {"mha": 1, "near": 1, "far": 2}


@pytest.mark.parametrize("seeds", [3, 5])
def test_three_levels_are_three_tiers(tmp_path, seeds):
    losses = {
        f"{level}{i}": steady(5 + level, 3 * level + i, seeds)
        for level in range(3)
        for i in range(3)
    }
    verdict = verdict_of(read_table(write_study(tmp_path, losses, baseline="00")))
    assert verdict.tiers == {name: 1 + int(name[0]) for name in losses}
