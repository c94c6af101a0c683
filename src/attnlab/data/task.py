"""A task: sequences of a seeded generator, and the answers that a model is to give in them.

After token t of a sequence the model predicts `answers_NT[:, t]`, a token that need not be the next
one; in a task with `Examples.choices` all are predicted after the last token. Where there is no
answer, the model is neither trained nor measured: loss and accuracy are
those of the answers alone. Sequences are independent, and each is one window.

    nats of a step = sum of the losses of its answers / (sequences * mean answers per sequence)

is the mean loss per answer, and the same however the step is divided.

The same settings give the same sequences on every machine: all choices are made from the raw stream
of PCG64, which NumPy guarantees. No validation or test sequence is also for training, unless the
task says so.

Shapes: N sequences, T tokens of a sequence, A answers of a sequence.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from attnlab.config import Problem
from attnlab.data.codec import TokenIds, id_dtype
from attnlab.data.places import DataError, Places
from attnlab.data.source import Corpus, DataConfig, Examples, Texts
from attnlab.data.tokenizer import Ids, Tokenizer

Integers: TypeAlias = NDArray[np.int64]

NO_ANSWER = -1
STREAM = 0x7461736B  # "task": no other stream of the same seeds, such as the order of windows
SPLITS = ("train", "valid", "test")
ROUNDS = 20  # of replacing held-out sequences that are also for training
MOST_TOKENS = 500_000_000  # of all splits


@dataclass(frozen=True, kw_only=True)
class Task(DataConfig, ABC):
    """The settings that all tasks share. `train.seq_len` must be `length`."""

    length: int = 64  # tokens of a sequence
    train_examples: int = 100_000  # sequences
    held_out_examples: int = 3_000  # sequences of validation, and as many of test
    seed: int = 0
    tokenizer: Tokenizer = field(default_factory=lambda: Ids(vocab_size=128))

    disjoint: ClassVar[bool] = True  # no held-out sequence is also for training

    @abstractmethod
    def generate(self, draws: "Draws", n: int, *, training: bool) -> Examples:
        """Return `n` sequences of `length` tokens, for training or held out."""

    @property
    @abstractmethod
    def chance(self) -> float:
        """The accuracy of guessing: that of the best constant answer."""

    @property
    @abstractmethod
    def tokens_needed(self) -> int:
        """The least size of the vocabulary."""

    def problems(self) -> Iterator[Problem]:
        for name in ("length", "train_examples", "held_out_examples"):
            if (got := getattr(self, name)) < 1:
                yield Problem(name, f"must be at least 1, got {got}")
                return
        if self.length * (self.train_examples + 2 * self.held_out_examples) > MOST_TOKENS:
            yield Problem("train_examples", f"more than {MOST_TOKENS} tokens in all: lower it")
        if self.seed < 0:
            yield Problem("seed", f"must not be negative, got {self.seed}")
        if not isinstance(self.tokenizer, Ids):
            yield Problem("tokenizer", "a task has ids and no text: use ids")
        elif self.tokenizer.vocab_size < self.tokens_needed:
            yield Problem(
                "tokenizer.vocab_size",
                f"must be at least {self.tokens_needed} with these settings, "
                f"got {self.tokenizer.vocab_size}",
            )

    def texts(self, places: Places) -> Texts:
        del places
        raise DataError(f"{self.kind()}: a task has no text")

    def load(self, places: Places) -> Corpus:
        """Return the sequences of all splits. Raises DataError if there are too few different."""
        train = self.generate(Draws(self.seed, 0), self.train_examples, training=True)
        seen = set(_rows(train)) if self.disjoint else set[bytes]()
        made = {"train": train}
        for place, split in enumerate(SPLITS[1:], 1):
            made[split] = self._held_out(Draws(self.seed, place), seen)
        return self._corpus(made, places)

    def at_length(self, length: int) -> Examples:
        """Return validation sequences of another length. Raises ConfigError if it is too short."""
        other = replace(self, length=length, train_examples=1)
        return other.generate(Draws(self.seed, 3, length), self.held_out_examples, training=False)

    def _held_out(self, draws: "Draws", seen: set[bytes]) -> Examples:
        """Return sequences that are not among `seen`, and add them to it."""
        found, n = list[Examples](), 0
        for _ in range(ROUNDS):
            made = self.generate(draws, self.held_out_examples - n, training=False)
            if not self.disjoint:
                return made
            new = [row not in seen for row in _rows(made)]
            seen.update(_rows(made))
            found.append(made.rows(np.flatnonzero(new)))
            n += sum(new)
            if n == self.held_out_examples:
                return replace(
                    made,
                    tokens_NT=np.concatenate([each.tokens_NT for each in found]),
                    answers_NT=np.concatenate([each.answers_NT for each in found]),
                    groups_NT=np.concatenate([each.groups_NT for each in found]),
                )
        raise DataError(
            f"{self.kind()} has too few different sequences of {self.length} tokens for its "
            "training and held-out splits: raise data.length, or lower data.train_examples"
        )

    def _corpus(self, made: Mapping[str, Examples], places: Places) -> Corpus:
        codec = self.tokenizer.fit([], places)
        corpus = self.corpus(
            codec,
            {split: _stream(examples, codec.vocab_size) for split, examples in made.items()},
            n_bytes=dict.fromkeys(made),
            contents={split: _sha256(examples) for split, examples in made.items()},
            examples={split: len(examples.tokens_NT) for split, examples in made.items()},
            chance=self.chance,
        )
        return replace(corpus, examples=made, at_length=self.at_length)


class Draws:
    """Random numbers of a stream, named by whole numbers."""

    def __init__(self, *stream: int) -> None:
        self._raw: Callable[[int], Any] = np.random.PCG64(
            np.random.SeedSequence([STREAM, *stream])
        ).random_raw

    def uniform(self, *shape: int) -> NDArray[np.float64]:
        """Return numbers in [0, 1)."""
        return (self._raw(math.prod(shape)) >> 11).reshape(shape) * 2.0**-53

    def below(self, bound: int, *shape: int) -> Integers:
        """Return whole numbers from 0 to `bound` - 1."""
        return (self.uniform(*shape) * bound).astype(np.int64)

    def order(self, n: int, k: int) -> Integers:
        """Return `n` random orders of 0 to `k` - 1, shape (n, k)."""
        return np.argsort(self.uniform(n, k), axis=1, kind="stable")

    def distinct(self, among: int, n: int, k: int) -> Integers:
        """Return `n` times `k` different numbers below `among` in random order, shape (n, k).

        Floyd's algorithm takes memory for what is chosen alone (Bentley & Floyd 1987).
        """
        assert k <= among
        chosen = np.empty((n, k), np.int64)
        for i, last in enumerate(range(among - k, among)):
            drawn = self.below(last + 1, n)
            taken = (chosen[:, :i] == drawn[:, None]).any(1)
            chosen[:, i] = np.where(taken, last, drawn)
        return np.take_along_axis(chosen, self.order(n, k), 1)

    def weighted(self, weights: NDArray[np.float64], n: int, k: int) -> Integers:
        """Return `n` times `k` different indices, drawn one after another with these weights.

        They are the first of exponential arrivals with these rates, in their order.
        """
        found = [
            np.argsort(-np.log1p(-self.uniform(rows, len(weights))) / weights, 1, "stable")[:, :k]
            for rows in _parts(n, 1 + (1 << 22) // len(weights))
        ]
        return np.concatenate([np.empty((0, k), np.int64), *found])


def blank(n: int, length: int, groups: tuple[str, ...] = ("all",)) -> Examples:
    """Return sequences of token 0 without an answer, to be filled."""
    return Examples(
        tokens_NT=np.zeros((n, length), np.int32),
        answers_NT=np.full((n, length), NO_ANSWER, np.int32),
        groups_NT=np.zeros((n, length), np.int8),
        groups=groups,
    )


def _parts(n: int, most: int) -> Iterator[int]:
    return (min(most, n - first) for first in range(0, n, most))


def _rows(examples: Examples) -> list[bytes]:
    """Return the tokens of each sequence as bytes."""
    rows = np.ascontiguousarray(examples.tokens_NT)
    return [row.tobytes() for row in rows]


def _stream(examples: Examples, vocab_size: int) -> TokenIds:
    """Return all tokens in one row, each sequence with a token after it that is never read."""
    padded = np.pad(examples.tokens_NT, ((0, 0), (0, 1)))
    return padded.astype(id_dtype(vocab_size)).ravel()


def _sha256(examples: Examples) -> str:
    digest = hashlib.sha256()
    for array, dtype in (
        (examples.tokens_NT, "<i4"),
        (examples.answers_NT, "<i4"),
        (examples.groups_NT, "<i4"),
    ):
        digest.update(array.astype(dtype).tobytes())
    digest.update(" ".join(examples.groups).encode())
    return digest.hexdigest()
