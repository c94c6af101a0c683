"""A compact letter display: two variants share a letter exactly if they are not distinguishable.

Piepho 2004. A letter is a set of variants of which no two are distinguishable. Unlike groups of
equal rank, letters cannot contradict an interval.
"""

from collections.abc import Sequence
from string import ascii_lowercase

import numpy as np
from numpy.typing import NDArray


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
