"""The order that distinguishable pairs leave open: letters, and Kendall's tau of two orders.

A compact letter display (Piepho 2004): two variants share a letter exactly if they are not
distinguishable. Unlike groups of equal rank, letters cannot contradict an interval.

Of two orders of which some pairs are known, Kendall's tau lies between the least and the largest of
all orders that have these pairs.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations
from string import ascii_lowercase
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

MOST_NODES = 10_000  # of a search; one that needs more gives a bound, and so a wider interval

Pair = tuple[int, int]

MOST_SHOWN = 10  # characters, beside a row of a figure


def letter_display(same_VV: NDArray[np.bool_]) -> list[tuple[str, ...]]:
    """Return letters for variants, the best first: i and j share one exactly if `same_VV[i, j]`.

    Each pair that is not distinguishable and has no letter yet gets a new one, which takes in every
    further variant that it can, in order.

    >>> letter_display(np.array([[1, 1, 0], [1, 1, 1], [0, 1, 1]], bool))
    [('a',), ('a', 'b'), ('b',)]
    """
    count = len(same_VV)
    same = [sum(1 << int(j) for j in np.flatnonzero(row)) | 1 << i for i, row in enumerate(same_VV)]
    covered = [1 << i for i in range(count)]
    found = list[int]()
    for i in range(count):
        while (left := same[i] & ~covered[i] & -(1 << i)) or not any(of >> i & 1 for of in found):
            members = 1 << i
            able = same[i]
            if left:
                first = (left & -left).bit_length() - 1
                members |= 1 << first
                able &= same[first]
            for j in range(count):
                if able >> j & 1:
                    members |= 1 << j
                    able &= same[j]
            found.append(members)
            for j in range(count):
                if members >> j & 1:
                    covered[j] |= members
    return [
        tuple(_letter(place) for place, members in enumerate(found) if members >> i & 1)
        for i in range(count)
    ]


def _letter(place: int) -> str:
    """Return a, b, ..., z, then a1, b1 and so on."""
    turn, letter = divmod(place, len(ascii_lowercase))
    return ascii_lowercase[letter] + (str(turn) if turn else "")


def shown(letters: Sequence[str]) -> str:
    """Return letters as they are printed: `ab`, or `z, a1` where one has a number."""
    return ("" if all(len(letter) == 1 for letter in letters) else ", ").join(letters)


@cache
def tau_range(count: int, first: frozenset[Pair], second: frozenset[Pair]) -> tuple[float, float]:
    """Return the least and the largest Kendall's tau of two orders of `count` elements.

    Args:
        count: the number of elements, at least 2.
        first: pairs (i, j) of which i comes before j in the first order, without a circle.
        second: the same for the second order.

    >>> low, high = tau_range(3, frozenset({(0, 1), (1, 2), (0, 2)}), frozenset({(0, 2)}))
    >>> round(low, 3), high
    (0.333, 1.0)
    """
    pairs = list(combinations(range(count), 2))
    least, most = (_most_alike(pairs, count, first, second, sign) for sign in (-1, 1))
    return 2 * -least / len(pairs) - 1, 2 * most / len(pairs) - 1


def _most_alike(
    pairs: Sequence[Pair], count: int, first: frozenset[Pair], second: frozenset[Pair], sign: int
) -> int:
    """Return the largest `sign` times the number of pairs in the same order, over all orders.

    An integer program: x, y = 1 for i before j in the first and in the second order, and z = 1 for
    the same in both. Both orders are transitive.
    """
    from scipy.optimize import Bounds, milp  # slow to import

    n, place = len(pairs), {pair: p for p, pair in enumerate(pairs)}
    low, high = np.zeros(3 * n), np.ones(3 * n)
    for start, decided in ((0, first), (n, second)):
        for i, j in decided:
            at = start + place[min(i, j), max(i, j)]
            low[at] = high[at] = i < j
    lines, least, most = list[np.ndarray[Any, Any]](), list[float](), list[float]()

    def between(bottom: float, top: float, terms: Mapping[int, int]) -> None:
        line = np.zeros(3 * n)
        line[list(terms)] = list(terms.values())
        lines.append(line)
        least.append(bottom)
        most.append(top)

    for p in range(n):
        x, y, z = p, n + p, 2 * n + p
        between(-math.inf, 1, {z: 1, x: 1, y: -1})
        between(-math.inf, 1, {z: 1, x: -1, y: 1})
        between(-1, math.inf, {z: 1, x: -1, y: -1})
        between(1, math.inf, {z: 1, x: 1, y: 1})
    for i, j, k in combinations(range(count), 3):
        for start in (0, n):
            ij, jk, ik = (start + place[pair] for pair in ((i, j), (j, k), (i, k)))
            between(0, 1, {ij: 1, jk: 1, ik: -1})
    found = milp(
        c=np.repeat([0, 0, -sign], n),
        integrality=np.ones(3 * n),
        bounds=Bounds(*cast("Any", (low, high))),
        constraints=(np.array(lines), least, most),
        options={"node_limit": MOST_NODES},
    )
    assert found.mip_dual_bound is not None, found.message
    return math.floor(-found.mip_dual_bound + 1e-6)


def first_of(text: str) -> str:
    """Return letters as `shown` prints them, at most `MOST_SHOWN` characters: more leave no room.

    >>> first_of("abc"), first_of("y, z, a1, b1, c1")
    ('abc', 'y, z, a1…')
    """
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 1].rstrip(', ')}…"
