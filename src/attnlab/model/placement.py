"""Where in a model a few layers go: indices from 0, ascending, for `with_mechanisms(layers=...)`.

base.with_mechanisms(GatedDeltaNet(), layers=dict.fromkeys(spread_evenly(12, 2), attention))
"""


def every_nth(n_layers: int, n: int) -> tuple[int, ...]:
    """The last of every n layers.

    >>> every_nth(12, 4)
    (3, 7, 11)
    """
    if n < 1:
        raise ValueError(f"every n-th layer: n must be at least 1, got {n}")
    return tuple(range(n - 1, n_layers, n))


def first_n(n_layers: int, n: int) -> tuple[int, ...]:
    """
    >>> first_n(12, 3)
    (0, 1, 2)
    """
    return tuple(range(_checked(n_layers, n)))


def last_n(n_layers: int, n: int) -> tuple[int, ...]:
    """
    >>> last_n(12, 4), last_n(12, 0)
    ((8, 9, 10, 11), ())
    """
    return tuple(range(n_layers - _checked(n_layers, n), n_layers))


def spread_evenly(n_layers: int, n: int) -> tuple[int, ...]:
    """The last of each of n groups of layers, which are as alike in size as can be.

    >>> spread_evenly(12, 2), spread_evenly(12, 5), spread_evenly(12, 0)
    ((5, 11), (1, 3, 6, 8, 11), ())
    """
    return tuple(group * n_layers // n - 1 for group in range(1, _checked(n_layers, n) + 1))


def first_middle_last(n_layers: int) -> tuple[int, ...]:
    """Of two layers in the middle the lower one.

    >>> first_middle_last(12), first_middle_last(5), first_middle_last(2)
    ((0, 5, 11), (0, 2, 4), (0, 1))
    """
    return tuple(sorted({0, (n_layers - 1) // 2, n_layers - 1}))


def _checked(n_layers: int, n: int) -> int:
    if not 0 <= n <= n_layers:
        raise ValueError(f"{n} of {n_layers} layers: must be from 0 to {n_layers}")
    return n
