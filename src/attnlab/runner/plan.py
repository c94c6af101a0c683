"""The plan of a study: its runs, time, disk, memory and statistical power, before anything is run.

`attnlab.plan` takes the arguments of `attnlab.run`. `trial` times a few training steps of each
variant, and checks the mechanisms, within some seconds.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from attnlab.analysis.analysis import analyse
from attnlab.analysis.fairness import compared_groups, shared_by_compared
from attnlab.analysis.statistics.noise import FEWEST_COMPARISONS
from attnlab.analysis.statistics.seeds import Compared, Power, expected_prior, level_of, power_of
from attnlab.checks.targets import of_study
from attnlab.config.problem import taking
from attnlab.data import DataError
from attnlab.device.measuring import gpu_bytes
from attnlab.record import StudyRecord
from attnlab.runner.comparable import of_run, require_comparable
from attnlab.runner.decisions import RunCount
from attnlab.runner.events import Activity, Watch
from attnlab.runner.forecast import Forecast
from attnlab.runner.request import Request
from attnlab.runner.schedule import open_schedule
from attnlab.runner.tracking import new_copies
from attnlab.runner.trial import Data, TrialOutcome, TrialProcess
from attnlab.study import ignore
from attnlab.study.study import Study
from attnlab.study.variants import notes_on_training, require_buildable

TRIAL_SECONDS = 4.0  # with the start of two processes, a plan takes less than ten


@dataclass(frozen=True, kw_only=True)
class VariantPlan:
    """Runs, time and memory of one variant."""

    parameters: int
    tuning_runs: RunCount
    verdict_runs: RunCount
    step_seconds: float | None  # None if it could not be timed
    run_seconds: float | None  # of one run for the verdict
    peak_memory_bytes: int | None  # of training; None if it is unknown
    measured: bool  # False: the seconds are computed from FLOPs, a lower bound
    not_timed: str | None  # the error that prevented timing


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The remaining runs of a study, their cost and their power."""

    study: str
    question: str
    study_dir: Path
    seeds: int
    tuning_runs: RunCount
    verdict_runs: RunCount
    challenge_runs: RunCount
    workers: int
    devices: tuple[str, ...]
    seconds: tuple[float, float, float] | None  # least, expected, most; None: not timed
    checkpoint_bytes: int
    record_bytes: int
    power: Power
    variants: Mapping[str, VariantPlan]
    problems: tuple[str, ...] = ()  # for which `attnlab.run` would fail, as far as was tried
    notes: tuple[str, ...] = ()  # for the user: what was not tried, what options changed

    @property
    def measured(self) -> bool:
        """True if all times are measured; False if some are lower bounds computed from FLOPs."""
        return all(variant.measured for variant in self.variants.values())

    @property
    def not_timed(self) -> dict[str, str]:
        """The variants that could not be timed, and why."""
        return {
            name: variant.not_timed
            for name, variant in self.variants.items()
            if variant.not_timed is not None
        }

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values; times in seconds, memory and disk in bytes."""
        return {
            "study": self.study,
            "runs": {
                "tuning": self.tuning_runs._asdict(),
                "verdict": self.verdict_runs._asdict(),
                "challenge": self.challenge_runs._asdict(),
            },
            "problems": list(self.problems),
            "notes": list(self.notes),
            "workers": self.workers,
            "devices": list(self.devices),
            "seconds": self.seconds and dict(zip(_BOUNDS, self.seconds, strict=True)),
            "disk_bytes": {"checkpoints": self.checkpoint_bytes, "records": self.record_bytes},
            "minimum_detectable_difference": self.power.to_json(),
            "variants": {
                name: {
                    "parameters": variant.parameters,
                    "tuning": variant.tuning_runs._asdict(),
                    "verdict": variant.verdict_runs._asdict(),
                    "step_seconds": variant.step_seconds,
                    "run_seconds": variant.run_seconds,
                    "peak_memory_bytes": variant.peak_memory_bytes,
                    "measured": variant.measured,
                    "not_timed": variant.not_timed,
                }
                for name, variant in self.variants.items()
            },
        }


_BOUNDS = ("at_least", "expected", "at_most")


@dataclass(frozen=True, kw_only=True)
class PlanRequest(Request):
    """The arguments of `plan`."""

    residual_sd: float | None = None
    anyway: bool = False
    trial_seconds: float = TRIAL_SECONDS
    watch: Watch = ignore


@taking(PlanRequest)
def plan(request: PlanRequest) -> Plan:
    """Return the runs, time, disk, memory and power of `attnlab.run` with the same arguments.

    A few training steps of each variant are timed and the mechanisms are checked, in the order of
    the study, as far as `trial_seconds` allow; a variant that is not reached has a lower bound of
    its time. Nothing is written to the study's folder. Without the study's data the plan has no
    times.

    Args:
        study: and all options but these as for `attnlab.run`. No Ray is started; what a running
            cluster has is in the notes.
        residual_sd: standard deviation of one run's loss, seed effects removed, in nats/token. By
            default that of the runs in the study's folder, if there are any.
        anyway: plan even if the folder holds runs that the new ones cannot be compared with.
        trial_seconds: the time for reading the data, timing and checks.
        watch: a function that is called with an `Activity` before each activity.

    Raises:
        ConfigError: settings are invalid; it lists all of them.
        ValueError: there is no such study, device or tool; `residual_sd` is not positive; or the
            folder holds runs that were made with different settings, or on other data.
    """
    residual_sd, trial_seconds, watch = request.residual_sd, request.trial_seconds, request.watch
    if residual_sd is not None and not 0 < residual_sd < math.inf:
        raise ValueError(f"residual_sd: must be positive, got {residual_sd}")
    if not 0 <= trial_seconds < math.inf:
        raise ValueError(f"trial_seconds: must not be negative, got {trial_seconds}")
    chosen = request.apply_options()
    require_buildable(chosen)
    study_dir, slots = request.study_dir(chosen), request.slots(chosen)
    new_copies(request.track, study_dir)
    offered, power = request.capacity(chosen), _power(chosen, study_dir, residual_sd)
    tried, read = TrialOutcome(), dict[str, Data]()
    with TrialProcess(
        chosen, request.places(), slots[0], check=request.check, seconds=trial_seconds
    ) as trial:
        watch(Activity("reading the data"))
        try:
            read = trial.read()
        except (DataError, TimeoutError) as error:
            tried.without_data(chosen, error, trial.bounds())
        fingerprints = {n: read[n].fingerprint if read else None for n in chosen.variants}
        schedule = open_schedule(chosen, study_dir, fingerprints)
        left = schedule.unfinished_variants()
        if left and not request.anyway:
            conditions = {
                name: read[name].conditions if read else of_run(config, None)
                for name, config in chosen.variants.items()
            }
            require_comparable(chosen, study_dir, conditions)
        if read:
            for found in trial.results(left):
                tried.add(found, watch)
            tried.not_reached(left, trial_seconds)
            tried.checks_left = (
                len(of_study(chosen)) - tried.checked if request.check and left else 0
            )
    forecast = Forecast(
        schedule=schedule,
        workers=offered.workers,
        run_times=tried.times,
        tokenizer_bytes={name: of_variant.tokenizer_bytes for name, of_variant in read.items()},
    )
    return Plan(
        study=chosen.name,
        question=chosen.question,
        study_dir=study_dir,
        seeds=chosen.seeds,
        tuning_runs=schedule.tuning_count(),
        verdict_runs=schedule.verdict_count(),
        challenge_runs=schedule.challenge_count(),
        workers=offered.workers,
        devices=offered.devices,
        seconds=forecast.seconds(),
        checkpoint_bytes=forecast.checkpoint_bytes(),
        record_bytes=forecast.record_bytes(),
        power=power,
        variants={
            name: _variant_plan(name, forecast, tried.errors.get(name)) for name in chosen.variants
        },
        problems=tuple(tried.problems),
        notes=(
            *chosen.notes,
            *notes_on_training(chosen),
            *offered.notes,
            *dict.fromkeys(note for of_variant in read.values() for note in of_variant.notes),
            *tried.notes(trial_seconds),
            *forecast.notes(request.gpus_per_run, gpu_bytes(offered.devices)),
        ),
    )


def _variant_plan(name: str, forecast: Forecast, not_timed: str | None) -> VariantPlan:
    schedule, time = forecast.schedule, forecast.run_times.get(name)
    return VariantPlan(
        parameters=schedule.study.variants[name].cost().params,
        tuning_runs=schedule.tuning_count([name]),
        verdict_runs=schedule.verdict_count([name]),
        step_seconds=time and time.step,
        run_seconds=forecast.run_seconds(name),
        peak_memory_bytes=time and time.peak_memory_bytes,
        measured=time is None or time.measured,
        not_timed=not_timed,
    )


def _power(study: Study, study_dir: Path, given_sd: float | None) -> Power:
    """Return the power of the verdict; what the runs in the folder tell of their losses is used."""
    known = analyse(study_dir) if StudyRecord.find(study_dir) else None
    cells, judged = study.cells(), [of for of in known.groups if of.judged] if known else []
    noisiest = max((of.residual_sd or 0.0 for of in judged), default=None)
    compared = list(compared_groups(cells, study.variants, study.by_design))
    groups = list[Compared]()
    for names, _, texts in compared:
        of = next((it for it in judged if not it.means.keys().isdisjoint(names)), None)
        missed = list(of.tuning.allowance.values()) if of and study.tuning else []
        level = level_of(study.seeds, study.all_seeds, among=texts)
        sd = given_sd or (of.residual_sd if of else noisiest)
        groups.append(Compared(len(names), level, sd, median(missed or [0.0])))
    of_several = [group.variants for group in groups if group.variants > 1]
    prior = expected_prior(of_several, study.all_seeds) if study.ladder else None
    if known and (known.relative or len(judged) >= FEWEST_COMPARISONS):
        prior = known.relative and known.relative.prior
    return power_of(
        groups,
        study.all_seeds,
        prior,
        source="given" if given_sd else f"of the runs in {study_dir}",
        shared=shared_by_compared(cells, max(texts for *_, texts in compared)),
        tuned=study.tuning is not None,
    )
