"""What others have published, one kind of claim each, so that the analysis can judge it.

A study lists its claims; its record holds them as JSON; `judgements` holds each against the
study's own intervals. Losses on another text, or with another tokenizer, are other numbers: of them
order and spread can be judged.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from attnlab.analysis.hypotheses.question import Cost
from attnlab.config import Choice, Problem

LOSS = "loss, nats a token"


@dataclass(frozen=True, kw_only=True)
class Claim(Choice):
    """`text` is the claim in a sentence; `source` who made it, and on what it rests."""

    text: str
    source: str
    published: tuple[tuple[str, float], ...] = ()  # variant and number, the best first
    measure: str = LOSS  # what the published numbers are

    def problems(self) -> Iterator[Problem]:
        if not self.text.strip():
            yield Problem("text", "say the claim in a sentence")
        if not self.source.strip():
            yield Problem("source", "say who published it, and on what it rests")


@dataclass(frozen=True, kw_only=True)
class Ordered(Claim):
    """Each of `variants` is better than those after it; of two, the first than the second."""

    variants: tuple[str, ...]

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from _distinct(self.variants, at_least=2)


@dataclass(frozen=True, kw_only=True)
class AmongBest(Claim):
    """`variant` is among the best `places`: with one, nothing is as good."""

    variant: str
    places: int = 1

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from _some(self.places)


@dataclass(frozen=True, kw_only=True)
class AmongWorst(Claim):
    """`variant` is among the worst `places`: with one, nothing is as bad."""

    variant: str
    places: int = 1

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from _some(self.places)


@dataclass(frozen=True, kw_only=True)
class Within(Claim):
    """The losses of `variants` (of all, where none is named) lie within `spread` nats."""

    spread: float
    variants: tuple[str, ...] = ()

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from _distinct(self.variants, at_least=0)
        if self.spread <= 0:
            yield Problem("spread", f"must be positive, got {self.spread}")


@dataclass(frozen=True, kw_only=True)
class Alike(Claim):
    """`variants` are equally good: no two differ by more than the study's margin."""

    variants: tuple[str, ...]

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from _distinct(self.variants, at_least=2)


@dataclass(frozen=True, kw_only=True)
class InRange(Claim):
    """A cost of every variant lies from `low` to `high`, in its own unit (bytes, seconds, none).

    `resolution` is half of the last digit that was published.
    """

    cost: Cost
    low: float
    high: float
    resolution: float = 0.0

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if self.low > self.high:
            yield Problem("low", f"must not be above high, {self.high}; got {self.low}")


def _distinct(variants: tuple[str, ...], *, at_least: int) -> Iterator[Problem]:
    if len(variants) < at_least:
        yield Problem("variants", f"name at least {at_least}")
    if len(set(variants)) < len(variants):
        yield Problem("variants", "name each once")


def _some(places: int) -> Iterator[Problem]:
    if places < 1:
        yield Problem("places", f"must be at least 1, got {places}")
