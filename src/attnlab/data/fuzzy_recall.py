"""MAD's fuzzy recall: keys and values of several tokens (Poli et al. 2024, arXiv:2403.17844).

    2 | 9 5 | 2 8 | 9 7 | 2 | 9 5     keys of 0 to 6 and values of 7 to 14, of one or two tokens
                                      answers after the last key 2: 9; after this 9: 5

A run of key tokens is a key, and the run of value tokens after it its value: 2 and 2 8 are two
keys. Tokens of a key differ, and so do those of a value. A key has one value in a sequence; where
it occurs again, each token of its value is an answer. Sequences are padded at the beginning.

Shapes: N sequences, T tokens of a sequence, P pairs, M tokens of a pair at most.
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
class FuzzyRecall(Task):
    """Pairs of a key and a value, each of one to several tokens; the last pair repeats one.

    Lengths are uniform, but in held-out sequences every key has the most tokens, as in the
    original. Key tokens, value tokens and the token of padding are consecutive ranges of ids. In
    training every next token is an answer, unless `train_on` is "answers".
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
