"""A property, one measurement of it (a finding), and the result over all its measurements.

A deviation is relative to the largest number of the expected tensor, unless the property counts
something: then it is the difference. It is infinite where a number is not finite or an exception
was raised. Floating-point results may deviate by eps^(2/3), where eps is the spacing of their dtype
at 1: 4e-11 in float64, 2e-5 in float32, 4e-2 in bfloat16. That is many roundings, and far below the
effect of any mistake.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from attnlab.checks.subject import Subject


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of one property of one mechanism."""

    name: str  # the property, as a sentence
    verdict: Literal["pass", "FAIL"]
    deviation: float  # the largest; of those beyond the tolerance if the property is violated
    how_much: str  # the deviation as text, or the message of the exception that was raised
    where: str  # the first violation: position, parameter, shape, mode; "" if there is none
    cause: str  # the usual cause of a violation

    @property
    def holds(self) -> bool:
        return self.verdict == "pass"


class Finding(NamedTuple):
    """One measurement of a property: the deviation, and the largest one that is allowed."""

    where: str
    deviation: float
    limit: float = 0.0
    words: str = ""  # replaces the number in messages

    @property
    def within_limit(self) -> bool:
        return self.deviation <= self.limit

    @property
    def how_much(self) -> str:
        if self.words or not math.isfinite(self.deviation):
            return self.words or "not finite"
        return f"{self.deviation:.2g}"


class Property(NamedTuple):
    """A property of the contract, and the function that measures it."""

    name: str
    cause: str
    findings: Callable[[Subject], Iterator[Finding]]

    def check(self, subject: Subject) -> Result:
        """Return the result. An exception that the mechanism raises violates the property."""
        found = list[Finding]()
        try:
            found.extend(self.findings(subject))
        except Exception as error:
            message = f"raised {type(error).__name__}: {error}".splitlines()[0]
            where = "; ".join(getattr(error, "__notes__", []))
            found.append(Finding(where, math.inf, words=message))
        violations = [finding for finding in found if not finding.within_limit]
        worst = max(violations or found, key=_size, default=Finding("", 0.0))
        return Result(
            name=self.name,
            verdict="FAIL" if violations else "pass",
            deviation=_size(worst),
            how_much=worst.how_much,
            where=violations[0].where if violations else "",
            cause=self.cause,
        )


def mechanism_property(
    name: str, *, cause: str
) -> Callable[[Callable[[Subject], Iterator[Finding]]], Property]:
    """Return a decorator that turns a function that yields findings into a `Property`."""
    return lambda findings: Property(name, cause, findings)


def tolerance(dtype: torch.dtype) -> float:
    """Return the relative deviation that roundings may cause.

    >>> f"{tolerance(torch.float64):.0e}", f"{tolerance(torch.bfloat16):.0e}"
    ('4e-11', '4e-02')
    """
    return torch.finfo(dtype).eps ** (2 / 3)


def relative(found: Tensor, expected: Tensor) -> Tensor:
    """Return |found - expected| over the largest finite |expected|, elementwise in float64.

    It is infinite where one of the two is not finite, and 0 where neither is: that outputs are
    finite is a property of its own.
    """
    found, expected = found.detach().double(), expected.detach().double()
    finite = expected.isfinite()
    scale = torch.where(finite, expected, 0).abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    off = ((found - expected).abs() / scale).nan_to_num(math.inf, posinf=math.inf)
    return torch.where(finite | found.isfinite(), off, 0.0)


def by_position(deviation_BTD: Tensor, limit: float) -> tuple[float, int]:
    """Return the largest deviation, and the first position beyond the limit (the last if none)."""
    deviation_T = deviation_BTD.amax((0, 2))
    beyond = (deviation_T > limit).nonzero()
    first = int(beyond[0]) if len(beyond) else len(deviation_T) - 1
    return float(deviation_T.max()), first


def _size(finding: Finding) -> float:
    return math.inf if math.isnan(finding.deviation) else finding.deviation
