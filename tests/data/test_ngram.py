"""The estimate of what counting predicts is what its equations say."""

import math

import numpy as np
import pytest

from attnlab.data import ngram
from attnlab.data.ngram import ngram_loss

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
