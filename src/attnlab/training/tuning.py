"""The learning rate of each variant: a grid around its own, widened until the best is inside it.

    grid = own rate x multiples
    while the best rate tried is the lowest or the highest, and fewer than `most` were tried:
        try the next one out, `factor` away

A rate is judged by the validation loss at the end of one run, with a seed that no run of the
verdict has. A rate that diverged is worse than any that did not. The rule is a function of the
losses alone, so that two variants that are the same function tune alike, and a study that was
interrupted goes on to the same rates.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from attnlab.config import Config, Problem


class Try(NamedTuple):
    """Rates whose losses decide what comes next, in ascending order."""

    rates: tuple[float, ...]


class Chosen(NamedTuple):
    """The end of the search."""

    rate: float | None  # None where every rate diverged
    interior: bool  # a lower and a higher rate were tried, and were no better


@dataclass(frozen=True, kw_only=True)
class LearningRates(Config):
    """Which peak learning rates a variant is tried at, before its runs for the verdict."""

    multiples: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)  # of the variant's own rate: the grid
    factor: float = 2.0  # from a best rate at the edge to the next one out
    most: int = 7  # rates a variant: the bound on what tuning costs
    steps: int | None = None  # at most, of a run that tries a rate; None: as many as any other

    def problems(self) -> Iterator[Problem]:
        if not self.multiples:
            yield Problem("multiples", "name at least one")
        if any(multiple <= 0 for multiple in self.multiples):
            yield Problem("multiples", f"must be positive, got {list(self.multiples)}")
        if len(set(self.multiples)) < len(self.multiples):
            yield Problem("multiples", f"one is named twice: {list(self.multiples)}")
        if self.factor < 1.1:
            yield Problem("factor", f"must be at least 1.1, got {self.factor}")
        if self.most < max(3, len(self.multiples)):
            least = max(3, len(self.multiples))
            advice = "three at least have one inside, and the grid is tried whole"
            yield Problem("most", f"must be at least {least}, got {self.most}: {advice}")
        if self.steps is not None and self.steps < 1:
            yield Problem("steps", f"must be at least 1, got {self.steps}")

    def grid(self, own_rate: float) -> tuple[float, ...]:
        """The rates to begin with, ascending.

        >>> LearningRates().grid(3e-4)
        (0.0003, 0.0006, 0.0012, 0.0024)
        """
        return tuple(sorted({_rounded(own_rate * multiple) for multiple in self.multiples}))

    def decide(self, own_rate: float, losses: Mapping[float, float | None]) -> Try | Chosen:
        """What to try next, or the choice, from `{rate: loss}` of every rate that was tried.

        A loss of None, or one that is not a finite number, stands for a run that diverged. Of equal
        losses one inside the bracket is taken, and of several the lowest rate.

        >>> rates = LearningRates(multiples=(1, 2, 4))
        >>> rates.decide(1e-3, {1e-3: 5.2, 2e-3: 5.1, 4e-3: 5.0})
        Try(rates=(0.008,))
        >>> rates.decide(1e-3, {1e-3: 5.2, 2e-3: 5.1, 4e-3: 5.0, 8e-3: None})
        Chosen(rate=0.004, interior=True)
        """
        missing = tuple(rate for rate in self.grid(own_rate) if rate not in losses)
        if missing:
            return Try(missing)
        tried = sorted(losses)
        worth = [_worth(losses[rate]) for rate in tried]
        best = [rate for rate, loss in zip(tried, worth, strict=True) if loss == min(worth)]
        diverged = math.isinf(min(worth))
        inside = [rate for rate in best if tried[0] < rate < tried[-1]]
        if inside and not diverged:
            return Chosen(inside[0], interior=True)
        outward = list[float]()
        if best[0] == tried[0]:
            outward.append(_rounded(tried[0] / self.factor))
        if best[-1] == tried[-1] and not diverged:
            outward.append(_rounded(tried[-1] * self.factor))
        if len(tried) < self.most:
            return Try(tuple(outward[: self.most - len(tried)]))
        return Chosen(None if diverged else best[0], interior=False)


def _worth(loss: float | None) -> float:
    return math.inf if loss is None or not math.isfinite(loss) else loss


def _rounded(rate: float) -> float:
    """To six digits: the rate is what the name of its folder says."""
    return float(f"{rate:g}")
