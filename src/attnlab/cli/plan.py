"""`attnlab run STUDY --plan`: what a study would take and could find, before anything is spent."""

import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from attnlab.analysis.analysis import analyse
from attnlab.analysis.numbers import count, duration, milliseconds, size
from attnlab.analysis.statistics.power import detectable
from attnlab.cli.app import console, errors, status
from attnlab.data import Corpus, DataError, Places
from attnlab.device.selection import Slot
from attnlab.record import to_json
from attnlab.runner.forecast import Forecast
from attnlab.runner.request import corpora
from attnlab.runner.schedule import RunCount, StudySchedule, open_schedule
from attnlab.runner.timing import Pace, time_run
from attnlab.study.study import Study
from attnlab.training.run import RunConfig


def show_plan(
    study: Study,
    study_dir: Path,
    places: Places,
    slots: list[Slot],
    spread: float | None,
    *,
    as_json: bool,
) -> None:
    """Print it. Raises ValueError where the folder holds runs with other settings."""
    talk = errors if as_json else console
    try:
        with status("reading the data", talk):
            read = corpora(study, places)
    except DataError as error:
        schedule = StudySchedule(study, study_dir, dict.fromkeys(study.variants, ""))
        read, paces, untimed = {}, {}, dict.fromkeys(study.variants, str(error))
    else:
        schedule = open_schedule(
            study, study_dir, {name: corpus.fingerprint for name, corpus in read.items()}
        )
        paces, untimed = _paces(schedule, read, slots[0], talk)
    forecast = Forecast(
        schedule=schedule,
        workers=len(slots),
        paces=paces,
        tokenizer_bytes=_tokenizer_bytes(read),
    )
    power = _power(study, study_dir, spread)
    if as_json:
        sys.stdout.write(to_json(_as_json(forecast, untimed, power)).decode())
    else:
        _print(forecast, untimed, power, slots)


def _paces(
    schedule: StudySchedule, read: Mapping[str, Corpus], slot: Slot, talk: Console
) -> tuple[dict[str, Pace], dict[str, str]]:
    """Of the variants that are not done; and why others could not be timed."""
    paces, untimed, timed = dict[str, Pace](), dict[str, str](), dict[RunConfig, Pace]()
    for name in schedule.unfinished_variants():
        config = schedule.study.variants[name]
        with status(f"timing {name}", talk):
            try:
                if config not in timed:
                    timed[config] = _time(config, read[name], slot)
                paces[name] = timed[config]
            except Exception as error:  # whatever its model raises, the plan says so and goes on
                untimed[name] = f"{type(error).__name__}: {error}"
    return paces, untimed


def _time(config: RunConfig, corpus: Corpus, slot: Slot) -> Pace:
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


def _power(study: Study, study_dir: Path, spread: float | None) -> dict[str, Any]:
    """The difference that these seeds could find, and from which spread of a run's loss."""
    source = "as given" if spread is not None else None
    if spread is not None and spread <= 0:
        raise ValueError(f"--spread must be positive, got {spread}")
    if spread is None and (study_dir / "study.json").is_file():
        spread = analyse(study_dir).noise
        source = None if spread is None else f"as that of the runs in {study_dir}"
    variants, seeds = len(study.variants), study.seeds
    possible = variants > 1 and seeds > 1
    return {
        "spread": spread,
        "spread_source": source,
        "spreads": detectable(1.0, variants=variants, seeds=seeds) if possible else None,
        "nats": detectable(spread, variants=variants, seeds=seeds)
        if possible and spread is not None
        else None,
    }


def _as_json(
    forecast: Forecast, untimed: Mapping[str, str], power: Mapping[str, Any]
) -> dict[str, Any]:
    schedule, seconds = forecast.schedule, forecast.seconds()
    return {
        "study": schedule.study.name,
        "runs": {
            "tuning": schedule.tuning_count()._asdict(),
            "verdict": schedule.verdict_count()._asdict(),
        },
        "workers": forecast.workers,
        "seconds": seconds and {"at_least": seconds[0], "at_most": seconds[1]},
        "disk_bytes": {
            "checkpoints": forecast.checkpoint_bytes(),
            "records": forecast.record_bytes(),
        },
        "detectable": dict(power),
        "variants": {
            name: {
                "parameters": forecast.parameters(name),
                "tuning": schedule.tuning_count([name])._asdict(),
                "verdict": schedule.verdict_count([name])._asdict(),
                "run_seconds": forecast.run_seconds(name),
                "step_seconds": forecast.paces[name].step if name in forecast.paces else None,
                "timed": name in forecast.paces and forecast.paces[name].timed,
                "not_timed": untimed.get(name),
            }
            for name in schedule.study.variants
        },
    }


def _print(
    forecast: Forecast, untimed: Mapping[str, str], power: Mapping[str, Any], slots: list[Slot]
) -> None:
    schedule, study = forecast.schedule, forecast.schedule.study
    console.print(f"[bold]{escape(study.question.strip().splitlines()[0])}[/bold]")
    console.print(_grid(forecast))
    tuning, verdict = schedule.tuning_count(), schedule.verdict_count()
    lines = {"runs": f"{_runs(verdict)} for the verdict"}
    if tuning.at_most:
        lines["runs"] = f"{_runs(tuning)} to tune learning rates, then {lines['runs']}"
    lines["time"] = _time_left(forecast, untimed, slots)
    checkpoints, records = forecast.checkpoint_bytes(), forecast.record_bytes()
    lines["disk"] = f"{size(checkpoints + records)}, {size(checkpoints)} of it checkpoints"
    lines["finds"] = _finds(study, power)
    for name, text in lines.items():
        console.print(f"{name:<6}{escape(text)}", highlight=False, soft_wrap=True)


def _grid(forecast: Forecast) -> Grid:
    grid = Grid(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("variant", "parameters", "ms/step", "a run", "to tune", "for the verdict"):
        grid.add_column(title, justify="left" if title == "variant" else "right")
    schedule = forecast.schedule
    for name in schedule.study.variants:
        pace = forecast.paces.get(name)
        grid.add_row(
            escape(name),
            count(forecast.parameters(name)),
            _at_least(pace, milliseconds(pace.step)) if pace else "–",
            _at_least(pace, duration(forecast.run_seconds(name))),
            _runs(schedule.tuning_count([name])),
            _runs(schedule.verdict_count([name])),
        )
    return grid


def _at_least(pace: Pace | None, text: str) -> str:
    return f"≥ {text}" if pace and not pace.timed else text


def _runs(count: RunCount) -> str:
    bounds = f"{count.at_least}"
    if count.at_most > count.at_least:
        bounds += f" to {count.at_most}"
    return f"{bounds} ({count.done} done)" if count.done else bounds


def _time_left(forecast: Forecast, untimed: Mapping[str, str], slots: list[Slot]) -> str:
    seconds = forecast.seconds()
    if seconds is None:
        name, reason = next(iter(untimed.items()))
        return f"not timed: {name}: {shorten(reason, 300, placeholder=' ...')}"
    least, most = map(duration, seconds)
    bounds = least if least == most else f"{least} to {most}"
    devices = ", ".join(dict.fromkeys(slot.device for slot in slots))
    where = f"{len(slots)} at a time on {devices}"
    if all(pace.timed for pace in forecast.paces.values()):
        return f"about {bounds}, {where}"
    return f"at least {bounds}, {where}: by arithmetic alone, a step being too long to be timed"


def _finds(study: Study, power: Mapping[str, Any]) -> str:
    if power["spreads"] is None:
        return "no difference: a verdict needs two variants and two seeds"
    between = f"between any two of {len(study.variants)} variants, 4 times in 5"
    if power["nats"] is None:
        spreads = f"differences from {power['spreads']:.1f} times the spread of a run's loss"
        return f"{spreads} {between}; --spread says how large that is"
    spread = f"a run's loss spreads by {power['spread']:.4f}, {power['spread_source']}"
    return f"differences from {power['nats']:.4f} nats {between} ({spread})"
