"""Where a few layers go; each function is also shown by its doctest."""

from itertools import pairwise

import pytest

from attnlab.model.placement import every_nth, first_middle_last, first_n, last_n, spread_evenly


@pytest.mark.parametrize("place", [first_n, last_n, spread_evenly])
@pytest.mark.parametrize("n_layers", [1, 5, 12])
def test_a_place_has_as_many_layers_as_were_asked_for(place, n_layers):
    for n in range(n_layers + 1):
        layers = place(n_layers, n)
        assert len(layers) == n
        assert list(layers) == sorted(set(layers))
        assert set(layers) <= set(range(n_layers))


def test_an_even_spread_leaves_gaps_that_differ_by_one_at_most():
    for n in range(1, 13):
        ends = [-1, *spread_evenly(12, n)]
        gaps = {after - before for before, after in pairwise(ends)}
        assert max(gaps) - min(gaps) <= 1
        assert ends[-1] == 11


def test_every_nth_is_the_tile_whose_last_is_another():
    assert every_nth(12, 3) == tuple(i for i in range(12) if i % 3 == 2)
    assert (every_nth(12, 1), every_nth(3, 4)) == (tuple(range(12)), ())


def test_of_one_layer_first_middle_and_last_are_the_same():
    assert first_middle_last(1) == (0,)


@pytest.mark.parametrize("place", [first_n, last_n, spread_evenly])
@pytest.mark.parametrize("n", [-1, 13])
def test_more_layers_than_there_are_is_an_error(place, n):
    with pytest.raises(ValueError, match=f"{n} of 12 layers: must be from 0 to 12"):
        place(12, n)


def test_every_zeroth_layer_is_an_error():
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        every_nth(12, 0)
