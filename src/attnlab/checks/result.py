"""What a property is, what one look at it finds, and the verdict over all looks.

A deviation is relative to the largest number of what it is compared with, unless the property
counts something: then it is the difference. It is infinite where something is not finite or was
raised. Floating-point results may deviate by eps^(2/3), eps the spacing of their dtype at 1: 4e-11
in float64, 2e-5 in float32, 4e-2 in bfloat16. That is many roundings and far from any mistake.
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
    """The verdict on one property of one mechanism."""

    name: str  # the property, as a sentence
    verdict: Literal["holds", "broken"]
    deviation: float  # the largest; of those beyond the tolerance where the property is broken
    how_much: str  # the same in words, or the message of what was raised
    where: str  # the first place: position, parameter, shape, mode; "" where the property holds
    cause: str  # what is usually behind a broken one

    @property
    def holds(self) -> bool:
        return self.verdict == "holds"


class Finding(NamedTuple):
    """One look: how far off, and how far off is still right."""

    where: str
    deviation: float
    limit: float = 0.0
    words: str = ""  # where a number alone would not say it

    @property
    def is_right(self) -> bool:
        return self.deviation <= self.limit

    @property
    def how_much(self) -> str:
        if self.words or not math.isfinite(self.deviation):
            return self.words or "not finite"
        return f"{self.deviation:.2g}"


class Property(NamedTuple):
    name: str
    cause: str
    findings: Callable[[Subject], Iterator[Finding]]

    def judge(self, subject: Subject) -> Result:
        """The verdict. What the mechanism raises breaks the property; it does not go further."""
        found = list[Finding]()
        try:
            found.extend(self.findings(subject))
        except Exception as error:
            message = f"raised {type(error).__name__}: {error}".splitlines()[0]
            where = "; ".join(getattr(error, "__notes__", []))
            found.append(Finding(where, math.inf, words=message))
        wrong = [finding for finding in found if not finding.is_right]
        worst = max(wrong or found, key=_size, default=Finding("", 0.0))
        return Result(
            name=self.name,
            verdict="broken" if wrong else "holds",
            deviation=_size(worst),
            how_much=worst.how_much,
            where=wrong[0].where if wrong else "",
            cause=self.cause,
        )


def promise(
    name: str, *, cause: str
) -> Callable[[Callable[[Subject], Iterator[Finding]]], Property]:
    """Makes a function that yields findings into a property of this name."""
    return lambda findings: Property(name, cause, findings)


def tolerance(dtype: torch.dtype) -> float:
    """
    >>> f"{tolerance(torch.float64):.0e}", f"{tolerance(torch.bfloat16):.0e}"
    ('4e-11', '4e-02')
    """
    return torch.finfo(dtype).eps ** (2 / 3)


def relative(found: Tensor, expected: Tensor) -> Tensor:
    """|found - expected| by the largest finite |expected|, in float64.

    Infinite where one of the two is not finite. Where neither is, they are taken for alike: that
    outputs are finite is a property of its own.
    """
    found, expected = found.detach().double(), expected.detach().double()
    finite = expected.isfinite()
    scale = torch.where(finite, expected, 0).abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    off = ((found - expected).abs() / scale).nan_to_num(math.inf, posinf=math.inf)
    return torch.where(finite | found.isfinite(), off, 0.0)


def by_position(deviation_BTD: Tensor, limit: float) -> tuple[float, int]:
    """The largest deviation, and the first position beyond the limit; the last where none is."""
    deviation_T = deviation_BTD.amax((0, 2))
    beyond = (deviation_T > limit).nonzero()
    first = int(beyond[0]) if len(beyond) else len(deviation_T) - 1
    return float(deviation_T.max()), first


def _size(finding: Finding) -> float:
    return math.inf if math.isnan(finding.deviation) else finding.deviation
