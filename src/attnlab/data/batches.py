"""Order of the windows of tokens in training and evaluation.

Training: an epoch is a seeded permutation of the non-overlapping windows of `seq_len + 1` tokens,
and a batch is a pure function of (seed, step). Tokens that do not fill a last window are not used.
Evaluation: every token except the first is predicted exactly once.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


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


def _permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    keys = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(n)
    return np.argsort(keys, kind="stable")
