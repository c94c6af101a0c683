"""Recall tasks: tokens that were read earlier in the sequence are asked for later.

    mqar                key-value pairs, then the keys again, each answered by its value
    selective_copying   tokens among blanks, then the tokens alone, in their order

`mqar` is multi-query associative recall (Arora et al. 2023, Zoology, arXiv:2312.04927):

    k1 v1 k2 v2 ... 0 k2 0 0 k1 0 ...     answers after the second k2 and k1: v2, v1

Keys and values of a sequence are different tokens of the lower and upper half of the vocabulary.
Queries stand at even distances from the end of the pairs; the i-th place has the weight i^(a - 1)
of a power law with a = `power`, so that most queries come early. A model that recalls that there
was a value, but not whose, has an accuracy of 1 / pairs.

`selective_copying` is that of Gu & Dao 2023 (Mamba, arXiv:2312.00752) in the layout of Poli et al.
2024 (MAD, arXiv:2403.17844):

    3 _ _ 7 _ 3 _ C _ _ _     answers after the three last blanks: 3, 7, 3

Places and tokens are drawn uniformly; a token may occur again.

Shapes: N sequences, T tokens of a sequence, K pairs, or tokens to copy.
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
class SelectiveCopying(Task):
    """Tokens among blanks are copied in their order, after a token that asks for it.

    The last two ids of the vocabulary are the blank and the token that asks.
    """

    length: int = 256
    tokens_to_copy: int = 16  # per sequence
    train_examples: int = 12_800
    held_out_examples: int = 1_280
    tokenizer: Tokenizer = field(default_factory=lambda: Ids(vocab_size=16))

    def problems(self) -> Iterator[Problem]:
        if self.tokens_to_copy < 1:
            yield Problem("tokens_to_copy", f"must be at least 1, got {self.tokens_to_copy}")
        yield from super().problems()
        if self.length < (least := 2 * self.tokens_to_copy + 1):
            yield Problem(
                "length", f"{self.tokens_to_copy} tokens need at least {least}, got {self.length}"
            )

    @property
    def tokens_needed(self) -> int:
        return 4

    @property
    def chance(self) -> float:
        return 1 / (self.tokenizer.vocab_size - 2)

    def generate(self, draws: Draws, n: int, *, training: bool) -> Examples:
        del training
        made, copied = blank(n, self.length), self.tokens_to_copy
        ids = self.tokenizer.vocab_size - 2
        asking = self.length - copied - 1
        made.tokens_NT[:] = ids
        made.tokens_NT[:, asking] = ids + 1
        token_NK = draws.below(ids, n, copied)
        place_NK = np.sort(draws.order(n, asking)[:, :copied], 1)
        np.put_along_axis(made.tokens_NT, place_NK, token_NK, 1)
        made.answers_NT[:, -copied:] = token_NK
        return made
