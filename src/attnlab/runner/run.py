"""A study from its question to its verdict: what `attnlab run` does, as a function.

data ─► what is still to be run ─► are its mechanisms correct? ─► runs, in workers ─► report
"""

import dataclasses
import inspect
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from multiprocessing.spawn import get_preparation_data
from pathlib import Path
from typing import Any

from attnlab.analysis.analysis import Analysis
from attnlab.checks.targets import Checked, of_study
from attnlab.config import ConfigError, Problem
from attnlab.data import Places
from attnlab.device.selection import worker_slots
from attnlab.kernels.flash_linear_attention import use_fla
from attnlab.record import StudyRecord
from attnlab.reporting.files import write_report, write_results
from attnlab.runner.events import Activity, Ended, Notice, Started, Watch, ignore
from attnlab.runner.request import changed, corpora, folder_of
from attnlab.runner.schedule import open_schedule
from attnlab.runner.tracking import Tracker
from attnlab.runner.workers import run_schedule
from attnlab.runner.workers.local import LocalWorkers
from attnlab.study.study import Study


class BrokenPromiseError(ValueError):
    """Mechanisms break promises of the contract, and nothing was trained. `checked` has them."""

    def __init__(self, checked: Sequence[Checked]) -> None:
        self.checked = list(checked)
        broken = [
            f"{one.target.name}: {result.name}: {result.how_much}"
            for one in checked
            for result in one.results
            if not result.holds
        ]
        super().__init__("\n".join(["nothing was trained; these promises are broken:", *broken]))


def run(  # noqa: PLR0913  one parameter an option
    study: Study | str,
    *,
    length: str | None = None,
    only: Iterable[str] | str | None = None,
    seeds: int | None = None,
    steps: int | None = None,
    overrides: Iterable[str] = (),
    tune: bool = True,
    check: bool = True,
    out: Path | str | None = None,
    data: Path | str | None = None,
    cache: Path | str | None = None,
    device: str = "auto",
    workers: int | None = None,
    fla_path: Path | str | None = None,
    track: Iterable[str] = (),
    watch: Watch | None = None,
    command: str | None = None,
) -> Analysis:
    """Train every variant of a study that is not trained yet, and compare them.

        import attnlab

        if __name__ == "__main__":
            analysis = attnlab.run("quickstart", only=["mha", "linear"], seeds=2)
            print(*analysis.headline)

    Runs are trained in processes of their own, which import the script that calls this: a script
    needs the `if`, a notebook does not. The mechanisms are checked first. Where the study tunes
    learning rates, each variant's is chosen next, on validation data and a seed of its own.

    Args:
        study: a shipped study's name, the path of a Python file, or the study itself.
        length: one of the study's named lengths.
        only: variants, as a list or separated by commas.
        seeds: seeds a variant.
        steps: training steps.
        overrides: dotted settings of every variant, such as `train.learning_rate=1e-3`.
        tune: False to train at the learning rates that the variants name.
        check: False to train mechanisms whether they keep their promises or not.
        out: the study's folder, results/NAME by default.
        data: the folder of your data, ATTNLAB_DATA by default.
        cache: a folder for derived files, ATTNLAB_CACHE or ~/.cache/attnlab by default.
        device: auto, cpu, cuda or cuda:1.
        workers: runs at a time, by default one a CUDA device or CPU core.
        fla_path: a clone of flash-linear-attention to use in place of the installed package,
            ATTNLAB_FLA_PATH by default.
        track: tools to mirror metrics to: tensorboard, wandb.
        watch: a function that is called with every event: an `Activity`, `Started`, `RunEvent` or
            `Notice` of `attnlab.runner.events`. Nothing is printed.
        command: what the record says made it, by default this call.

    Returns the analysis of all runs in the folder. Those that failed or diverged are in its
    `table.failures`: a run that fails is no exception. Runs, record and report are files of the
    folder, and the same call again goes on with what is missing there; KeyboardInterrupt, and what
    `watch` raises, leave a report of what was done.

    Raises before anything is spent:
        ConfigError: settings are wrong; it has all of them.
        BrokenPromiseError: a mechanism is not what it says it is.
        DataError: data is not where it should be.
        ValueError: there is no such study, device or tool; or the folder has runs with other
            settings. The three above are ValueErrors too.
        RuntimeError: a script does without the `if`.
    """
    get_preparation_data("")  # raises where a worker is at importing the script
    use_fla(fla_path)
    only = only if only is None or isinstance(only, str) else list(only)
    asked: dict[str, Any] = {"length": length, "only": only, "seeds": seeds, "steps": steps}
    asked |= {"overrides": list(overrides), "tune": tune}
    chosen = changed(study, **asked)
    _refuse_what_no_worker_can_import(chosen)
    study_dir, where_data_is = folder_of(chosen, out), Places.from_environment(data, cache)
    where = worker_slots(device, chosen.fewest_runs(), workers)
    tell = watch or ignore
    tracker = Tracker(track, study_dir, lambda text: tell(Notice(text)))
    tell(Activity("reading the data"))
    read = corpora(chosen, where_data_is)
    schedule = open_schedule(
        chosen, study_dir, {name: corpus.fingerprint for name, corpus in read.items()}
    )
    left = schedule.unfinished_variants()
    if left and check:
        _refuse_what_is_broken(chosen.only(left), tell)
    command = command or _call(study if isinstance(study, str) else chosen.name, asked)
    _record(chosen, study_dir, command, checked=check, trains=bool(left)).write(study_dir)
    tell(Started(schedule))
    events = run_schedule(schedule, LocalWorkers(where, study_dir, where_data_is))
    try:
        with closing(events), tracker:
            for happened in events:
                tell(happened)
                tracker.follow(happened.run.folder(study_dir))
                if isinstance(happened.event, Ended) and not happened.run.tunes:
                    write_results(study_dir)
        tell(Activity("writing the report"))
    finally:  # an interrupted study has a report of what it did
        analysis = write_report(study_dir)
    return analysis


def _refuse_what_no_worker_can_import(study: Study) -> None:
    """Raises ConfigError for classes that are defined in a notebook or in the script itself."""
    problems = dict.fromkeys(
        Problem(
            type(config).__name__,
            "is defined in __main__, where no worker finds it: put it "
            "into a file of its own and import it from there",
        )
        for run in study.variants.values()
        for config in (run.data, run.model.feedforward, *run.model.per_layer())
        if type(config).__module__ == "__main__"
    )
    if problems:
        raise ConfigError(problems)


def _refuse_what_is_broken(study: Study, tell: Watch) -> None:
    checked = list[Checked]()
    for target in of_study(study):
        tell(Activity(f"checking {target.name}"))
        checked.append(target.check(quick=True))
    broken = [one for one in checked if not one.holds]
    if broken:
        raise BrokenPromiseError(broken)


def _record(
    study: Study, study_dir: Path, command: str, *, checked: bool, trains: bool
) -> StudyRecord:
    """What the folder's record says from now on. Where all runs have ended, how they came to be
    stays as it was written then.
    """
    record = study.record(command=command, checked=checked).joined(study_dir)
    if trains or not (study_dir / "study.json").is_file():
        return record
    before = StudyRecord.read(study_dir)
    return dataclasses.replace(
        record,
        command=before.command,
        attnlab_version=before.attnlab_version,
        checked=before.checked,
    )


def _call(name: str, asked: Mapping[str, Any]) -> str:
    """The call in Python, with what is not as it is by default."""
    by_default = inspect.signature(changed).parameters
    given = [
        f"{key}={value!r}"
        for key, value in asked.items()
        if value not in (by_default[key].default, [])
    ]
    return f"attnlab.run({', '.join([repr(name), *given])})"
