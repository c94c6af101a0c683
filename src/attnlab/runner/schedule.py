"""What of a study is still to be run, and in which order: a run as soon as it is known.

    runs that tune a variant's learning rate ─► its rate ─► its runs for the verdict
          ▲                                      │
          └──── wider, until the best is inside ─┘

Which rates a variant tries next, and at which its verdict is trained, follows from the runs that
have ended. It is read from their folders, so that the same command goes on where it was killed.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from attnlab.study.study import Study
from attnlab.training.recipe import RatesToTry, TuningResult, tuning_losses
from attnlab.training.run import Run


class Planned(NamedTuple):
    """A run that is known, and its identity."""

    run: Run
    identity: str


class Count(NamedTuple):
    """Runs of a study."""

    ended: int
    at_least: int  # those that have ended among them
    at_most: int  # more than `at_least` while a learning rate is looked for


class Agenda:
    """The runs of a study on its way: `next` gives one out, `ended` takes its end.

    Making it writes nothing; `begin` and `ended` record what is decided.
    """

    def __init__(self, study: Study, study_dir: Path, fingerprints: Mapping[str, str]) -> None:
        """`fingerprints` are of each variant's data."""
        self.study, self.study_dir, self.fingerprints = study, study_dir, fingerprints
        self.tuned = dict[str, TuningResult]()
        self._waiting = list[Planned]()
        self._under_way = list[Planned]()
        self._over = list[Planned]()  # now or before, whatever came of them
        for variant in study.variants:
            if study.learning_rates is not None:
                for rate in tuning_losses(self.study_dir, variant):
                    self._over.append(self._planned(study.tuning_run(variant, rate)))
            self._go_on(variant)

    def begin(self) -> None:
        """Write down what was decided before."""
        for variant in self.tuned:
            self._record(variant)

    def next(self) -> Planned | None:
        """A run to start now; None where there is none, or none before another has ended."""
        if not self._waiting:
            return None
        order = list(self.study.variants)

        def urgency(planned: Planned) -> tuple[bool, int, int]:  # the verdict waits for the tuning
            run = planned.run
            return not run.tunes, run.seed, order.index(run.variant)

        planned = min(self._waiting, key=urgency)
        self._waiting.remove(planned)
        self._under_way.append(planned)
        return planned

    def ended(self, planned: Planned) -> TuningResult | None:
        """A run that was given out is over, and what follows from it can start.

        Returns how the search for its variant's learning rate ended, where this ended it.
        """
        self._under_way.remove(planned)
        self._over.append(planned)
        run = planned.run
        if not run.tunes or run.variant in self.tuned:
            return None
        summary = run.folder(self.study_dir).summary() or {}
        if summary.get("status") == "failed":
            error = f"at {run.config.train.learning_rate:g}: {summary.get('reason')}"
            self._waiting = [p for p in self._waiting if p.run.variant != run.variant]
            self._settle(run.variant, rate=None, bracketed=False, error=error)
        elif not any(p.run.variant == run.variant for p in self._open()):
            self._go_on(run.variant)
        if run.variant not in self.tuned:
            return None
        self._record(run.variant)
        return self.tuned[run.variant]

    def left(self) -> list[str]:
        """The variants that are not done."""
        unfinished = {planned.run.variant for planned in self._open()}
        return [variant for variant in self.study.variants if variant in unfinished]

    def steps_left(self) -> int:
        """Training steps of all runs that are not over, so far as they are known."""
        runs = [planned.run.config for planned in self._open()]
        searched = [self.study.variants[name] for name in self._searched()]
        return sum(config.train.steps for config in [*runs, *searched * self.study.seeds])

    def verdict_count(self, variants: Iterable[str] | None = None) -> Count:
        """Of the runs for the verdict, of some variants or of all."""
        chosen = list(self.study.variants if variants is None else variants)
        ended = sum(not p.run.tunes for p in self._over if p.run.variant in chosen)
        planned = len(chosen) * self.study.seeds
        return Count(ended, planned, planned)

    def tuning_count(self, variants: Iterable[str] | None = None) -> Count:
        """Of the runs that tune the learning rate, of some variants or of all."""
        chosen = list(self.study.variants if variants is None else variants)
        total = Count(0, 0, 0)
        for variant in chosen:
            ended = sum(p.run.tunes for p in self._over if p.run.variant == variant)
            known = ended + sum(p.run.tunes for p in self._open() if p.run.variant == variant)
            most = self.study.tuning_bounds()[1] if variant in self._searched() else 0
            count = Count(ended, known, max(known, most))
            total = Count(*map(sum, zip(total, count, strict=True)))
        return total

    def _go_on(self, variant: str) -> None:
        """Put what follows from the runs that have ended on the list."""
        if self.study.learning_rates is None:
            self._add_verdict(variant, None)
            return
        own_rate = self.study.variants[variant].train.learning_rate
        losses = tuning_losses(self.study_dir, variant)
        decision = self.study.learning_rates.decide(own_rate, losses)
        if isinstance(decision, RatesToTry):
            for rate in decision.rates:
                self._waiting.append(self._planned(self.study.tuning_run(variant, rate)))
        else:
            self._settle(variant, rate=decision.rate, bracketed=decision.bracketed)

    def _settle(
        self, variant: str, *, rate: float | None, bracketed: bool, error: str | None = None
    ) -> None:
        self.tuned[variant] = TuningResult(
            variant=variant,
            rate=rate,
            bracketed=bracketed,
            losses=tuning_losses(self.study_dir, variant),
            error=error,
        )
        self._add_verdict(variant, rate)

    def _add_verdict(self, variant: str, rate: float | None) -> None:
        failed = variant in self.tuned and self.tuned[variant].failure is not None
        for run in self._verdict(variant, rate):
            over = failed or run.folder(self.study_dir).status() in ("finished", "diverged")
            (self._over if over else self._waiting).append(self._planned(run))

    def _record(self, variant: str) -> None:
        tuned = self.tuned[variant]
        tuned.write(self.study_dir)
        if tuned.failure is not None:
            for run in self._verdict(variant, None):
                run.folder(self.study_dir).fail(tuned.failure)

    def _verdict(self, variant: str, rate: float | None) -> Iterator[Run]:
        for seed in range(self.study.seeds):
            yield self.study.verdict_run(variant, seed, rate)

    def _searched(self) -> list[str]:
        """The variants whose learning rate is not found yet."""
        tunes = self.study.learning_rates is not None
        return [name for name in self.study.variants if tunes and name not in self.tuned]

    def _open(self) -> list[Planned]:
        return [*self._waiting, *self._under_way]

    def _planned(self, run: Run) -> Planned:
        return Planned(run, run.config.identity(self.fingerprints[run.variant]))
