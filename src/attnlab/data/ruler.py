"""Tasks of RULER over token ids (Hsieh et al. 2024, arXiv:2404.06654).

    variable_tracking   chains of assignments among filler; all variables of one value are asked for
    common_words        words in random order; those that occur most often are asked for

    f x = 7 f y = x f ? 7 _     variable_tracking: answers after 7 and the blank: x, y
    b a b c b d ?               common_words: the answer after ?: b

RULER's needle is `recall.Needle`. There a language model reads a question in words; here a token
asks, and no answer is shown to the model before the next one. Longer sequences (`eval.lengths`)
have more filler, or more words.

Shapes: N sequences, T tokens of a sequence, A assignments, W words that are asked for.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from attnlab.config import Problem
from attnlab.data.source import Examples
from attnlab.data.task import Draws, Task, blank
from attnlab.data.tokenizer import Ids, Tokenizer


@dataclass(frozen=True, kw_only=True)
class VariableTracking(Task):
    """Chains `x = value`, `y = x`, ..., one of which is asked for by its value.

    Held-out accuracy is recorded by hop: 0 is the variable that has the value itself. Of the
    vocabulary a third each is filler, variables and values; the last three ids are =, ? and blank.
    """

    length: int = 128
    chains: int = 2
    hops: int = 2  # assignments of a chain after the first one
    train_examples: int = 50_000
    held_out_examples: int = 2_000
    tokenizer: Tokenizer = field(default_factory=lambda: Ids(vocab_size=99))

    def problems(self) -> Iterator[Problem]:
        if self.chains < 1:
            yield Problem("chains", f"must be at least 1, got {self.chains}")
        if not 0 <= self.hops < 100:
            yield Problem("hops", f"must be from 0 to 99, got {self.hops}")
        yield from super().problems()
        if self.length < (least := 3 * self._assignments + 2 + self.hops):
            what = f"{self.chains} chains of {self.hops} hops"
            yield Problem("length", f"{what} need at least {least}, got {self.length}")

    @property
    def _assignments(self) -> int:
        return self.chains * (self.hops + 1)

    @property
    def tokens_needed(self) -> int:
        return 3 * self._assignments + 3

    @property
    def chance(self) -> float:
        return 1 / ((self.tokenizer.vocab_size - 3) // 3)

    def generate(self, draws: Draws, n: int, *, training: bool) -> Examples:
        del training
        of_chain, total, row_N1 = self.hops + 1, self._assignments, np.arange(n)[:, None]
        third, equals = (self.tokenizer.vocab_size - 3) // 3, self.tokenizer.vocab_size - 3
        made = blank(n, self.length, tuple(f"hop {hop}" for hop in range(of_chain)))
        body = self.length - 2 - self.hops
        made.tokens_NT[:, :body] = draws.below(third, n, body)
        variable_NA = third + draws.distinct(third, n, total)
        value_NC = 2 * third + draws.distinct(third, n, self.chains)
        source_NA = np.roll(variable_NA, 1, 1)
        source_NA[:, ::of_chain] = value_NC
        # chains are interleaved at random, each in its own order
        chain_NA = draws.order(n, total) // of_chain
        in_order_NA = np.argsort(chain_NA, 1, "stable")
        free = body - 2 * total
        place_NA = np.sort(draws.distinct(free, n, total), 1) + 2 * np.arange(total)
        place_NA = np.take_along_axis(place_NA, in_order_NA, 1)
        made.tokens_NT[row_N1, place_NA] = variable_NA
        made.tokens_NT[row_N1, place_NA + 1] = equals
        made.tokens_NT[row_N1, place_NA + 2] = source_NA
        asked_N1 = draws.below(self.chains, n)[:, None]
        made.tokens_NT[:, body] = equals + 1
        made.tokens_NT[:, body + 1 :] = equals + 2
        made.tokens_NT[:, body + 1] = np.take_along_axis(value_NC, asked_N1, 1)[:, 0]
        first_N1 = asked_N1 * of_chain
        made.answers_NT[:, body + 1 :] = variable_NA[row_N1, first_N1 + np.arange(of_chain)]
        made.groups_NT[:, body + 1 :] = np.arange(of_chain)
        return made


@dataclass(frozen=True, kw_only=True)
class CommonWords(Task):
    """Words in random order; the common ones are the answers, in the order of their first places.

    The last two ids of the vocabulary are ? and blank, all others are words.
    """

    length: int = 128
    common: int = 2  # number of common words
    times: int = 12  # that each common word occurs
    other_times: int = 3  # that any other word occurs, at most
    train_examples: int = 50_000
    held_out_examples: int = 2_000
    tokenizer: Tokenizer = field(default_factory=lambda: Ids(vocab_size=256))

    def problems(self) -> Iterator[Problem]:
        if self.common < 1:
            yield Problem("common", f"must be at least 1, got {self.common}")
        if self.other_times < 1:
            yield Problem("other_times", f"must be at least 1, got {self.other_times}")
        if self.times <= self.other_times:
            yield Problem("times", f"must be above other_times={self.other_times}")
        yield from super().problems()
        if self._others < 1:
            what = f"{self.common} words, {self.times} times each, with others and questions"
            least = self.length + 1 - self._others
            yield Problem("length", f"{what} need at least {least}, got {self.length}")

    @property
    def _others(self) -> int:
        """Tokens of other words."""
        return self.length - self.common * (self.times + 1)

    @property
    def tokens_needed(self) -> int:
        return self.common - (-self._others // max(1, self.other_times)) + 2

    @property
    def chance(self) -> float:
        return 1 / (self.tokenizer.vocab_size - 2)

    def generate(self, draws: Draws, n: int, *, training: bool) -> Examples:
        del training
        made, asking = blank(n, self.length), self.length - self.common
        words = self.tokenizer.vocab_size - 2
        word_NK = draws.distinct(words, n, self.tokens_needed - 2)
        common_NW, other_NK = word_NK[:, : self.common], word_NK[:, self.common :]
        other_NK = np.repeat(other_NK, self.other_times, 1)[:, : self._others]
        body_NT = np.concatenate([np.repeat(common_NW, self.times, 1), other_NK], 1)
        body_NT = np.take_along_axis(body_NT, draws.order(n, asking), 1)
        made.tokens_NT[:, :asking] = body_NT
        made.tokens_NT[:, asking] = words
        made.tokens_NT[:, asking + 1 :] = words + 1
        first_WN = np.stack([(body_NT == word_N[:, None]).argmax(1) for word_N in common_NW.T])
        in_order_NW = np.argsort(first_WN.T, 1)
        made.answers_NT[:, asking:] = np.take_along_axis(common_NW, in_order_NW, 1)
        return made
