"""The search for each variant's learning rate, and its result in the study's folder.

    grid = own rate x multiples
    while the best rate tried is the lowest or the highest, and fewer than `most` were tried:
        try the next rate outward, by `factor`

A rate is judged by the validation loss at the end of one run, with a seed that no run of the
verdict has. A rate that diverged is worse than any that did not. The rule is a function of the
losses alone, so that two variants that are the same function get the same rate, and an interrupted
study continues with the same rates.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from attnlab.config import Config, Problem
from attnlab.record import TUNING_SEED, rate_of, tuning_runs, write_tuning_choice


class RatesToTry(NamedTuple):
    """The search continues: the losses at these rates are needed for the next decision."""

    rates: tuple[float, ...]  # ascending


class ChosenRate(NamedTuple):
    """The search has ended."""

    rate: float | None  # peak learning rate; None: every rate diverged
    bracketed: bool  # True if a lower and a higher rate were tried and were no better


@dataclass(frozen=True, kw_only=True)
class LearningRates(Config):
    """The peak learning rates at which a variant is trained before its runs for the verdict."""

    multiples: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)  # first rates, as multiples of the own one
    factor: float = 2.0  # ratio of the next rate outward to a best rate at the edge of the grid
    most: int = 7  # largest number of rates per variant, which bounds the cost of tuning
    steps: int | None = None  # largest length of a tuning run, in steps; None: as long as any other

    def problems(self) -> Iterator[Problem]:
        if not self.multiples:
            yield Problem("multiples", "give at least one")
        if any(multiple <= 0 for multiple in self.multiples):
            yield Problem("multiples", f"must be positive, got {list(self.multiples)}")
        if len(set(self.multiples)) < len(self.multiples):
            yield Problem("multiples", f"contains a duplicate: {list(self.multiples)}")
        if self.factor < 1.1:
            yield Problem("factor", f"must be at least 1.1, got {self.factor}")
        if self.most < max(3, len(self.multiples)):
            least = max(3, len(self.multiples))
            why = "the whole grid is tried, and three rates are the fewest that bracket an optimum"
            yield Problem("most", f"must be at least {least}, got {self.most}: {why}")
        if self.steps is not None and self.steps < 1:
            yield Problem("steps", f"must be at least 1, got {self.steps}")

    def grid(self, own_rate: float) -> tuple[float, ...]:
        """Return the first rates to try, ascending.

        >>> LearningRates().grid(3e-4)
        (0.0003, 0.0006, 0.0012, 0.0024)
        """
        return tuple(sorted({_rounded(own_rate * multiple) for multiple in self.multiples}))

    def decide(
        self, own_rate: float, losses: Mapping[float, float | None]
    ) -> RatesToTry | ChosenRate:
        """Return the rates to try next, or the chosen one.

        Args:
            own_rate: the variant's peak learning rate in its settings.
            losses: the validation loss (nats/token) at every rate that was tried. None, or a
                number that is not finite, means that the run diverged.

        Of equal losses, one inside the bracket is chosen, and of several the lowest rate.

        >>> rates = LearningRates(multiples=(1, 2, 4))
        >>> rates.decide(1e-3, {1e-3: 5.2, 2e-3: 5.1, 4e-3: 5.0})
        RatesToTry(rates=(0.008,))
        >>> rates.decide(1e-3, {1e-3: 5.2, 2e-3: 5.1, 4e-3: 5.0, 8e-3: None})
        ChosenRate(rate=0.004, bracketed=True)
        """
        missing = tuple(rate for rate in self.grid(own_rate) if rate not in losses)
        if missing:
            return RatesToTry(missing)
        tried = sorted(losses)
        finite_losses = [_or_infinity(losses[rate]) for rate in tried]
        lowest = min(finite_losses)
        best = [rate for rate, loss in zip(tried, finite_losses, strict=True) if loss == lowest]
        all_diverged = math.isinf(lowest)
        inside = [rate for rate in best if tried[0] < rate < tried[-1]]
        if inside and not all_diverged:
            return ChosenRate(inside[0], bracketed=True)
        outward = list[float]()
        if best[0] == tried[0]:
            outward.append(_rounded(tried[0] / self.factor))
        if best[-1] == tried[-1] and not all_diverged:
            outward.append(_rounded(tried[-1] * self.factor))
        if len(tried) < self.most:
            return RatesToTry(tuple(outward[: self.most - len(tried)]))
        return ChosenRate(None if all_diverged else best[0], bracketed=False)


@dataclass(frozen=True, kw_only=True)
class TuningResult:
    """The result of the search for one variant's learning rate."""

    variant: str
    rate: float | None  # peak learning rate; None: the variant cannot be trained
    bracketed: bool  # True if a lower and a higher rate were tried and were no better
    losses: Mapping[float, float | None]  # nats/token by rate, ascending; None: diverged
    error: str | None = None  # the reason why a rate could not be tried

    @property
    def failure(self) -> str | None:
        """The reason why the variant cannot be trained; None if it can."""
        if self.error is not None:
            return f"no learning rate was found for it: {self.error}"
        if self.rate is None:
            tried = ", ".join(f"{rate:g}" for rate in self.losses)
            return f"it diverged at every learning rate that was tried: {tried}"
        return None

    def write(self, study_dir: Path) -> None:
        """Write `tuning/choice.json` in the variant's folder."""
        losses = {f"{rate:g}": loss for rate, loss in self.losses.items()}
        choice = {
            "learning_rate": self.rate,
            "interior": self.bracketed,
            "losses": losses,
            "seed": TUNING_SEED,
            "failure": self.failure,
        }
        write_tuning_choice(study_dir, self.variant, choice)


def tuning_losses(study_dir: Path, variant: str) -> dict[float, float | None]:
    """Return the validation loss (nats/token) by learning rate of the tuning runs that have ended.

    None: the run diverged. Failed runs are left out.
    """
    summaries = {
        rate_of(folder.recipe or ""): folder.summary() or {}
        for folder in tuning_runs(study_dir, variant)
        if folder.seed == TUNING_SEED
    }
    return {
        rate: summary.get("final_loss") if summary["status"] == "finished" else None
        for rate, summary in summaries.items()
        if summary.get("status") in ("finished", "diverged")
    }


def _or_infinity(loss: float | None) -> float:
    return math.inf if loss is None or not math.isfinite(loss) else loss


def _rounded(rate: float) -> float:
    """Return the rate to six digits, as it is written in the name of its folder."""
    return float(f"{rate:g}")
