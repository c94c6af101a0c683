"""The rule that chooses a learning rate: bounded, always the same, right where it can be."""

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnlab.config import ConfigError
from attnlab.training.recipe import ChosenRate, LearningRates, RatesToTry

OWN = 3e-4
RATES = LearningRates(multiples=(1, 2, 4, 8), factor=2, most=7)


def search(rates, loss, own=OWN):
    """Follow the rule to its end: the choice, and `{rate: loss}` of all that was tried."""
    losses = {}
    while isinstance(decision := rates.decide(own, losses), RatesToTry):
        assert decision.rates
        assert not set(decision.rates) & set(losses)
        losses |= {rate: loss(rate) for rate in decision.rates}
        assert len(losses) <= rates.most
    return decision, losses


def convex(best, steepness=0.3):
    return lambda rate: 5 + steepness * math.log2(rate / best) ** 2


def test_the_grid_is_tried_first_and_whole():
    assert RATES.decide(OWN, {}) == RatesToTry((3e-4, 6e-4, 1.2e-3, 2.4e-3))
    assert RATES.decide(OWN, {3e-4: 5.0, 1.2e-3: 5.0}) == RatesToTry((6e-4, 2.4e-3))


@pytest.mark.parametrize("best", [OWN * 2**k for k in range(-5, 9)])
def test_a_best_within_reach_is_found_and_inside(best):
    decision, losses = search(RATES, convex(best))
    reachable = OWN / 8 < best < OWN * 2**6
    assert decision.bracketed == reachable
    if reachable:
        assert decision.rate == pytest.approx(best)
    else:
        assert len(losses) == RATES.most
        assert decision.rate in (min(losses), max(losses))


def test_no_more_is_tried_than_is_needed():
    assert len(search(RATES, convex(OWN * 2))[1]) == 4
    assert len(search(RATES, convex(OWN * 8))[1]) == 5
    assert len(search(RATES, convex(OWN))[1]) == 5


def test_of_equal_losses_one_inside_is_taken_and_then_the_lowest_rate():
    assert search(RATES, lambda _: 5.0)[0] == ChosenRate(6e-4, bracketed=True)
    tie_at_the_edge = {3e-4: 5.0, 6e-4: 5.0, 1.2e-3: 6.0, 2.4e-3: 6.0}
    assert RATES.decide(OWN, tie_at_the_edge) == ChosenRate(6e-4, bracketed=True)
    both_edges = {3e-4: 5.0, 6e-4: 6.0, 1.2e-3: 6.0, 2.4e-3: 5.0}
    assert RATES.decide(OWN, both_edges) == RatesToTry((1.5e-4, 4.8e-3))
    one_more = LearningRates(multiples=(1, 2, 4, 8), most=5)
    assert one_more.decide(OWN, both_edges) == RatesToTry((1.5e-4,))


@pytest.mark.parametrize("lost", [None, math.nan, math.inf])
def test_a_rate_that_diverged_is_worse_than_any_and_bounds_the_bracket(lost):
    decision, losses = search(RATES, lambda rate: lost if rate > 1.5e-3 else 9.0 - 1e3 * rate)
    assert decision == ChosenRate(1.2e-3, bracketed=True)
    assert len(losses) == 4


def test_divergence_everywhere_is_looked_for_further_down_and_then_given_up():
    decision, losses = search(RATES, lambda _: None)
    assert decision == ChosenRate(None, bracketed=False)
    assert min(losses) == pytest.approx(OWN / 8)
    assert len(losses) == RATES.most
    found, _ = search(RATES, lambda rate: 5.0 if rate < OWN / 3 else None)
    assert found.rate == pytest.approx(OWN / 4)


def test_one_rate_is_widened_to_both_sides():
    alone = LearningRates(multiples=(1,), most=3)
    assert alone.decide(1.0, {1.0: 5.0}) == RatesToTry((0.5, 2.0))
    assert alone.decide(1.0, {1.0: 5.0, 0.5: 6.0, 2.0: 6.0}) == ChosenRate(1.0, bracketed=True)


@pytest.mark.parametrize("pattern", list(product([None, 4.0, 5.0, 6.0], repeat=4)))
def test_every_grid_of_four_leads_to_the_right_next_step(pattern):
    losses = dict(zip(RATES.grid(OWN), pattern, strict=True))
    decision = RATES.decide(OWN, losses)
    known = [loss for loss in pattern if loss is not None]
    best = [rate for rate, loss in losses.items() if known and loss == min(known)]
    inside = [rate for rate in best if rate in (6e-4, 1.2e-3)]
    if inside:
        assert decision == ChosenRate(inside[0], bracketed=True)
        return
    down = not known or min(losses) in best
    up = bool(known) and max(losses) in best
    assert decision == RatesToTry((1.5e-4,) * down + (4.8e-3,) * up)


@given(
    losses=st.dictionaries(
        st.integers(-12, 12), st.none() | st.floats(0, 20) | st.just(math.nan), min_size=25
    ),
    multiples=st.sets(st.sampled_from([0.25, 0.5, 1, 2, 4, 8]), min_size=1, max_size=5),
    most=st.integers(5, 9),
)
def test_whatever_the_losses_the_search_ends_with_the_best_that_it_tried(losses, multiples, most):
    rates = LearningRates(multiples=tuple(multiples), most=most)
    decision, tried = search(rates, lambda rate: losses[round(math.log2(rate))], own=1.0)
    worth = {r: math.inf if x is None or math.isnan(x) else x for r, x in tried.items()}
    if decision.rate is None:
        assert set(worth.values()) == {math.inf}
        return
    assert worth[decision.rate] == min(worth.values()) < math.inf
    assert decision.bracketed == (min(tried) < decision.rate < max(tried))
    assert decision.bracketed or len(tried) == most
    assert search(rates, tried.get, own=1.0) == (decision, tried)


@given(own=st.floats(1e-6, 1), factor=st.floats(1.1, 10), best=st.floats(1e-7, 10))
def test_a_rate_is_what_the_name_of_its_folder_says(own, factor, best):
    rates = LearningRates(multiples=(1, 3), factor=factor)
    _, losses = search(rates, convex(best), own)
    assert all(float(f"{rate:g}") == rate for rate in losses)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"multiples": ()}, "multiples: give at least one"),
        ({"multiples": (1, -2)}, "multiples: must be positive"),
        ({"multiples": (1, 2, 2)}, "multiples: contains a duplicate"),
        ({"factor": 1.0}, r"factor: must be at least 1\.1"),
        ({"most": 3}, "most: must be at least 4, got 3"),
        ({"multiples": (1,), "most": 2}, "most: must be at least 3, got 2"),
    ],
)
def test_a_search_that_cannot_end_well_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        LearningRates(**fields)
