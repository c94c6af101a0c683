"""Recall tasks: what stood beside a token earlier in the sequence is asked for later.

    mqar      key-value pairs, then the keys again, each answered by its value
    needle    one pair, or several, anywhere among filler; the last token asks for one
    fuzzy     pairs of a key and a value of several tokens; the last pair repeats one

`mqar` is multi-query associative recall (Arora et al. 2023, Zoology, arXiv:2312.04927):

    k1 v1 k2 v2 ... 0 k2 0 0 k1 0 ...     answers after the second k2 and k1: v2, v1

Keys and values of a sequence are different tokens of the lower and upper half of the vocabulary.
Queries stand at even distances from the end of the pairs; the i-th place has the weight i^(a - 1)
of a power law with a = `power`, so that most queries come early. A model that recalls that there
was a value, but not whose, has an accuracy of 1 / pairs.

`needle` is that of RULER in its synthetic form (Hsieh et al. 2024, arXiv:2404.06654):

    f f 4 8 f f 4     the answer after the last 4 is 8

`fuzzy_recall` is that of MAD (Poli et al. 2024, arXiv:2403.17844):

    2 | 9 5 | 2 8 | 9 7 | 2 | 9 5     keys of 0 to 6 and values of 7 to 14, of one or two tokens
                                      answers after the last key 2: 9; after this 9: 5

A run of key tokens is a key, and the run of value tokens after it its value: 2 and 2 8 are two
keys. Tokens of a key differ, and so do those of a value. A key has one value in a sequence; where
it occurs again, each token of its value is an answer. Sequences are padded at the beginning.

Shapes: N sequences, T tokens of a sequence, K or P pairs, M tokens of a pair at most.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

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


@dataclass(frozen=True, kw_only=True)
class FuzzyRecall(Task):
    """MAD's fuzzy recall: keys and values of several tokens (Poli et al. 2024, arXiv:2403.17844).

    The last pair repeats one. Lengths are uniform, but in held-out sequences every key has the most
    tokens, as in the original. Key tokens, value tokens and the token of padding are consecutive
    ranges of ids. In training every next token is an answer, unless `train_on` is "answers".
    """

    length: int = 128
    key_vocab: int = 7  # number of tokens that keys are made of
    value_vocab: int = 8  # number of tokens that values are made of
    longest_key: int = 3  # tokens
    longest_value: int = 3  # tokens
    train_on: Literal["next_tokens", "answers"] = "next_tokens"
    train_examples: int = 12_800
    held_out_examples: int = 1_280
    tokenizer: Tokenizer = field(default_factory=lambda: Ids(vocab_size=16))

    def problems(self) -> Iterator[Problem]:
        for name in ("key", "value"):
            longest, vocab = getattr(self, f"longest_{name}"), getattr(self, f"{name}_vocab")
            if longest < 1:
                yield Problem(f"longest_{name}", f"must be at least 1, got {longest}")
            elif vocab < longest:
                why = f"the tokens of a {name} differ, and there are {longest}"
                yield Problem(f"{name}_vocab", f"must be at least {longest}, got {vocab}: {why}")
        yield from super().problems()
        if self.length < (least := 2 * (self.longest_key + self.longest_value)):
            pairs = f"two pairs of {self.longest_key} and {self.longest_value} tokens"
            yield Problem("length", f"{pairs} need at least {least}, got {self.length}")

    @property
    def tokens_needed(self) -> int:
        return self.key_vocab + self.value_vocab + 1

    @property
    def chance(self) -> float:
        return 1 / self.value_vocab

    def generate(self, draws: Draws, n: int, *, training: bool) -> Examples:
        made, pairs = blank(n, self.length), self.length // 2
        key_NPM = draws.distinct(self.key_vocab, n * pairs, self.longest_key)
        key_NPM = key_NPM.reshape(n, pairs, self.longest_key)
        size_NP = np.full((n, pairs), self.longest_key)
        if training:
            size_NP = 1 + draws.below(self.longest_key, n, pairs)
        value_NPM = draws.distinct(self.value_vocab, n * pairs, self.longest_value)
        value_NPM = self.key_vocab + value_NPM.reshape(n, pairs, self.longest_value)
        value_size_NP = 1 + draws.below(self.longest_value, n, pairs)

        code_NP = _codes(key_NPM, size_NP, self.key_vocab)
        first_NP = _first_equal(code_NP)  # its value is that of all
        value_NPM = np.take_along_axis(value_NPM, first_NP[:, :, None], 1)
        value_size_NP = np.take_along_axis(value_size_NP, first_NP, 1)

        # as many pairs as leave room for one more, which repeats one of them
        end_NP = (size_NP + value_size_NP).cumsum(1)
        kept_NP = end_NP <= self.length - self.longest_key - self.longest_value
        asked_N1 = (draws.uniform(n, pairs) * kept_NP).argmax(1)[:, None]
        token_NPM = np.concatenate([key_NPM, value_NPM], 2)
        token_NPM = np.concatenate([token_NPM, token_NPM[np.arange(n)[:, None], asked_N1]], 1)
        sizes_NP = [
            np.concatenate([of_NP, np.take_along_axis(of_NP, asked_N1, 1)], 1)
            for of_NP in (size_NP, value_size_NP)
        ]
        kept_NP = np.concatenate([kept_NP, np.ones((n, 1), bool)], 1)
        again_NP = np.concatenate([first_NP < np.arange(pairs), np.ones((n, 1), bool)], 1)

        used_NPM = [
            kept_NP[:, :, None] & (np.arange(longest) < of_NP[:, :, None])
            for longest, of_NP in zip((self.longest_key, self.longest_value), sizes_NP, strict=True)
        ]
        is_answer_NPM = np.concatenate(
            [np.zeros_like(used_NPM[0]), used_NPM[1] & again_NP[:, :, None]], 2
        )
        used_NM = np.concatenate(used_NPM, 2).reshape(n, -1)
        place_NM = self.length - used_NM.sum(1, keepdims=True) + used_NM.cumsum(1) - 1
        made.tokens_NT[:] = self.key_vocab + self.value_vocab
        row_NM = np.broadcast_to(np.arange(n)[:, None], used_NM.shape)
        made.tokens_NT[row_NM[used_NM], place_NM[used_NM]] = token_NPM.reshape(n, -1)[used_NM]
        if training and self.train_on == "next_tokens":
            made.answers_NT[:, :-1] = made.tokens_NT[:, 1:]
            return made
        of_NM = is_answer_NPM.reshape(n, -1)
        rows, places = row_NM[of_NM], place_NM[of_NM]
        made.answers_NT[rows, places - 1] = made.tokens_NT[rows, places]
        return made


def _codes(key_NPM: Integers, size_NP: Integers, vocab: int) -> Integers:
    """Return a number per key, equal for equal keys alone, shape (N, P)."""
    digit_NPM = np.where(np.arange(key_NPM.shape[2]) < size_NP[:, :, None], key_NPM + 1, 0)
    code_NP = np.zeros(size_NP.shape, np.int64)
    for place in range(key_NPM.shape[2]):
        code_NP = code_NP * (vocab + 1) + digit_NPM[:, :, place]
    return code_NP


def _first_equal(code_NP: Integers) -> Integers:
    """Return the place of the first code of the row that equals each, shape (N, P)."""
    order_NP = np.argsort(code_NP, 1, "stable")
    sorted_NP = np.take_along_axis(code_NP, order_NP, 1)
    new_NP = np.ones(sorted_NP.shape, bool)
    new_NP[:, 1:] = sorted_NP[:, 1:] != sorted_NP[:, :-1]
    start_NP = np.maximum.accumulate(np.where(new_NP, np.arange(code_NP.shape[1]), 0), 1)
    first_NP = np.empty_like(order_NP)
    np.put_along_axis(first_NP, order_NP, np.take_along_axis(order_NP, start_NP, 1), 1)
    return first_NP
