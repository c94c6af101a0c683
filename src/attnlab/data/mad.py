"""Tasks of MAD: copying, recall, memorization, compression (Poli et al. 2024, arXiv:2403.17844).

    selective_copying   tokens among blanks, then the tokens alone, in their order
    in_context_recall   pairs in a row; a key that occurs again is answered by its value
    memorization        keys of a fixed map, each answered by its value
    compression         tokens, all of which are recovered from the vector of the last one

    3 _ _ 7 _ 3 _ C _ _ _     selective_copying: answers after the three last blanks: 3, 7, 3
    2 9 5 8 2 9 5 8           in_context_recall: answers after the second 2 and 5: 9, 8
    7 I 3 I                   memorization: answers after each I (insert): the values of 7 and 3
    5 0 2 C                   compression: answers after C: 5, 0 and 2

Selective copying is that of Gu & Dao 2023 (Mamba, arXiv:2312.00752): places and tokens are drawn
uniformly, and a token may occur again. With `noise`, in-context recall is MAD's noisy recall: pairs
are replaced by two tokens of a vocabulary of their own. Fuzzy recall is in `recall`.

MAD's compression has a decoder: an MLP of two layers, which reads the vector of C, and the code of
a position, and gives the token there. Here the output projection of the language model reads the
same vector: the token i places before C has ids of its own, and the softmax is over these.

Shapes: N sequences, T tokens of a sequence, K pairs, or tokens to copy; V keys of the vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np

from attnlab.config import Problem
from attnlab.data.source import Examples
from attnlab.data.task import Draws, Integers, Task, blank
from attnlab.data.tokenizer import Ids, Tokenizer


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


@dataclass(frozen=True, kw_only=True)
class InContextRecall(Task):
    """Pairs of keys and values in a row, or noise; the last pair repeats an earlier one.

    A key has one value in a sequence. Keys, values and noise are consecutive ranges of ids. The
    answers count after keys that have occurred before; in training every next token is an answer,
    as in the original, unless `train_on` is "answers".
    """

    length: int = 128
    keys: int = 8  # number of keys, and of values
    noise: float = 0.0  # probability of noise in the place of a pair
    noise_tokens: int = 0  # number of tokens of noise; with noise, at least 1
    train_on: Literal["next_tokens", "answers"] = "next_tokens"
    train_examples: int = 12_800
    held_out_examples: int = 1_280
    tokenizer: Tokenizer = field(default_factory=lambda: Ids(vocab_size=32))

    def problems(self) -> Iterator[Problem]:
        if self.keys < 1:
            yield Problem("keys", f"must be at least 1, got {self.keys}")
        if not 0 <= self.noise < 1:
            yield Problem("noise", f"must be in [0, 1), got {self.noise}")
        if self.noise_tokens < (least := int(self.noise > 0)):
            yield Problem("noise_tokens", f"must be at least {least}, got {self.noise_tokens}")
        yield from super().problems()
        if self.length < 4 or self.length % 2:
            yield Problem("length", f"must be even and at least 4, got {self.length}")

    @property
    def tokens_needed(self) -> int:
        return 2 * self.keys + self.noise_tokens

    @property
    def chance(self) -> float:
        return 1 / self.keys

    def generate(self, draws: Draws, n: int, *, training: bool) -> Examples:
        made, pairs, row_N = blank(n, self.length), self.length // 2, np.arange(n)
        value_NV = self.keys + draws.below(self.keys, n, self.keys)
        key_NK = draws.below(self.keys, n, pairs)
        is_pair_NK = draws.uniform(n, pairs) >= self.noise
        is_pair_NK[row_N, draws.below(pairs - 1, n)] = True
        is_pair_NK[:, -1] = True
        likely_NK = draws.uniform(n, pairs - 1) * is_pair_NK[:, :-1]
        key_NK[:, -1] = key_NK[row_N, likely_NK.argmax(1)]
        noise_N2K = 2 * self.keys + draws.below(max(1, self.noise_tokens), n, 2, pairs)
        made.tokens_NT[:, 0::2] = np.where(is_pair_NK, key_NK, noise_N2K[:, 0])
        value_NK = np.take_along_axis(value_NV, key_NK, 1)
        made.tokens_NT[:, 1::2] = np.where(is_pair_NK, value_NK, noise_N2K[:, 1])
        if training and self.train_on == "next_tokens":
            made.answers_NT[:, :-1] = made.tokens_NT[:, 1:]
            return made
        for key in range(self.keys):
            here_NK = is_pair_NK & (key_NK == key)
            again_NK = here_NK & (here_NK.cumsum(1) > 1)
            made.answers_NT[:, 0::2][again_NK] = value_NK[again_NK]
        return made


@dataclass(frozen=True, kw_only=True)
class Memorization(Task):
    """Keys of one map, which the seed draws, each before a token that asks for its value.

    Nothing in a sequence tells the value: it has to be learnt. The map is that of all splits.
    """

    length: int = 32
    keys: int = 127  # number of keys, and of values
    train_examples: int = 256
    held_out_examples: int = 256
    tokenizer: Tokenizer = field(default_factory=lambda: Ids(vocab_size=256))

    disjoint: ClassVar[bool] = False  # facts are for training, and so are sequences of them

    def problems(self) -> Iterator[Problem]:
        if self.keys < 1:
            yield Problem("keys", f"must be at least 1, got {self.keys}")
        yield from super().problems()
        if self.length < 2:
            yield Problem("length", f"must be at least 2, got {self.length}")

    @property
    def tokens_needed(self) -> int:
        return 2 * self.keys + 1

    @property
    def chance(self) -> float:
        return 1 / self.keys

    def value_of_key(self) -> Integers:
        """Return the value of each key, shape (keys,)."""
        return self.keys + Draws(self.seed, 4).order(1, self.keys)[0]

    def generate(self, draws: Draws, n: int, *, training: bool) -> Examples:
        del training
        made, asked = blank(n, self.length), self.length // 2
        key_NK = draws.below(self.keys, n, asked)
        made.tokens_NT[:] = 2 * self.keys
        made.tokens_NT[:, 0 : 2 * asked : 2] = key_NK
        made.answers_NT[:, 1 : 2 * asked : 2] = self.value_of_key()[key_NK]
        return made


@dataclass(frozen=True, kw_only=True)
class Compression(Task):
    """Tokens in a row; after the last one, which asks for it, all others are the answers.

    With v values, the input has ids 0 to v - 1, the answer i places before the end those from i v
    on, and the last id asks. Sequences longer than those of training have answers never trained.
    """

    length: int = 32
    values: int = 15  # number of different tokens
    train_examples: int = 12_800
    held_out_examples: int = 1_280
    tokenizer: Tokenizer = field(default_factory=lambda: Ids(vocab_size=481))

    def problems(self) -> Iterator[Problem]:
        if self.values < 2:
            yield Problem("values", f"must be at least 2, got {self.values}")
        yield from super().problems()
        if self.length < 2:
            yield Problem("length", f"must be at least 2, got {self.length}")

    @property
    def tokens_needed(self) -> int:
        return self.values * self.length + 1

    @property
    def chance(self) -> float:
        return 1 / self.values

    def generate(self, draws: Draws, n: int, *, training: bool) -> Examples:
        del training
        made = replace(blank(n, self.length), choices=self.values)
        made.tokens_NT[:, :-1] = draws.below(self.values, n, self.length - 1)
        made.tokens_NT[:, -1] = self.tokenizer.vocab_size - 1
        first_T = self.values * np.arange(self.length - 1, 0, -1)
        made.answers_NT[:, :-1] = first_T + made.tokens_NT[:, :-1]
        return made
