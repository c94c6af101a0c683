"""Numbers on the command line, read as settings are: `--steps 10k` is 10,240 steps."""

import math
from collections.abc import Callable
from typing import TypeVar

import typer

from attnlab.config import whole_number

N = TypeVar("N", int, float)


def whole(low: int | None = None, high: int | None = None) -> Callable[[str], int]:
    """Return the parser of an option whose value is a whole number from `low` to `high`."""

    def parse(text: str) -> int:
        value = whole_number(str(text))  # a default is a number already
        if value is None:
            raise _unfit("a whole number, such as 500 or 10k", text)
        return _bounded(value, low, high)

    return parse


def decimal(low: float | None = None) -> Callable[[str], float]:
    """Return the parser of an option whose value is a finite number, at least `low`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise _unfit("a number, such as 0.5", text) from None
        if not math.isfinite(value):
            raise _unfit("a finite number", text)
        return _bounded(value, low, None)

    return parse


def _bounded(value: N, low: N | None, high: N | None) -> N:
    if low is not None and value < low:
        raise typer.BadParameter(f"must be at least {low:,}, got {value:,}")
    if high is not None and value > high:
        raise typer.BadParameter(f"must be at most {high:,}, got {value:,}")
    return value


def _unfit(expected: str, text: str) -> typer.BadParameter:
    return typer.BadParameter(f"expected {expected}; got {text!r}")
