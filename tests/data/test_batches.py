"""Every window once an epoch, every target once an evaluation, and nothing but seed and step."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.data.batches import evaluation_starts, window_starts

seq_lens = st.integers(1, 9)
batch_sizes = st.integers(1, 7)


def starts(n_tokens=100, *, seq_len=4, batch_size=3, steps=10, seed=0):
    return window_starts(n_tokens, seq_len=seq_len, batch_size=batch_size, steps=steps, seed=seed)


@given(n_tokens=st.integers(10, 200), seq_len=seq_lens, batch_size=batch_sizes)
def test_every_window_occurs_once_an_epoch_and_no_two_overlap(n_tokens, seq_len, batch_size):
    n_windows = n_tokens // (seq_len + 1)
    steps = 3 * n_windows  # batch_size whole epochs and more
    in_order = starts(n_tokens, seq_len=seq_len, batch_size=batch_size, steps=steps).ravel()
    assert in_order.dtype == np.int64
    for epoch in in_order.reshape(-1, n_windows):
        assert sorted(epoch) == [window * (seq_len + 1) for window in range(n_windows)]
    assert in_order.max() + seq_len + 1 <= n_tokens


@given(steps=st.integers(0, 30), more=st.integers(1, 30), batch_size=batch_sizes)
def test_a_batch_does_not_depend_on_how_many_follow(steps, more, batch_size):
    few = starts(batch_size=batch_size, steps=steps)
    many = starts(batch_size=batch_size, steps=steps + more)
    assert few.shape == (steps, batch_size)
    np.testing.assert_array_equal(many[:steps], few)


def test_seeds_and_epochs_differ_in_order():
    first, second = starts(batch_size=20, steps=2)  # 20 windows: one epoch a step
    assert (first != second).any()
    assert (first != starts(batch_size=20, steps=1, seed=1)[0]).any()
    assert (first != sorted(first)).any()


def test_the_order_of_a_seed_is_fixed_for_good():
    """Records of old runs stay comparable: these numbers may never change."""
    assert starts(40, steps=3).tolist() == [[15, 10, 5], [30, 0, 35], [20, 25, 35]]


def test_a_split_shorter_than_a_window_says_what_to_do():
    with pytest.raises(ValueError, match=r"has 9 tokens.*needs 10: set seq_len to 8 or less"):
        starts(9, seq_len=9)
    assert starts(10, seq_len=9, batch_size=2, steps=1).tolist() == [[0, 0]]


@settings(max_examples=300)
@given(n_tokens=st.integers(2, 120), seq_len=st.integers(1, 40))
def test_evaluation_scores_every_token_but_the_first_exactly_once(n_tokens, seq_len):
    windows = evaluation_starts(n_tokens, seq_len)
    counted = windows.counted()
    assert counted.shape == (len(windows.starts), windows.length)
    assert (counted.sum(1) == windows.new_targets).all()
    targets = windows.starts[:, None] + 1 + np.arange(windows.length)
    assert sorted(targets[counted]) == list(range(1, n_tokens))
    assert windows.length <= seq_len
    assert windows.starts.min() >= 0
    assert windows.starts.max() + windows.length + 1 == n_tokens  # no window reads past the split


def test_the_last_window_is_as_long_as_the_others_and_counts_its_new_targets_alone():
    windows = evaluation_starts(12, 4)  # 11 targets
    assert windows.starts.tolist() == [0, 4, 7]
    assert windows.new_targets.tolist() == [4, 4, 3]
    assert windows.counted()[2].tolist() == [False, True, True, True]


def test_one_token_cannot_be_evaluated():
    with pytest.raises(ValueError, match="has 1 tokens; evaluation needs at least 2"):
        evaluation_starts(1, 8)
