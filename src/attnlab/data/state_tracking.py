"""State tracking: the running product of the elements of a group.

    s_t = s_{t-1} g_t     after g_1, ..., g_t the answer is s_t

A state of fixed size suffices for any length, where the mechanism can update it in the way of the
group. Elements are permutations, which act one after another, (s g)(i) = g(s(i)); ids are their
places in lexicographic order, so that 0 is the identity. Every element is equally frequent.

    parity    Z2, of order 2: whether the number of ones is odd
    s3        all permutations of three things, 6: not commutative, but solvable
    a5        the even permutations of five, 60: the smallest group that is not solvable
    s5        all permutations of five, 120

The word problem of A5 and S5 is complete for NC1 (Barrington 1989). Transformers of fixed depth,
and linear recurrences with diagonal transitions, compute functions of TC0 alone, so they are not
expected to solve it at every length (Merrill, Petty & Sabharwal 2024, arXiv:2404.08819). A linear
recurrence with eigenvalues in [0, 1] cannot compute parity, and one with negative ones can (Grazzi
et al. 2024, arXiv:2411.12537).

A model that sees the last element alone is right after the first token, and then by chance.

Shapes: N sequences, T tokens of a sequence, E elements of the group, P things that are permuted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from attnlab.data.source import Examples
from attnlab.data.task import Draws, Task, blank

FIRST = 8  # tokens of the first group of positions; each further one is as long as all before

THINGS = {"parity": 2, "s3": 3, "a5": 5, "s5": 5}


@dataclass(frozen=True, kw_only=True)
class StateTracking(Task):
    """The running product of random elements; held-out accuracy is recorded by range of positions.

    Longer sequences (`eval.lengths`) tell whether the state is tracked or the length was learnt.
    """

    group: Literal["parity", "s3", "a5", "s5"] = "parity"

    @property
    def tokens_needed(self) -> int:
        return len(products(self.group))

    @property
    def chance(self) -> float:
        return 1 / len(products(self.group))

    def generate(self, draws: Draws, n: int, *, training: bool) -> Examples:
        del training
        product_EE = products(self.group)
        ends = list(_ends(self.length))
        starts = [1, *(end + 1 for end in ends)]
        names = [f"positions {a} to {b}" for a, b in zip(starts, ends, strict=False)]
        made = blank(n, self.length, tuple(names))
        made.tokens_NT[:] = draws.below(len(product_EE), n, self.length)
        state_N = np.zeros(n, np.int64)
        for t in range(self.length):
            state_N = product_EE[state_N, made.tokens_NT[:, t]]
            made.answers_NT[:, t] = state_N
        made.groups_NT[:] = np.searchsorted(ends, np.arange(1, self.length + 1))
        return made


@lru_cache
def products(group: str) -> NDArray[np.int64]:
    """Return the table of products of a group's elements, shape (E, E): `[first, then]`."""
    element_EP = np.array(list(permutations(range(THINGS[group]))))
    if group == "a5":
        element_EP = element_EP[[_is_even(element) for element in element_EP.tolist()]]
    place = {tuple(element): i for i, element in enumerate(element_EP.tolist())}
    product_EEP = element_EP[:, element_EP].swapaxes(0, 1)  # [then][first], so [first, then]
    flat = product_EEP.reshape(-1, element_EP.shape[1]).tolist()
    return np.array([place[tuple(element)] for element in flat]).reshape(len(place), -1)


def _is_even(element: list[int]) -> bool:
    inversions = sum(a > b for i, a in enumerate(element) for b in element[i + 1 :])
    return inversions % 2 == 0


def _ends(length: int) -> Iterator[int]:
    """Yield the last position, from 1, of each group of positions: 8, 16, 32, ..., `length`."""
    end = FIRST
    while end < length:
        yield end
        end *= 2
    yield length
