"""Recall tasks: what stood beside a token earlier in the sequence is asked for later.

    mqar      key-value pairs, then the keys again, each answered by its value
    needle    one pair, or several, anywhere among filler; the last token asks for one

`mqar` is multi-query associative recall (Arora et al. 2023, Zoology, arXiv:2312.04927):

    k1 v1 k2 v2 ... 0 k2 0 0 k1 0 ...     answers after the second k2 and k1: v2, v1

Keys and values of a sequence are different tokens of the lower and upper half of the vocabulary.
Queries stand at even distances from the end of the pairs; the i-th place has the weight i^(a - 1)
of a power law with a = `power`, so that most queries come early. A model that recalls that there
was a value, but not whose, has an accuracy of 1 / pairs.

`needle` is that of RULER in its synthetic form (Hsieh et al. 2024, arXiv:2404.06654):

    f f 4 8 f f 4     the answer after the last 4 is 8

Shapes: N sequences, T tokens of a sequence, K pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from attnlab.config import Problem
from attnlab.data.source import Examples
from attnlab.data.task import Draws, Integers, Task, blank
from attnlab.data.tokenizer import Ids, Tokenizer


@dataclass(frozen=True, kw_only=True)
class MQAR(Task):
    """Multi-query associative recall; sequences of several numbers of pairs are equally frequent.

    Held-out accuracy is recorded by number of pairs. Where validation has other lengths
    (`eval.lengths`), each has those numbers of `held_out_pairs` that fit into it.
    """

    pairs: tuple[int, ...] = (4,)  # key-value pairs of a training sequence
    held_out_pairs: tuple[int, ...] | None = None  # of a held-out sequence; none: as in training
    power: float = 0.01  # a of the power law of the places of queries; 1: uniform
    random_filler: bool = False  # True: random tokens between the queries, not 0
    tokenizer: Tokenizer = field(default_factory=lambda: Ids(vocab_size=8192))

    def problems(self) -> Iterator[Problem]:
        for name in ("pairs", "held_out_pairs"):
            numbers: tuple[int, ...] | None = getattr(self, name)
            if numbers is None:
                continue
            if not numbers or len(set(numbers)) < len(numbers) or min(numbers) < 1:
                yield Problem(name, "name at least one number of pairs, from 1, each once")
                return
        if not self.power > 0:
            yield Problem("power", f"must be positive, got {self.power}")
        yield from super().problems()
        for name in ("pairs", "held_out_pairs"):
            for pairs in getattr(self, name) or ():
                fewest = name == "held_out_pairs" and pairs > min(self.held_out_pairs or ())
                if 4 * pairs > self.length and not fewest:
                    yield Problem(
                        name,
                        f"{pairs} pairs and their queries need a length of {4 * pairs}, "
                        f"got {self.length}",
                    )

    @property
    def tokens_needed(self) -> int:
        return 2 * max(self.pairs + (self.held_out_pairs or ())) + 2

    @property
    def chance(self) -> float:
        vocab_size = self.tokenizer.vocab_size
        return 1 / (vocab_size - vocab_size // 2)

    def generate(self, draws: Draws, n: int, *, training: bool) -> Examples:
        asked = self.pairs if training else self.held_out_pairs or self.pairs
        numbers = tuple(pairs for pairs in asked if 4 * pairs <= self.length)
        made = blank(n, self.length, tuple(f"{pairs} pairs" for pairs in numbers))
        number_N = draws.below(len(numbers), n)
        for place, pairs in enumerate(numbers):
            self._fill(made, np.flatnonzero(number_N == place), pairs, draws)
            made.groups_NT[number_N == place] = place
        if self.random_filler:
            other_NT = draws.below(self.tokenizer.vocab_size, n, self.length)
            made.tokens_NT[:] = np.where(made.tokens_NT == 0, other_NT, made.tokens_NT)
        return made

    def _fill(self, made: Examples, row_N: Integers, pairs: int, draws: Draws) -> None:
        """Write the pairs and the queries of some sequences that have so many pairs."""
        n, half = len(row_N), self.tokenizer.vocab_size // 2
        key_NK = 1 + draws.distinct(half - 1, n, pairs)
        value_NK = half + draws.distinct(self.tokenizer.vocab_size - half, n, pairs)
        places = (self.length - 2 * pairs) // 2
        weights = np.arange(1, places + 1, dtype=np.float64) ** (self.power - 1)
        query_NK = 2 * (pairs + draws.weighted(weights, n, pairs))
        row_N1 = row_N[:, None]
        made.tokens_NT[row_N1, np.arange(0, 2 * pairs, 2)] = key_NK
        made.tokens_NT[row_N1, np.arange(1, 2 * pairs, 2)] = value_NK
        made.tokens_NT[row_N1, query_NK] = key_NK
        made.answers_NT[row_N1, query_NK] = value_NK


@dataclass(frozen=True, kw_only=True)
class Needle(Task):
    """Pairs of a key and a value at random places among filler; the last token asks for one.

    A third of the vocabulary each is filler, keys and values. Held-out accuracy is recorded by
    depth, the place of the pair that is asked for in quarters of the sequence.
    """

    length: int = 256
    needles: int = 1  # pairs per sequence, of different keys
    train_examples: int = 50_000
    held_out_examples: int = 2_000
    tokenizer: Tokenizer = field(default_factory=lambda: Ids(vocab_size=96))

    def problems(self) -> Iterator[Problem]:
        if self.needles < 1:
            yield Problem("needles", f"must be at least 1, got {self.needles}")
        yield from super().problems()
        if self.length < (least := 2 * self.needles + 1):
            yield Problem(
                "length", f"{self.needles} needles need at least {least}, got {self.length}"
            )

    @property
    def tokens_needed(self) -> int:
        return 3 * self.needles

    @property
    def chance(self) -> float:
        return 1 / (self.tokenizer.vocab_size - 2 * (self.tokenizer.vocab_size // 3))

    def generate(self, draws: Draws, n: int, *, training: bool) -> Examples:
        del training
        third, row_N1 = self.tokenizer.vocab_size // 3, np.arange(n)[:, None]
        made = blank(n, self.length, tuple(f"depth {q} of 4" for q in range(1, 5)))
        made.tokens_NT[:] = draws.below(third, n, self.length)
        key_NK = third + draws.distinct(third, n, self.needles)
        value_NK = 2 * third + draws.below(self.tokenizer.vocab_size - 2 * third, n, self.needles)
        # places of K pairs without overlap are K of the places that are left when pairs are points
        free = self.length - 1 - self.needles
        place_NK = np.sort(draws.distinct(free, n, self.needles), 1) + np.arange(self.needles)
        made.tokens_NT[row_N1, place_NK] = key_NK
        made.tokens_NT[row_N1, place_NK + 1] = value_NK
        asked_N1 = draws.below(self.needles, n)[:, None]
        made.tokens_NT[:, -1:] = np.take_along_axis(key_NK, asked_N1, 1)
        made.answers_NT[:, -1:] = np.take_along_axis(value_NK, asked_N1, 1)
        depth_N1 = np.take_along_axis(place_NK, asked_N1, 1) * 4 // self.length
        made.groups_NT[:] = depth_N1
        return made
