"""Loss of an n-gram model: Kneser-Ney n-grams mixed with a cache of the window's own context.

    p_k(w | c) = (max(n(c w) - D_k, 0) + D_k n1(c) p_{k-1}(w | c')) / n(c)
    p(w)       = sum_j weight_j p_j(w)

c is the k tokens before w, and c' is c without its first token. n counts occurrences at the highest
order and distinct preceding tokens below it (Kneser & Ney 1995). n1(c) counts distinct tokens after
c. D_k is estimated from the counts (Ney, Essen & Kneser 1994). j runs over the orders k and a cache
(Kuhn & De Mori 1990): the frequency with which w followed the last 0, 1 or 2 tokens earlier in the
same window. On character-level Shakespeare the loss is 1.48 nats/token; the best of a Transformer
is 1.47 (nanoGPT).

Shapes: N tokens, W windows, T tokens of a window that are predicted.
"""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from attnlab.data.batches import evaluation_starts
from attnlab.data.codec import TokenIds

ORDER = 6  # tokens of the longest n-gram
CACHE_ORDER = 3
COUNTED = 1 << 22  # tokens of the training split that are counted, from its beginning
SAMPLED = 1 << 15  # tokens of the validation split that are predicted, in windows spread over it
ROUNDS = 20  # of fitting the weights of the mixture
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no token is lost modulo 2^64

Keys: TypeAlias = NDArray[np.uint64]
Floats: TypeAlias = NDArray[np.float64]


def ngram_loss(train: TokenIds, valid: TokenIds, *, vocab_size: int, seq_len: int) -> float:
    """Return the loss on `valid` in nats/token, in windows of `seq_len`, trained on `train`."""
    windows = evaluation_starts(len(valid), seq_len)
    wanted = max(1, SAMPLED // windows.length)
    starts_W = windows.starts[:: max(1, len(windows.starts) // wanted)]
    tokens_WT1 = valid[starts_W[:, None] + np.arange(windows.length + 1)]
    models = _kneser_ney(train[:COUNTED], tokens_WT1, vocab_size) + _cache(tokens_WT1)
    return _mixed_loss(np.stack([p_WT.ravel() for p_WT in models]))


def _kneser_ney(train_N: TokenIds, tokens_WT1: TokenIds, vocab_size: int) -> list[Floats]:
    """Return by order, from 0, the probability of the tokens after the first, shape (W, T)."""
    steps = list[tuple[Floats, Floats]]()  # p_k = own + weight p_{k-1}, from the highest order
    longest = min(ORDER, len(train_N))
    ends = np.arange(longest - 1, len(train_N))  # of the n-grams that are counted
    for k in reversed(range(longest)):
        gram, context = _keys(train_N, k + 1)[ends], _keys(train_N, k)[ends - 1]
        order = np.argsort(gram)
        new = np.append(True, np.diff(gram[order]) != 0)
        counts = np.diff(np.flatnonzero(new), append=len(order))
        distinct = order[new]
        once, twice = np.count_nonzero(counts == 1), np.count_nonzero(counts == 2)
        discount = (once + 1) / (once + 2 * twice + 2)
        gram_WT, context_WT = _keys(tokens_WT1, k + 1)[:, 1:], _keys(tokens_WT1, k)[:, :-1]
        n_WT = _occurrences(gram[order], gram_WT)
        n_context_WT = _occurrences(np.sort(context), context_WT)
        n_after_WT = _occurrences(np.sort(context[distinct]), context_WT)
        total_WT = np.maximum(n_context_WT, 1)
        own_WT = np.maximum(n_WT - discount, 0) / total_WT
        steps.append((own_WT, np.where(n_context_WT, discount * n_after_WT / total_WT, 1.0)))
        ends = ends[distinct]  # below, an n-gram counts once for each token before it
    found = [np.full((len(tokens_WT1), tokens_WT1.shape[1] - 1), 1 / vocab_size)]
    for own_WT, weight_WT in reversed(steps):
        found.append(own_WT + weight_WT * found[-1])
    return found


def _cache(tokens_WT1: TokenIds) -> list[Floats]:
    """Return by length of the context the frequency of each token after it, earlier in the window.

    A context that is new in the window has the frequencies of the shorter one. Shapes are (W, T).
    """
    n_seen_WT = np.arange(1, tokens_WT1.shape[1])[None]
    p_WT = _earlier(tokens_WT1)[:, 1:] / n_seen_WT
    found = [p_WT]
    for k in range(1, CACHE_ORDER):
        n_WT = _earlier(_keys(tokens_WT1, k + 1))[:, 1:]
        n_context_WT = _earlier(_keys(tokens_WT1, k))[:, :-1]
        p_WT = np.where(n_context_WT, n_WT / np.maximum(n_context_WT, 1), p_WT)
        found.append(p_WT)
    return found


def _mixed_loss(p_JN: Floats) -> float:
    """Return the mean loss of a mixture whose weights are fitted to the same tokens by EM."""
    weight_J1 = np.full((len(p_JN), 1), 1 / len(p_JN))
    for _ in range(ROUNDS):
        joint_JN = weight_J1 * p_JN
        weight_J1 = (joint_JN / joint_JN.sum(0)).mean(1, keepdims=True)
    return float(-np.log((weight_J1 * p_JN).sum(0)).mean())


def _keys(tokens_T: TokenIds, k: int) -> Keys:
    """Return a hash of the last `k` tokens up to each position, within each row.

    With fewer than `k` tokens before it, a position has a hash that no `k` tokens have.
    """
    keys_T = np.zeros(tokens_T.shape, np.uint64)
    for i in reversed(range(min(k, tokens_T.shape[-1]))):
        keys_T *= _FACTOR
        keys_T[..., i:] += tokens_T[..., : tokens_T.shape[-1] - i].astype(np.uint64) + 1
    return keys_T


def _occurrences(sorted_keys: Keys, asked: Keys) -> NDArray[np.int64]:
    """Return how often each requested key occurs among the sorted ones."""
    last = np.searchsorted(sorted_keys, asked, "right")
    return last - np.searchsorted(sorted_keys, asked, "left")


def _earlier(keys_WT: NDArray[np.generic]) -> NDArray[np.int64]:
    """Return how often each key has occurred before in its row."""
    order_WT = np.argsort(keys_WT, axis=1, kind="stable")
    sorted_WT = np.take_along_axis(keys_WT, order_WT, 1)
    place_T = np.arange(keys_WT.shape[1])
    same_WT = sorted_WT[:, 1:] == sorted_WT[:, :-1]
    first_WT = np.where(np.pad(~same_WT, ((0, 0), (1, 0)), constant_values=True), place_T, 0)
    count_WT = np.empty(keys_WT.shape, np.int64)
    rank_WT = place_T - np.maximum.accumulate(first_WT, axis=1)
    np.put_along_axis(count_WT, order_WT, rank_WT, 1)
    return count_WT
