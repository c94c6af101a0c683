"""Every window once an epoch; what counting the tokens predicts."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.data import ngram
from attnlab.data.batches import evaluation_starts, window_starts
from attnlab.data.ngram import ngram_loss

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


VOCAB = 5


@pytest.fixture
def text():
    """Tokens that are partly predictable: mostly the sum of the two before."""
    random = np.random.default_rng(0)
    tokens = [1, 2]
    for noise in random.integers(0, VOCAB, 400):
        tokens.append(int((tokens[-1] + tokens[-2]) % VOCAB if noise else random.integers(VOCAB)))
    return np.array(tokens, np.uint16)


def kneser_ney_in_words(train, context, word, order):
    """p(word | context) from sets and lists of tuples, one order after the other."""

    def grams(n):
        longest = [tuple(train[i - order + 1 : i + 1]) for i in range(order - 1, len(train))]
        while len(longest[0]) > n:
            longest = [gram[1:] for gram in set(longest)]
        return longest

    p = 1 / VOCAB
    for n in range(1, order + 1):
        seen = grams(n)
        counts = {gram: seen.count(gram) for gram in set(seen)}
        once, twice = (sum(c == times for c in counts.values()) for times in (1, 2))
        discount = (once + 1) / (once + 2 * twice + 2)
        before = tuple(context[len(context) - n + 1 :]) if n > 1 else ()
        after = {gram[-1]: count for gram, count in counts.items() if gram[:-1] == before}
        if len(before) < n - 1 or not after:
            break
        total = sum(after.values())
        p = (max(after.get(word, 0) - discount, 0) + discount * len(after) * p) / total
    return p


@pytest.mark.parametrize("order", [1, 2, 4])
def test_the_ngrams_are_those_of_kneser_and_ney(text, order, monkeypatch):
    monkeypatch.setattr(ngram, "ORDER", order)
    train, window = text[:300], text[300:340]
    p_T = ngram._kneser_ney(train, window[None], VOCAB)[order][0]
    train, window = train.tolist(), window.tolist()
    expected = [
        kneser_ney_in_words(train, window[:t], window[t], order) for t in range(1, len(window))
    ]
    np.testing.assert_allclose(p_T, expected, rtol=1e-12)


def test_the_ngrams_give_each_context_one_whole_probability(text):
    contexts = np.stack([text[i : i + 7] for i in range(300, 380)])
    every_next = np.concatenate(
        [np.insert(contexts, 7, word, axis=1) for word in range(VOCAB)]
    ).reshape(VOCAB, len(contexts), 8)
    by_order = [ngram._kneser_ney(text[:300], windows, VOCAB) for windows in every_next]
    for p_WT in zip(*by_order, strict=True):
        np.testing.assert_allclose(sum(p_WT)[:, -1], 1.0, rtol=1e-12)


def test_the_cache_says_what_followed_earlier_in_the_window(text):
    windows = text[:60].reshape(2, 30)
    for k, p_WT in enumerate(ngram._cache(windows)):
        for window, p_T in zip(windows.tolist(), p_WT, strict=True):
            for t in range(1, len(window)):
                for length in reversed(range(min(k, t) + 1)):  # the longest that is not new
                    context = window[t - length : t]
                    after = [
                        window[i] for i in range(length, t) if window[i - length : i] == context
                    ]
                    if after:
                        break
                assert p_T[t - 1] == after.count(window[t]) / len(after)


def test_noise_costs_its_entropy_and_a_rule_next_to_nothing():
    noise = np.random.default_rng(0).integers(0, VOCAB, 40_000).astype(np.uint16)
    loss = ngram_loss(noise[:20_000], noise[20_000:], vocab_size=VOCAB, seq_len=64)
    assert loss == pytest.approx(math.log(VOCAB), rel=1e-2)
    cycle = np.tile(np.arange(VOCAB, dtype=np.uint16), 2000)
    assert ngram_loss(cycle, cycle[:1001], vocab_size=VOCAB, seq_len=64) < 0.1


def test_what_repeats_in_a_window_is_known_without_training_text():
    random = np.random.default_rng(0)
    train = random.integers(0, 1000, 5000).astype(np.uint16)
    twice = np.concatenate([np.tile(random.integers(0, 1000, 32), 2) for _ in range(50)])
    loss = ngram_loss(train, np.append(twice, 0).astype(np.uint16), vocab_size=1000, seq_len=64)
    assert loss < 0.65 * math.log(1000)


@pytest.mark.parametrize("n_tokens", [2, 3, 10])
def test_a_text_shorter_than_an_ngram_will_do(n_tokens):
    tokens = np.arange(n_tokens, dtype=np.uint16) % VOCAB
    assert math.isfinite(ngram_loss(tokens, tokens, vocab_size=VOCAB, seq_len=8))
