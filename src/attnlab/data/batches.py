"""Order of the windows of tokens in training and evaluation.

Training: an epoch is a seeded permutation of the non-overlapping windows of `seq_len + 1` tokens,
and a batch is a pure function of (seed, step). Tokens that do not fill a last window are not used.
Evaluation: every token except the first is predicted exactly once.

The windows of a task are its sequences, which have their own length.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from attnlab.config import ConfigError, Problem
from attnlab.data.source import Corpus


def window_starts(
    n_tokens: int, *, seq_len: int, batch_size: int, steps: int, seed: int
) -> NDArray[np.int64]:
    """Return the first token of each window, shape (steps, batch_size). Window b of step s is

        tokens[start : start + seq_len + 1]

    whose first `seq_len` tokens are inputs and whose last `seq_len` tokens are targets. Every
    window occurs once per epoch; a batch spans two epochs if its size does not divide an epoch. Row
    s depends neither on `steps` nor on the version of NumPy, since only the raw stream of PCG64 is
    used, which is fixed.

    Raises ValueError if the tokens do not fill one window.
    """
    n_windows = n_tokens // (seq_len + 1)
    if not n_windows:
        raise ValueError(
            f"the split has {n_tokens} tokens, a window of seq_len + 1 needs {seq_len + 1}: "
            f"set seq_len to {n_tokens - 1} or less, or give more text"
        )
    n_epochs = -(-steps * batch_size // n_windows)
    windows = [_permutation(n_windows, seed, epoch) for epoch in range(n_epochs)]
    in_order = np.concatenate([np.empty(0, np.int64), *windows])[: steps * batch_size]
    return in_order.reshape(steps, batch_size) * (seq_len + 1)


class EvaluationWindows(NamedTuple):
    """Windows of `length + 1` tokens, in which the last `new_targets` targets count.

    Window i reads tokens[starts[i] : starts[i] + length + 1].
    """

    starts: NDArray[np.int64]  # (windows,)
    new_targets: NDArray[np.int64]  # (windows,), 1 to `length`
    length: int

    def counted(self) -> NDArray[np.bool_]:
        """Return a mask, shape (windows, length), that is True for the targets that count."""
        return np.arange(self.length) >= self.length - self.new_targets[:, None]


def evaluation_starts(n_tokens: int, seq_len: int) -> EvaluationWindows:
    """Return consecutive windows over a split, which count targets 1 to n_tokens - 1 once each.

    The last window has the same length and ends with the split, so it overlaps the one before, and
    only its new targets count. A split shorter than `seq_len + 1` is one shorter window. Raises
    ValueError for fewer than two tokens.
    """
    n_targets = n_tokens - 1
    if n_targets < 1:
        raise ValueError(f"the split has {n_tokens} tokens; evaluation needs at least 2")
    length = min(seq_len, n_targets)
    ends = np.minimum(np.arange(length, n_targets + length, length), n_targets)
    return EvaluationWindows(ends - length, np.diff(ends, prepend=0), length)


def window_problems(corpus: Corpus, seq_len: int, lengths: Sequence[int]) -> Iterator[Problem]:
    """Yield why windows of `seq_len`, or of other `lengths` in evaluation, are impossible."""
    if corpus.examples is None:
        yield from _splits_too_short(corpus, seq_len)
    elif (of_task := corpus.examples["train"].length) != seq_len:
        remedy = f"set train.seq_len={of_task}, or data.length={seq_len}"
        yield Problem(
            "train.seq_len", f"the task has sequences of {of_task} tokens, got {seq_len}: {remedy}"
        )
    for length in lengths:
        if corpus.at_length is not None:
            try:
                corpus.at_length(length)
            except ConfigError as error:
                yield Problem("eval.lengths", f"{length}: {error}")
        elif length >= len(corpus.valid):
            yield Problem(
                "eval.lengths",
                f"a window of {length} needs {length + 1} tokens, but the validation split has "
                f"{len(corpus.valid)}: remove this length, or use more text",
            )


def _splits_too_short(corpus: Corpus, length: int) -> Iterator[Problem]:
    n_train, total = len(corpus.train), sum(map(len, corpus.splits().values()))
    single = [split for split, tokens in corpus.splits().items() if len(tokens) < 2]
    needed = f"a window of {length} needs {length + 1} tokens"
    if total <= length:
        yield Problem("data", f"{needed}, but the whole corpus has {total}: use more text")
    elif single:
        yield Problem("data", f"the {single[0]} split has one token, and needs more: use more text")
    elif n_train <= length:
        remedy = f"set train.seq_len={n_train - 1} or less, or use more text"
        yield Problem("train.seq_len", f"{needed}, but the training split has {n_train}: {remedy}")


def _permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    keys = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(n)
    return np.argsort(keys, kind="stable")
