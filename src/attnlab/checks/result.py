"""A property, one measurement of it (a finding), and the result over all its measurements.

A deviation is relative to the largest number of the expected tensor, unless the property counts
something: then it is the difference. It is infinite where a number is not finite or an exception
was raised. Floating-point results may deviate by eps^(2/3), where eps is the spacing of their dtype
at 1: 4e-11 in float64, 2e-5 in float32, 4e-2 in bfloat16. That is many roundings, and far below the
effect of any mistake.
"""

import inspect
import math
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from attnlab.checks.modes import BFLOAT16_EVAL, EVAL, TRAIN, Mode, NotJudgedError, Place, tolerance
from attnlab.checks.subject import Subject
from attnlab.config import is_interrupt

MOST_LISTED = 4  # modes, batch sizes or lengths
_PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of one property of one mechanism."""

    name: str  # the property, as a sentence
    verdict: Literal["pass", "FAIL", "skipped"]
    deviation: float  # the largest; of those beyond the tolerance if the property is violated
    how_much: str  # the deviation as text, the message of an exception, or why it was skipped
    where: str  # of a violation: position, parameter, shape, mode; "" if there is none
    holds_at: str  # of a violated property: the modes and shapes that break it, and do not
    cause: str  # the usual cause of a violation
    note: str = ""  # what was left out of the property, and why

    @property
    def holds(self) -> bool:
        """True unless the property is violated."""
        return self.verdict != "FAIL"


class Finding(NamedTuple):
    """One measurement of a property: the deviation, and the largest one that is allowed."""

    where: str
    deviation: float
    limit: float = 0.0
    words: str = ""  # replaces the number in messages
    place: Place | None = None
    note: str = ""  # what the property leaves out, and why

    @property
    def within_limit(self) -> bool:
        return self.deviation <= self.limit

    @property
    def how_much(self) -> str:
        if self.words or not math.isfinite(self.deviation):
            return self.words or "not finite"
        return f"{self.deviation:.2g}"

    @property
    def position(self) -> str:
        """The place of the measurement, with mode and shape."""
        if self.place is None:
            return self.where
        return f"{self.where} ({self.place})" if self.where else str(self.place)


class Property(NamedTuple):
    """A property of the contract, and the function that measures it."""

    name: str
    cause: str
    findings: Callable[[Subject], Iterator[Finding]]

    def check(self, subject: Subject) -> Result:
        """Return the result. An exception that the mechanism raises violates the property."""
        result = self._check(subject)
        if not result.holds:
            subject.violated.add(self.name)
        return result

    def _check(self, subject: Subject) -> Result:
        found = list[Finding]()
        try:
            found.extend(self.findings(subject))
        except NotJudgedError as reason:
            if all(finding.within_limit for finding in found):
                return self._result("skipped", 0.0, str(reason))
        except BaseException as error:  # such as an exit, or a failure of pytest
            if is_interrupt(error):
                raise
            where = "; ".join(getattr(error, "__notes__", []))
            found.append(Finding(where, math.inf, words=raised(error)))
        violations = [finding for finding in found if not finding.within_limit]
        worst = max(violations or found, key=_size, default=Finding("", 0.0))
        return self._result(
            "FAIL" if violations else "pass",
            _size(worst),
            worst.how_much,
            where=(worst if worst.words else violations[0]).position if violations else "",
            holds_at=contrast(found) if violations else "",
            note="; ".join(dict.fromkeys(finding.note for finding in found if finding.note)),
        )

    def crashed(self, exit_code: int) -> Result:
        """Return the result of a property during whose check the process ended."""
        if exit_code < 0:
            how = f"crash: the process was ended by {signal.Signals(-exit_code).name}"
        else:
            how = f"crash: the process ended itself with exit code {exit_code}"
        return self._result("FAIL", math.inf, how)

    def ended_cuda(self, result: Result) -> Result:
        """Return the result of a property during whose check CUDA ended in this process."""
        words = "CUDA ended in this process, so that no other property could be judged"
        how = words if result.holds else f"{result.how_much}; {words}"
        return self._result("FAIL", math.inf, how, where=result.where)

    def _result(
        self,
        verdict: Literal["pass", "FAIL", "skipped"],
        deviation: float,
        how_much: str,
        *,
        where: str = "",
        holds_at: str = "",
        note: str = "",
    ) -> Result:
        return Result(
            name=self.name,
            verdict=verdict,
            deviation=deviation,
            how_much=how_much,
            where=where,
            holds_at=holds_at,
            cause="" if how_much.startswith(("raised ", "crash", "CUDA ended")) else self.cause,
            note=note,
        )


def raised(error: BaseException) -> str:
    """Return one line: type, message, and the line of the user's file that the error came from."""
    message = (str(error).splitlines() or [""])[0]
    text = f"raised {type(error).__name__}" + (f": {message}" if message else "")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        is_file = path.is_absolute() and path.is_file()
        if is_file and not path.is_relative_to(_PACKAGE) and "site-packages" not in path.parts:
            return f"{text} (at {path.name}:{frame.lineno})"
    return text


def line_of(function: Any) -> str:
    """Return the file and line at which a function begins."""
    code = inspect.unwrap(function).__code__
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}"


def contrast(found: Iterable[Finding]) -> str:
    """Return which modes, batch sizes and lengths violate a property, and which do not.

    >>> def at(batch: int, deviation: float) -> Finding:
    ...     return Finding("", deviation, place=Place("eval", batch, 7))
    >>> contrast([at(1, 0.0), at(3, 0.5), at(8, 0.5)])
    'batch 3 and more break it; batch 1 does not'
    """
    judged = [finding for finding in found if finding.place is not None]
    broken = {finding.place for finding in judged if not finding.within_limit}
    held = {finding.place for finding in judged} - broken
    if not broken or not held:
        return ""
    said = list[str]()
    for name in ("mode", "batch", "tokens"):
        bad, good = ({getattr(place, name) for place in places} for places in (broken, held))
        if not bad & good:
            said.append(_difference(name, bad, good))
    if said:
        return ". ".join(each[0].upper() + each[1:] if i else each for i, each in enumerate(said))
    return f"{len(broken)} of {len(broken | held)} modes and shapes break it"


def _difference(name: str, bad: set[Any], good: set[Any]) -> str:
    """Return one sentence: the values that break a property, and those that do not.

    >>> _difference("mode", {"eval in float64", "train in float64"}, {"train in bfloat16"})
    'eval in float64 and train in float64 break it; train in bfloat16 does not'
    >>> _difference("tokens", {8}, {7, 11, 37, 75, 90, 91})
    'tokens 8 breaks it; tokens 7, 11, 37, 75 and 2 others do not'
    """
    one = "{}" if name == "mode" else f"{name} {{}}"
    held = f"{one.format(_listed(good))} {'does' if len(good) == 1 else 'do'} not"
    if name != "mode" and len(bad) > 1 and min(bad) > max(good):
        return f"{one.format(min(bad))} and more break it; {held}"
    if name != "mode" and len(bad) > 1 and max(bad) < min(good):
        return f"{one.format(max(bad))} and less break it; {held}"
    return f"{one.format(_listed(bad))} {'breaks' if len(bad) == 1 else 'break'} it; {held}"


def _listed(values: Iterable[Any]) -> str:
    *rest, last = map(str, sorted(values))
    if len(rest) > MOST_LISTED:
        rest, last = rest[:MOST_LISTED], f"{len(rest) + 1 - MOST_LISTED} others"
    return f"{', '.join(rest)} and {last}" if rest else last


def mechanism_property(
    name: str, *, cause: str
) -> Callable[[Callable[[Subject], Iterator[Finding]]], Property]:
    """Return a decorator that turns a function that yields findings into a `Property`."""
    return lambda findings: Property(name, cause, findings)


def relative(found: Tensor, expected: Tensor) -> Tensor:
    """Return |found - expected| over the largest finite |expected|, elementwise in float64.

    Where all that was expected is 0, it is over the largest finite number that was found.
    It is infinite where one of the two is not finite, and 0 where neither is: that outputs are
    finite is a property of its own.
    """
    found, expected = found.detach().double(), expected.detach().double()
    largest = _largest(expected) or _largest(found)
    scale = max(largest, torch.finfo(torch.float32).tiny)
    off = ((found - expected).abs() / scale).nan_to_num(math.inf, posinf=math.inf)
    return off.masked_fill_(~(expected.isfinite() | found.isfinite()), 0.0)


@torch.no_grad()
def difference(
    tensors: Mapping[str, Tensor],
    moves: Mapping[str, Tensor],
    step: float,
    output: Callable[[], Tensor],
) -> float:
    """Return the derivative of the output along the moves, and restore the tensors."""
    before = {name: tensors[name].clone() for name in moves}
    outputs = list[float]()
    for sign in (1, -1):
        for name, move in moves.items():
            tensors[name].copy_(before[name] + sign * step * move)
        outputs.append(float(output()))
    for name, tensor in before.items():
        tensors[name].copy_(tensor)
    return (outputs[0] - outputs[1]) / (2 * step)


def errors(found_BTD: Tensor, exact_BTD: Tensor) -> Tensor:
    """Return the relative root mean square error of every position, `error_T`."""
    off_T = (found_BTD.double() - exact_BTD.double()).square().mean((0, 2)).sqrt()
    size_T = exact_BTD.double().square().mean((0, 2)).sqrt()
    return off_T / size_T.clamp_min(torch.finfo(torch.float32).tiny)


def of_rounded(subject: Subject, batch: int, tokens: int, mode: Mode = BFLOAT16_EVAL) -> Tensor:
    """Return `y_BTD` in the widest dtype of the inputs that this mode receives."""
    key = "of rounded inputs", batch, tokens, mode
    if key not in subject.memo:
        wide = TRAIN if mode.training else EVAL
        x_BTD = subject.tokens(batch, tokens, mode).to(subject.dtype)
        subject.memo[key] = subject.forward(subject.built(wide), wide, x_BTD)
    return subject.memo[key]


def _largest(x: Tensor) -> float:
    """Return the largest finite absolute value; 0 if there is none."""
    return float(x.nan_to_num(0.0, 0.0, 0.0).abs().max())


def same_bits(where: str, found: Tensor, expected: Tensor, place: Place | None = None) -> Finding:
    """Compare bits; on CUDA, where the order of sums varies, allow the tolerance."""
    if torch.equal(found.nan_to_num(), expected.nan_to_num()):
        return Finding(where, 0.0, place=place)
    deviation = max(float(relative(found, expected).max()), torch.finfo(torch.float64).tiny)
    limit = tolerance(found.dtype) if found.is_cuda else 0.0
    return Finding(where, deviation, limit, place=place)


def by_position(deviation_BTD: Tensor, limit: float) -> tuple[float, int]:
    """Return the largest deviation, and the first position beyond the limit (the last if none)."""
    deviation_T = deviation_BTD.amax((0, 2))
    beyond = (deviation_T > limit).nonzero()
    first = int(beyond[0]) if len(beyond) else len(deviation_T) - 1
    return float(deviation_T.max()), first


def _size(finding: Finding) -> float:
    return math.inf if math.isnan(finding.deviation) else finding.deviation
