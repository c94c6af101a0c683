"""The plan of a study: its runs, time, disk, memory and statistical power, before anything is run.

`attnlab.plan` takes the arguments of `attnlab.run`, and times a few training steps of each variant.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from attnlab.analysis.analysis import analyse
from attnlab.analysis.statistics.power import detectable
from attnlab.data import Corpus, DataError
from attnlab.device.selection import Slot
from attnlab.runner.comparable import require_comparable
from attnlab.runner.events import Activity, Watch
from attnlab.runner.forecast import Forecast, RunTime, time_run
from attnlab.runner.request import Request, read_data
from attnlab.runner.schedule import RunCount, StudySchedule, open_schedule
from attnlab.study.events import ignore
from attnlab.study.study import Study
from attnlab.training.run import RunConfig


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
class Power:
    """The smallest difference between two variants that is found with a probability of 80 %."""

    standard_deviations: float | None  # in residual SDs; None for one seed or one variant
    residual_sd: float | None  # of one run, seed effects removed, nats/token; None if unknown
    residual_sd_source: str | None  # where `residual_sd` comes from

    @property
    def nats(self) -> float | None:
        """The minimum detectable difference in nats/token; None if it is unknown."""
        if self.standard_deviations is None or self.residual_sd is None:
            return None
        return self.standard_deviations * self.residual_sd


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The remaining runs of a study, their cost and their power."""

    study: str
    question: str
    study_dir: Path
    seeds: int
    tuning_runs: RunCount
    verdict_runs: RunCount
    workers: int
    devices: tuple[str, ...]
    seconds: tuple[float, float] | None  # lower and upper bound; None if a variant was not timed
    checkpoint_bytes: int
    record_bytes: int
    power: Power
    variants: Mapping[str, VariantPlan]
    notes: tuple[str, ...] = ()  # for the user: what options changed beyond what they name

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
            },
            "notes": list(self.notes),
            "workers": self.workers,
            "devices": list(self.devices),
            "seconds": self.seconds and dict(zip(_BOUNDS, self.seconds, strict=True)),
            "disk_bytes": {"checkpoints": self.checkpoint_bytes, "records": self.record_bytes},
            "minimum_detectable_difference": {
                "nats": self.power.nats,
                "standard_deviations": self.power.standard_deviations,
                "residual_sd": self.power.residual_sd,
                "residual_sd_source": self.power.residual_sd_source,
            },
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


_BOUNDS = ("at_least", "at_most")


def plan(  # noqa: PLR0913  one parameter per option
    study: Study | Path | str,
    *,
    length: str | None = None,
    only: Iterable[str] | str | None = None,
    seeds: int | None = None,
    steps: int | None = None,
    overrides: Iterable[str] = (),
    tune: bool = True,
    out: Path | str | None = None,
    data: Path | str | None = None,
    cache: Path | str | None = None,
    device: str = "auto",
    workers: int | None = None,
    fla_path: Path | str | None = None,
    residual_sd: float | None = None,
    anyway: bool = False,
    watch: Watch = ignore,
) -> Plan:
    """Return the runs, time, disk, memory and power of `attnlab.run` with the same arguments.

    A few training steps of each variant are timed; nothing is written. Without the study's data
    the plan has no times.

    Args:
        study, length, only, seeds, steps, overrides, tune, out, data, cache, device, workers,
            fla_path: as for `attnlab.run`.
        residual_sd: standard deviation of one run's loss, seed effects removed, in nats/token. By
            default that of the runs in the study's folder, if there are any.
        anyway: plan even if the folder holds runs that the new ones cannot be compared with.
        watch: a function that is called with an `Activity` before each activity.

    Raises:
        ConfigError: settings are invalid; it lists all of them.
        ValueError: there is no such study or device; `residual_sd` is not positive; or the folder
            holds runs that were made with different settings, or on other data.
    """
    if residual_sd is not None and residual_sd <= 0:
        raise ValueError(f"residual_sd: must be positive, got {residual_sd}")
    request = Request(
        study=study,
        length=length,
        only=only,
        seeds=seeds,
        steps=steps,
        overrides=overrides,
        tune=tune,
        out=out,
        data=data,
        cache=cache,
        device=device,
        workers=workers,
        fla_path=fla_path,
    )
    chosen = request.apply_options()
    study_dir, slots = request.study_dir(chosen), request.slots(chosen)
    watch(Activity("reading the data"))
    try:
        read = read_data(chosen, request.places())
    except DataError as error:
        schedule = StudySchedule(chosen, study_dir, dict.fromkeys(chosen.variants, ""))
        read, times = {}, {}
        not_timed = dict.fromkeys(chosen.variants, str(error))
    else:
        fingerprints = {name: corpus.fingerprint for name, corpus in read.items()}
        schedule = open_schedule(chosen, study_dir, fingerprints)
        if schedule.unfinished_variants() and not anyway:
            require_comparable(chosen, study_dir, read)
        times, not_timed = _time_variants(schedule, read, slots[0], watch)
    forecast = Forecast(
        schedule=schedule,
        workers=len(slots),
        run_times=times,
        tokenizer_bytes=_tokenizer_bytes(read),
    )
    return Plan(
        study=chosen.name,
        question=chosen.question,
        study_dir=study_dir,
        seeds=chosen.seeds,
        tuning_runs=schedule.tuning_count(),
        verdict_runs=schedule.verdict_count(),
        workers=len(slots),
        devices=tuple(dict.fromkeys(slot.device for slot in slots)),
        seconds=forecast.seconds(),
        checkpoint_bytes=forecast.checkpoint_bytes(),
        record_bytes=forecast.record_bytes(),
        power=_power(chosen, study_dir, residual_sd),
        variants={
            name: _variant_plan(name, forecast, not_timed.get(name)) for name in chosen.variants
        },
        notes=chosen.notes,
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


def _time_variants(
    schedule: StudySchedule, read: Mapping[str, Corpus], slot: Slot, watch: Watch
) -> tuple[dict[str, RunTime], dict[str, str]]:
    """Return the times of the unfinished variants, and the errors of those that have none."""
    times, not_timed, timed = dict[str, RunTime](), dict[str, str](), dict[RunConfig, RunTime]()
    for name in schedule.unfinished_variants():
        config = schedule.study.variants[name]
        watch(Activity(f"timing {name}"))
        try:
            if config not in timed:
                timed[config] = _time(config, read[name], slot)
            times[name] = timed[config]
        except Exception as error:  # of any kind: the plan reports it and continues
            not_timed[name] = f"{type(error).__name__}: {error}"
    return times, not_timed


def _time(config: RunConfig, corpus: Corpus, slot: Slot) -> RunTime:
    threads = torch.get_num_threads()
    torch.set_num_threads(slot.threads)
    try:
        return time_run(config, corpus, torch.device(slot.device))
    finally:
        torch.set_num_threads(threads)


def _tokenizer_bytes(read: Mapping[str, Corpus]) -> dict[str, int]:
    by_fingerprint = dict[str, int]()
    for corpus in read.values():
        if corpus.fingerprint not in by_fingerprint:
            by_fingerprint[corpus.fingerprint] = len(corpus.codec.to_json().encode())
    return {name: by_fingerprint[corpus.fingerprint] for name, corpus in read.items()}


def _power(study: Study, study_dir: Path, residual_sd: float | None) -> Power:
    source = None if residual_sd is None else "given"
    if residual_sd is None and (study_dir / "study.json").is_file():
        residual_sd = analyse(study_dir).residual_sd
        source = None if residual_sd is None else f"of the runs in {study_dir}"
    return Power(
        standard_deviations=detectable(1.0, variants=len(study.variants), seeds=study.seeds),
        residual_sd=residual_sd,
        residual_sd_source=source,
    )
