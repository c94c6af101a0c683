"""The schedule of a study: the runs that remain, and the order in which they start.

    runs that tune a variant's learning rate ─► its rate ─► its runs for the verdict
          ▲                                      │
          └── more rates, until the best one is bracketed

The next rates of a variant, and the rate of its verdict, follow from the runs that have ended.
They are read from the run folders, so that the same command resumes an interrupted study. Workers
of any kind take runs with `next` and report their ends with `finished`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from attnlab.config import differences
from attnlab.record import RunFolder, rate_of, tuning_runs
from attnlab.study.study import Study
from attnlab.training.recipe import RatesToTry, TuningResult, tuning_losses
from attnlab.training.run import Run

MOST_CONFLICTS_NAMED = 3


class PlannedRun(NamedTuple):
    """A run and its identity."""

    run: Run
    identity: str


class RunCount(NamedTuple):
    """Numbers of runs."""

    done: int
    at_least: int  # in total, those that are done included
    at_most: int  # larger than `at_least` while a learning rate is searched

    def left(self) -> tuple[int, int]:
        """Return the smallest and the largest number of runs that remain."""
        return self.at_least - self.done, self.at_most - self.done


def open_schedule(
    study: Study, study_dir: Path, fingerprints: Mapping[str, str]
) -> "StudySchedule":
    """Return the schedule of a study whose folder may hold runs already.

    Args:
        study: the study, with all options applied.
        study_dir: the study's folder.
        fingerprints: the fingerprint of each variant's data.

    Raises:
        ValueError: the folder holds runs that were made with different settings.
    """
    for variant in study.variants:
        for seed in range(study.seeds):
            study.verdict_run(variant, seed).folder(study_dir).finalize()
        for folder in tuning_runs(study_dir, variant):
            folder.finalize()
    conflicts = [
        f"{folder.path}: {why}"
        for variant in study.variants
        for folder, why in _conflicts(study, study_dir, variant, fingerprints[variant])
    ]
    if conflicts:
        more = len(conflicts) - MOST_CONFLICTS_NAMED
        raise ValueError(
            "existing runs were made with different settings; nothing was run:\n"
            + "\n".join(conflicts[:MOST_CONFLICTS_NAMED])
            + (f"\nand {more} more" if more > 0 else "")
            + f"\nchoose another --out, or remove these runs from {study_dir}"
        )
    return StudySchedule(study, study_dir, fingerprints)


def conflict(run: Run, folder: RunFolder, fingerprint: str) -> str:
    """Return in what the existing run differs from `run`: settings, files of code, data.

    The text is empty if there is no existing run or it is the same run.
    """
    settings = run.config.to_dict() | {"identity": run.config.identity(fingerprint)}
    different = folder.conflict(settings)
    if not different:
        return ""
    found = [
        f"{path} is {a!r} there, {b!r} requested"
        for path, (a, b) in different.items()
        if path != "identity" and not re.search(r"\.(keep|paths?)\b", path)
    ][:4]
    environment = folder.environment() or {}
    own_code, data = environment.get("own_code") or {}, environment.get("data") or {}
    for name, (before, now) in differences(
        own_code.get("sources", {}), run.config.sources()
    ).items():
        how = "was edited" if before and now else "is new" if now else "is no longer used"
        found.append(f"{name} {how}")
    if (there := data.get("fingerprint")) not in (None, fingerprint):
        paths = [getattr(run.config.data, "path", None), *getattr(run.config.data, "paths", ())]
        which = ", ".join([run.config.data.kind(), *(str(path) for path in paths if path)])
        found.append(f"the data has changed ({which}: {there} there, {fingerprint} now)")
    if found:
        return "; ".join(found)
    if "identity" not in different:
        return "; ".join(
            f"{path} is {a!r} there, {b!r} requested" for path, (a, b) in different.items()
        )
    there, requested = different["identity"]
    return (
        f"identity is {there!r} there, {requested!r} requested: its data has changed, or another "
        "version of attnlab made it; its record does not say which"
    )


class StudySchedule:
    """The runs of a study in progress: `next` hands one out, `finished` takes it back.

    Constructing a schedule writes nothing; `record_decisions` and `finished` write the learning
    rates that were chosen.
    """

    def __init__(self, study: Study, study_dir: Path, fingerprints: Mapping[str, str]) -> None:
        """`fingerprints` holds the fingerprint of each variant's data."""
        self.study, self.study_dir, self.fingerprints = study, study_dir, fingerprints
        self.tuned = dict[str, TuningResult]()
        self._waiting = list[PlannedRun]()
        self._running = list[PlannedRun]()
        self._done = list[PlannedRun]()  # now or earlier, whatever their outcome
        for variant in study.variants:
            if study.learning_rates is not None:
                for rate in tuning_losses(self.study_dir, variant):
                    self._done.append(self._planned(study.tuning_run(variant, rate)))
            self._extend(variant)

    def record_decisions(self) -> None:
        """Write the learning rates that earlier runs decided."""
        for variant in self.tuned:
            self._record(variant)

    def next(self) -> PlannedRun | None:
        """Return the run to start now; None if there is none, or none before another has ended.

        Runs that tune a learning rate come first, since the verdict waits for them; then lower
        seeds, then the order of the variants.
        """
        if not self._waiting:
            return None
        order = list(self.study.variants)

        def priority(planned: PlannedRun) -> tuple[bool, int, int]:
            run = planned.run
            return not run.tunes, run.seed, order.index(run.variant)

        planned = min(self._waiting, key=priority)
        self._waiting.remove(planned)
        self._running.append(planned)
        return planned

    def finished(self, planned: PlannedRun) -> TuningResult | None:
        """Take the end of a run that `next` returned, whatever its outcome; add what follows.

        Returns the outcome of the search for its variant's learning rate if this run ended it.
        """
        self._running.remove(planned)
        self._done.append(planned)
        run = planned.run
        if not run.tunes or run.variant in self.tuned:
            return None
        summary = run.folder(self.study_dir).summary() or {}
        if summary.get("status") == "failed":
            error = f"at {run.config.train.learning_rate:g}: {summary.get('reason')}"
            self._waiting = [p for p in self._waiting if p.run.variant != run.variant]
            self._decide(run.variant, rate=None, bracketed=False, error=error)
        elif not any(p.run.variant == run.variant for p in self._unfinished()):
            self._extend(run.variant)
        if run.variant not in self.tuned:
            return None
        self._record(run.variant)
        return self.tuned[run.variant]

    def unfinished_variants(self) -> list[str]:
        """Return the variants with runs that are not done, in the study's order."""
        unfinished = {planned.run.variant for planned in self._unfinished()}
        return [variant for variant in self.study.variants if variant in unfinished]

    def steps_left(self) -> int:
        """Return the training steps of all runs that are not done, as far as they are known."""
        runs = [planned.run.config for planned in self._unfinished()]
        searched = [self.study.variants[name] for name in self._untuned()]
        return sum(config.train.steps for config in [*runs, *searched * self.study.seeds])

    def verdict_count(self, variants: Iterable[str] | None = None) -> RunCount:
        """Count the runs for the verdict, of some variants or of all."""
        chosen = list(self.study.variants if variants is None else variants)
        done = sum(not p.run.tunes for p in self._done if p.run.variant in chosen)
        planned = len(chosen) * self.study.seeds
        return RunCount(done, planned, planned)

    def tuning_count(self, variants: Iterable[str] | None = None) -> RunCount:
        """Count the runs that tune the learning rate, of some variants or of all."""
        chosen = list(self.study.variants if variants is None else variants)
        total = RunCount(0, 0, 0)
        for variant in chosen:
            done = sum(p.run.tunes for p in self._done if p.run.variant == variant)
            known = done + sum(p.run.tunes for p in self._unfinished() if p.run.variant == variant)
            most = self.study.tuning_bounds()[1] if variant in self._untuned() else 0
            count = RunCount(done, known, max(known, most))
            total = RunCount(*map(sum, zip(total, count, strict=True)))
        return total

    def _extend(self, variant: str) -> None:
        """Add the runs that follow from those that have ended."""
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
            self._decide(variant, rate=decision.rate, bracketed=decision.bracketed)

    def _decide(
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
            done = failed or run.folder(self.study_dir).status() in ("finished", "diverged")
            (self._done if done else self._waiting).append(self._planned(run))

    def _record(self, variant: str) -> None:
        tuned = self.tuned[variant]
        tuned.write(self.study_dir)
        if tuned.failure is not None:
            for run in self._verdict(variant, None):
                run.folder(self.study_dir).fail(tuned.failure)

    def _verdict(self, variant: str, rate: float | None) -> Iterator[Run]:
        for seed in range(self.study.seeds):
            yield self.study.verdict_run(variant, seed, rate)

    def _untuned(self) -> list[str]:
        """Return the variants whose learning rate is still searched."""
        tunes = self.study.learning_rates is not None
        return [name for name in self.study.variants if tunes and name not in self.tuned]

    def _unfinished(self) -> list[PlannedRun]:
        return [*self._waiting, *self._running]

    def _planned(self, run: Run) -> PlannedRun:
        return PlannedRun(run, run.config.identity(self.fingerprints[run.variant]))


def _conflicts(
    study: Study, study_dir: Path, variant: str, fingerprint: str
) -> Iterator[tuple[RunFolder, str]]:
    """Yield the existing runs of a variant that were made with different settings, and which."""
    rate = None
    if study.learning_rates is not None:
        for folder in tuning_runs(study_dir, variant):
            run = study.tuning_run(variant, rate_of(folder.recipe or ""))
            if why := conflict(run, folder, fingerprint):
                yield folder, why
        own_rate = study.variants[variant].train.learning_rate
        decision = study.learning_rates.decide(own_rate, tuning_losses(study_dir, variant))
        rate = None if isinstance(decision, RatesToTry) else decision.rate
    for seed in range(study.seeds):
        run = study.verdict_run(variant, seed, rate)
        folder = run.folder(study_dir)
        if study.learning_rates is not None and rate is None and folder.identity() is not None:
            yield folder, "it was trained before its learning rate was tuned"
        elif why := conflict(run, folder, fingerprint):
            yield folder, why
