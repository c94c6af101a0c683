"""The schedule of a study: the runs that remain, and the order in which they start.

    runs that search recipes ─► a recipe per variant ─► runs for the verdict ─► challenges
       ▲                     │
       └── further recipes ◄─┘

What is next follows from the runs that have ended, by functions of their losses alone
(`training.search`). They are read from the run folders, so that the same command resumes an
interrupted study. Workers of any kind take runs with `next` and report their ends with `finished`.

Several commands may share a folder. A run whose lease another process holds is not handed out. Its
outcome is read from its folder when it has ended there, and it is handed out if that process stops.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, get_args

from attnlab.record import HeldError, Holder, Observer, reading_once, tuning_runs, tuning_seed
from attnlab.runner.comparable import conflict, conflicts
from attnlab.runner.decisions import Outcomes, RunCount, Stage, Wanted, decisions
from attnlab.study.study import Study
from attnlab.training.config import Recipe
from attnlab.training.recipe import BESIDE, TuningResult, expected_challenge_runs, start_of
from attnlab.training.run import Run

MOST_CONFLICTS_NAMED = 3


Fingerprints = Mapping[str, str | None]  # of each variant's data; None: it could not be read


class PlannedRun(NamedTuple):
    """A run and its identity."""

    run: Run
    identity: str


@reading_once()
def open_schedule(study: Study, study_dir: Path, fingerprints: Fingerprints) -> "StudySchedule":
    """Return the schedule of a study, all options applied, whose folder may hold runs already.

    Raises ValueError if the folder holds runs that were made with different settings.
    """
    for variant in study.variants:
        for seed in range(study.all_seeds):
            study.verdict_run(variant, seed).folder(study_dir).finalize()
        for folder in tuning_runs(study_dir, variant):
            folder.finalize()
    schedule = StudySchedule(study, study_dir, fingerprints)
    found = [
        f"{folder.path}: {why}"
        for variant in study.variants
        for folder, why in conflicts(
            study, study_dir, variant, fingerprints[variant], schedule.chosen(variant)
        )
    ]
    if found:
        more = len(found) - MOST_CONFLICTS_NAMED
        raise ValueError(
            "existing runs were made with different settings; nothing was run:\n"
            + "\n".join(found[:MOST_CONFLICTS_NAMED])
            + (f"\nand {more} more" if more > 0 else "")
            + f"\nchoose another --out, or remove these runs from {study_dir}"
        )
    return schedule


class StudySchedule:
    """The runs of a study in progress: `next` hands one out, `finished` takes it back.

    Constructing a schedule writes nothing; `record_decisions` and `finished` write the recipes that
    were chosen.
    """

    def __init__(self, study: Study, study_dir: Path, fingerprints: Fingerprints) -> None:
        self.study, self.study_dir, self.fingerprints = study, study_dir, fingerprints
        self.tuned = dict[str, TuningResult]()
        self._outcomes = Outcomes.read(study, study_dir)
        self._seeds: Mapping[str, int] = {}
        self._planned = dict[Wanted, PlannedRun]()
        self._running = list[PlannedRun]()
        self._waiting = list[Wanted]()
        self._leases = Observer()
        self._ended_elsewhere = list[tuple[PlannedRun, tuple[TuningResult, ...]]]()
        self.held = list[tuple[PlannedRun, Holder]]()  # by other processes, as `next` has seen
        self._decide()

    def chosen(self, variant: str) -> Recipe | None:
        """Return the recipe that is chosen for a variant; None if there is none yet."""
        result = self.tuned.get(variant)
        return result and result.search.recipe

    def record_decisions(self) -> None:
        """Write the recipes that earlier runs decided."""
        for result in self.tuned.values():
            self._record(result)

    def next(self) -> PlannedRun | None:
        """Return the run to start now; None if there is none, or none before another has ended.

        Runs that other processes hold are skipped, and listed in `held`.

        Runs that the search needs come first, since the verdict waits for them; then lower seeds,
        then the order of the variants; then challenges. Where the search waits for other variants,
        runs that it will need unless those change the warm-up keep a device busy.
        """
        stages, order = list(get_args(Stage)), list(self.study.variants)

        def priority(wanted: Wanted) -> tuple[int, int, int]:
            return stages.index(wanted.stage), wanted.seed or 0, order.index(wanted.variant)

        self.held, skipped = [], set[Wanted]()
        while left := [wanted for wanted in self._waiting if wanted not in skipped]:
            wanted = min(left, key=priority)
            planned = self._plan(wanted)
            folder = planned.run.folder(self.study_dir)
            if holder := self._leases.holder(folder.lease):
                self.held.append((planned, holder))
                skipped.add(wanted)
            elif self._outcomes.ended_in_the_meantime(folder):
                self._ended_elsewhere.append((planned, self._take_outcome(planned)))
            else:
                self._waiting.remove(wanted)
                self._running.append(planned)
                return planned
        return None

    def ended_elsewhere(self) -> Iterator[tuple[PlannedRun, tuple[TuningResult, ...]]]:
        """Yield the runs that `next` found to have ended in other processes, each once.

        With each come the results of the searches and challenges that it ended.
        """
        while self._ended_elsewhere:
            yield self._ended_elsewhere.pop(0)

    def waiting(self) -> int:
        """Return the number of runs that could start now, as far as `next` has seen."""
        return len(self._waiting) - len(self.held)

    def finished(self, planned: PlannedRun) -> tuple[TuningResult, ...]:
        """Take the end of a run that `next` returned, whatever its outcome; add what follows.

        Returns the results of the searches and challenges that this run ended.
        """
        self._running.remove(planned)
        return self._take_outcome(planned)

    def give_back(self, planned: PlannedRun) -> None:
        """Take back a run that `next` returned: another process holds it, or its worker is lost."""
        self._running.remove(planned)
        self._decide()

    @reading_once()
    def _take_outcome(self, planned: PlannedRun) -> tuple[TuningResult, ...]:
        folder = planned.run.folder(self.study_dir)
        if why := conflict(planned.run, folder, self.fingerprints[planned.run.variant]):
            raise ValueError(
                f"{folder.path} was made by another command with different settings: {why}; "
                "choose another --out"
            )
        self._outcomes.add(planned.run, self.study_dir)
        before = dict(self.tuned)
        self._decide()
        ended = tuple(found for name, found in self.tuned.items() if before.get(name) != found)
        for result in ended:
            self._record(result)
        return ended

    def unfinished_variants(self) -> list[str]:
        """Return the variants with runs that are not done, in the study's order."""
        unfinished = {wanted.variant for wanted in self._waiting}
        unfinished |= {planned.run.variant for planned in self._running} | set(self._untuned())
        return [variant for variant in self.study.variants if variant in unfinished]

    def steps_left(self) -> int:
        """Return the training steps of all runs that are not done, as far as they are known."""
        variants = [wanted.variant for wanted in self._waiting]
        variants += [planned.run.variant for planned in self._running]
        variants += self._untuned() * self.study.seeds
        return sum(self.study.variants[name].train.steps for name in variants)

    def verdict_count(self, variants: Iterable[str] | None = None) -> RunCount:
        """Count the runs for the verdict, of some variants or of all, without challenges."""
        chosen = list(self.study.variants if variants is None else variants)
        failed = [name for name in chosen if name in self.tuned and self.tuned[name].failure]
        done = sum(
            name in failed or self._outcomes.ended(name, None, seed)
            for name in chosen
            for seed in range(self._seeds[name])
        )
        known = sum(self._seeds[name] for name in chosen)
        if not self._verdict_left():
            return RunCount.exactly(done, known)
        return RunCount(done, known, known, max(known, len(chosen) * self.study.all_seeds))

    def _verdict_left(self) -> bool:
        """True if runs for the verdict remain, or runs of searches before them."""
        return bool(self._untuned()) or any(
            self._open(name, "verdict") for name in self.study.variants
        )

    def tuning_count(self, variants: Iterable[str] | None = None) -> RunCount:
        """Count the runs that search recipes, of some variants or of all."""
        counts, carried = list[RunCount](), self.study.sources()
        taken = self._outcomes.shared.warmup_level if self._outcomes.shared else 0
        for name in self.study.variants if variants is None else variants:
            failed = sum(
                one == name and seed == tuning_seed(one) for one, _, seed in self._outcomes.failed
            )
            done = len(self._outcomes.tuning[name]) + failed
            known = done + self._open(name, "tuning")
            if (tuning := self.study.tuning) and not (name in self.tuned or name in carried):
                bounds = tuning.bounds(self._longer_warmups, taken)
                counts.append(RunCount(done, *(max(known, n) for n in bounds)))
            else:
                counts.append(RunCount.exactly(done, known))
        return RunCount.total(counts)

    def challenge_count(self, variants: Iterable[str] | None = None) -> RunCount:
        """Count the runs of challenges; how many there are is known when the verdict's have ended.

        Expected is the mean of simulations, in which few variants are challenged.
        """
        chosen = list(self.study.variants if variants is None else variants)
        tuning, each = self.study.tuning, (len(BESIDE) - 1) * self.study.all_seeds
        done, known = 0, 0
        for name in chosen:
            of_variant = sum(map(len, self._outcomes.challenge[name].values()))
            done, known = done + of_variant, known + of_variant + self._open(name, "challenge")
        challenges = tuning is not None and tuning.challenge and self.study.seeds > 1
        if not challenges or not self._verdict_left():
            return RunCount.exactly(done, known)
        expected = expected_challenge_runs(len(chosen), self.study.seeds)
        return RunCount(done, known, max(known, expected), max(known, each * len(chosen)))

    @cached_property
    def _longer_warmups(self) -> int:
        """The number of longer warm-ups that the search may try, for all variants alike."""
        tuning = self.study.tuning
        assert tuning is not None
        configs = self.study.variants.values()
        return min(start_of(config, tuning).longer_warmups for config in configs)

    def _decide(self) -> None:
        """Find what follows from the outcomes."""
        decided = decisions(self.study, self._outcomes)
        running = {planned.run.folder(self.study_dir).key for planned in self._running}
        self.tuned, self._seeds = dict(decided.results), decided.seeds
        self._waiting = [
            wanted
            for wanted in decided.wanted
            if self._plan(wanted).run.folder(self.study_dir).key not in running
        ]

    def _plan(self, wanted: Wanted) -> PlannedRun:
        if wanted not in self._planned:
            _, name, seed, recipe = wanted
            if wanted.stage == "verdict":
                run = self.study.verdict_run(name, seed or 0, recipe)
            else:
                assert recipe is not None
                run = self.study.tuning_run(name, recipe)
                if seed is not None:
                    run = self.study.challenge_run(name, seed, recipe)
            identity = run.config.identity(self.fingerprints[name] or "")
            self._planned[wanted] = PlannedRun(run, identity)
        return self._planned[wanted]

    def _record(self, result: TuningResult) -> None:
        result.write(self.study_dir)
        if result.failure is not None:
            for seed in range(self.study.seeds):
                folder = self.study.verdict_run(result.variant, seed).folder(self.study_dir)
                with suppress(HeldError), folder.hold():
                    if not folder.ended.is_dir():
                        folder.fail(result.failure)

    def _untuned(self) -> list[str]:
        """Return the variants whose recipe is still searched."""
        tunes = self.study.tuning is not None
        return [name for name in self.study.variants if tunes and name not in self.tuned]

    def _open(self, variant: str, stage: Stage) -> int:
        """Return the number of runs of a stage that wait or are running."""
        waiting = sum(wanted[:2] == (stage, variant) for wanted in self._waiting)
        return waiting + sum(
            run.variant == variant and _stage(run) == stage for run, _ in self._running
        )


def _stage(run: Run) -> Stage:
    if run.recipe is None:
        return "verdict"
    return "tuning" if run.tunes else "challenge"
