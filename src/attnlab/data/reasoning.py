"""Reasoning without intermediate tokens: hops in a permutation, and arithmetic modulo a prime.

    depo    the successor of a node after several hops in a directed cycle, given as edges
    mano    the value of an expression in prefix form, modulo a prime

    3 7 5 3 7 5  H2 3            depo: edges 3->7, 5->3, 7->5; the answer after 3 is 5, two hops on
    * + 2 3 4 =                  mano: the answer after = is (2 + 3) 4 modulo 23: 20

Both are in the manner of Allen-Zhu 2025, "Physics of Language Models: Part 4.1, Architecture Design
and the Magic of Canon Layers": Depo asks for the depth of reasoning, Mano for the manipulation of
knowledge, since the tables of sums and products have to be learnt. There node names can have
several tokens, the number of nodes of a sequence varies, and answers are shown before the next
question. Here a node is a token, the length decides the number of nodes, and no answer is shown.

Shapes: N sequences, T tokens of a sequence, E nodes, Q questions, V values, K operations.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from math import comb

import numpy as np
from numpy.typing import NDArray

from attnlab.config import Problem
from attnlab.data.source import Examples
from attnlab.data.task import Draws, Integers, Task, blank
from attnlab.data.tokenizer import Ids, Tokenizer


@dataclass(frozen=True, kw_only=True)
class Depo(Task):
    """A cycle of nodes as edges in random order, then questions: a number of hops, and a node.

    Held-out accuracy is recorded by hops. The last ids of the vocabulary are the numbers of hops,
    all others are names of nodes. Longer sequences (`eval.lengths`) have more nodes.
    """

    length: int = 40
    hops: tuple[int, ...] = (1, 2, 4)
    questions: int = 4
    train_examples: int = 100_000
    held_out_examples: int = 2_000
    tokenizer: Tokenizer = field(default_factory=lambda: Ids(vocab_size=128))

    def problems(self) -> Iterator[Problem]:
        if not self.hops or len(set(self.hops)) < len(self.hops) or min(self.hops) < 1:
            yield Problem("hops", "name at least one number of hops, from 1, each once")
            return
        if len(self.hops) > 100:
            yield Problem("hops", f"name at most 100, got {len(self.hops)}")
        if self.questions < 1:
            yield Problem("questions", f"must be at least 1, got {self.questions}")
        yield from super().problems()
        least = 2 * (max(self.hops) + 1 + self.questions)
        if self.length < least or self.length % 2:
            what = f"more than {max(self.hops)} nodes and {self.questions} questions"
            yield Problem("length", f"{what} need an even number from {least}, got {self.length}")

    @property
    def nodes(self) -> int:
        """Number of nodes of a sequence."""
        return self.length // 2 - self.questions

    @property
    def tokens_needed(self) -> int:
        return self.nodes + len(self.hops)

    @property
    def chance(self) -> float:
        return 1 / (self.tokenizer.vocab_size - len(self.hops))

    def generate(self, draws: Draws, n: int, *, training: bool) -> Examples:
        del training
        names, hops = tuple(f"{k} hops" for k in self.hops), np.array(self.hops)
        made, edges = blank(n, self.length, names), 2 * self.nodes
        row_N1 = np.arange(n)[:, None]
        names_of_nodes = self.tokenizer.vocab_size - len(hops)
        node_NE = draws.distinct(names_of_nodes, n, self.nodes)  # in the order of the cycle
        place_NE = draws.order(n, self.nodes)
        made.tokens_NT[:, 0:edges:2] = node_NE[row_N1, place_NE]
        made.tokens_NT[:, 1:edges:2] = node_NE[row_N1, (place_NE + 1) % self.nodes]
        hop_NQ = draws.below(len(hops), n, self.questions)
        from_NQ = draws.below(self.nodes, n, self.questions)
        made.tokens_NT[:, edges::2] = names_of_nodes + hop_NQ
        made.tokens_NT[:, edges + 1 :: 2] = node_NE[row_N1, from_NQ]
        made.answers_NT[:, edges + 1 :: 2] = node_NE[row_N1, (from_NQ + hops[hop_NQ]) % self.nodes]
        made.groups_NT[:, edges + 1 :: 2] = hop_NQ
        return made


@dataclass(frozen=True, kw_only=True)
class Mano(Task):
    """An expression of sums, differences and products in prefix form; the answer is its value.

    The number of operations is uniform from 1 to (`length` - 2) / 2, and expressions of one number
    are equally frequent in shape; padding stands before. Held-out accuracy is recorded by number
    of operations. Short expressions are few: once all are for training, none is held out. Ids are
    the numbers, +, -, *, = and padding. 0 is the most frequent value, since products have it.
    """

    length: int = 12
    modulus: int = 23
    train_examples: int = 200_000
    held_out_examples: int = 2_000
    tokenizer: Tokenizer = field(default_factory=lambda: Ids(vocab_size=32))

    def problems(self) -> Iterator[Problem]:
        if self.modulus < 2:
            yield Problem("modulus", f"must be at least 2, got {self.modulus}")
        yield from super().problems()
        if not 4 <= self.length <= 202 or self.length % 2:
            yield Problem("length", f"must be an even number from 4 to 202, got {self.length}")

    @property
    def tokens_needed(self) -> int:
        return self.modulus + 5

    @property
    def chance(self) -> float:
        return float(_values_VK(self.modulus, self.length // 2 - 1)[:, 1:].mean(1).max())

    def generate(self, draws: Draws, n: int, *, training: bool) -> Examples:
        del training
        most, m = self.length // 2 - 1, self.modulus
        made = blank(n, self.length, tuple(f"{k} operations" for k in range(1, most + 1)))
        count_N = 1 + draws.below(most, n)
        number_NT, kind_NT = draws.below(m, n, self.length), draws.below(3, n, self.length)
        splits_NT = draws.uniform(n, self.length)
        # operations left and operands that are due: every shape of the expression is as likely
        left_N, due_N = count_N.copy(), np.ones(n, np.int64)
        for t in range(self.length - 1):
            begun_N = t >= self.length - 2 - 2 * count_N
            chance_N = (due_N + 1) * left_N / np.maximum(1, (2 * left_N + due_N - 1) * due_N)
            opens_N = splits_NT[:, t] < chance_N
            token_N = np.where(opens_N, m + kind_NT[:, t], number_NT[:, t])
            made.tokens_NT[:, t] = np.where(begun_N, token_N, m + 4)
            left_N -= begun_N & opens_N
            due_N += np.where(begun_N, np.where(opens_N, 1, -1), 0)
        made.tokens_NT[:, -1] = m + 3
        made.answers_NT[:, -1] = self._values(made)
        made.groups_NT[:] = (count_N - 1)[:, None]
        return made

    def _values(self, made: Examples) -> Integers:
        """Return the value of each expression, shape (N,): read backwards, with a stack."""
        n, m, row_N = len(made.tokens_NT), self.modulus, np.arange(len(made.tokens_NT))
        stack_NT, top_N = np.zeros((n, self.length + 2), np.int64), np.ones(n, np.int64)
        for token_N in made.tokens_NT[:, -2::-1].T:
            first_N, second_N = stack_NT[row_N, top_N], stack_NT[row_N, top_N - 1]
            results = (first_N + second_N, first_N - second_N, first_N * second_N)
            is_operation_N = (token_N >= m) & (token_N < m + 3)
            result_N = np.choose(np.where(is_operation_N, token_N - m, 0), results) % m
            top_N += np.where(token_N < m, 1, np.where(is_operation_N, -1, 0))
            pushed_N = np.where(is_operation_N, result_N, token_N)
            stack_NT[row_N, top_N] = np.where(token_N < m + 3, pushed_N, stack_NT[row_N, top_N])
        return stack_NT[:, 2]


@lru_cache
def _values_VK(modulus: int, most: int) -> NDArray[np.float64]:
    """Return how frequent each value of `Mano`'s expressions is, by number of operations from 0.

    With k operations, i of them in the first operand, of which Catalan(i) Catalan(k - 1 - i) of
    Catalan(k) shapes are, values add, subtract or multiply, each in a third of the expressions.
    """
    value_V = np.arange(modulus)
    first_VV, second_VV = value_V[:, None], value_V[None, :]
    results = (first_VV + second_VV, first_VV - second_VV, first_VV * second_VV)
    found_VK = np.full((modulus, most + 1), 1 / modulus)
    shapes_K = [comb(2 * k, k) // (k + 1) for k in range(most + 1)]
    for k in range(1, most + 1):
        split_K = np.array([shapes_K[i] * shapes_K[k - 1 - i] / shapes_K[k] for i in range(k)])
        both_VV = (found_VK[:, :k] * split_K) @ found_VK[:, k - 1 :: -1][:, :k].T
        found_VK[:, k] = 0.0
        for result_VV in results:
            of_result_V = np.bincount((result_VV % modulus).ravel(), both_VV.ravel(), modulus)
            found_VK[:, k] += of_result_V / len(results)
    return found_VK
