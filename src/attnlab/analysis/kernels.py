"""What a kernel buys: variants that differ in nothing else are one function at two prices.

A setting called `kernel`, of a mechanism or of any other part, says by which of several equal forms
something is computed. What it was asked to be is read; what ran is in each run's summary.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from attnlab.analysis.costs import COUNTED, TIMED
from attnlab.analysis.sentences import amount
from attnlab.analysis.table import Table

KERNEL = "kernel"
PRICES = (("step_time", "seconds", "a step", TIMED), ("peak_memory_bytes", "bytes", "", COUNTED))


def without_kernels(settings: Any) -> Any:
    """The same settings but for every `kernel` in them, at any depth.

    >>> without_kernels({"mechanisms": [{"kind": "mha", "kernel": "flash"}], "d_model": 8})
    {'mechanisms': [{'kind': 'mha'}], 'd_model': 8}
    """
    if isinstance(settings, Mapping):
        items = cast("Mapping[str, Any]", settings).items()
        return {name: without_kernels(value) for name, value in items if name != KERNEL}
    if isinstance(settings, list | tuple):
        return [without_kernels(value) for value in cast("Sequence[Any]", settings)]
    return settings


def kernels_in(settings: Any) -> tuple[str, ...]:
    """Every `kernel` in them, in order.

    >>> kernels_in({"mechanisms": [{"kernel": "flash"}, {"kernel": "math"}], "d_model": 8})
    ('flash', 'math')
    """
    if isinstance(settings, Mapping):
        items = cast("Mapping[str, Any]", settings).items()
        found = [(str(v),) if name == KERNEL else kernels_in(v) for name, v in items]
    elif isinstance(settings, list | tuple):
        found = [kernels_in(value) for value in cast("Sequence[Any]", settings)]
    else:
        return ()
    return tuple(kernel for inside in found for kernel in inside)


def differing(names: Sequence[str], configs: Mapping[str, Any]) -> tuple[str, ...]:
    """By name, the kernels that not all have.

    >>> differing(("a", "b"), {"a": {"kernel": "math"}, "b": {"kernel": "flash"}})
    ('math', 'flash')
    """
    found = [dict.fromkeys(kernels_in(configs[name])) for name in names]
    common = set.intersection(*map(set, found))
    return tuple(", ".join(k for k in of_one if k not in common) or "the rest" for of_one in found)


def bought(names: Sequence[str], kernels: Sequence[str], table: Table) -> str:
    """What each kernel saves against that of the first name. Empty where nothing was measured."""
    if len(table.devices) > 1:
        return ""
    numbers = {v.name: v.numbers for v in table.variants}
    first, said = names[0], list[str]()
    for name, kernel in zip(names[1:], kernels[1:], strict=True):
        both = [price for price in PRICES if all(price[0] in numbers[n] for n in (first, name))]
        parts = [
            _saved(numbers[first][key].mean, numbers[name][key].mean, unit, per, resolution)
            for key, unit, per, resolution in both
        ]
        if parts:
            who = f"{name} (kernel {kernel}) against {first} (kernel {kernels[0]})"
            said.append(f"{who}: {'; '.join(parts)}.")
    return " ".join(said)


def _saved(before: float, after: float, unit: str, per: str, resolution: float) -> str:
    """`1.2 ms a step less (3.1, not 4.3)`, or that it is the same within the resolution."""
    what = {"seconds": "time", "bytes": "peak memory"}[unit]
    ends = f"{amount(after, unit)}, not {amount(before, unit)}"
    if abs(after - before) <= resolution * max(before, after):
        return f"the same {what} within {resolution:.0%} ({ends})"
    how = "less" if after < before else "more"
    by = " ".join(filter(None, (amount(abs(after - before), unit), per)))
    return f"{by} {how}{'' if unit == 'seconds' else ' ' + what} ({ends})"
