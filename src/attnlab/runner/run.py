"""`attnlab.run`: a study from its question to its verdict.

data ─► schedule of the remaining runs ─► checks of their mechanisms ─► runs, in workers ─► report
"""

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from attnlab.analysis.analysis import Analysis
from attnlab.checks.targets import Checked, check_targets, of_study
from attnlab.config.problem import taking
from attnlab.data import Corpus
from attnlab.inference.recorded import remember_code
from attnlab.record import StudyRecord, WriteError, remove_temporary
from attnlab.reporting.files import write_report, write_results
from attnlab.runner.comparable import of_run, require_comparable
from attnlab.runner.events import Activity, Ended, Held, Notice, RunEvent, Started, Watch
from attnlab.runner.processes import require_processes
from attnlab.runner.request import Request, require_importable
from attnlab.runner.schedule import open_schedule
from attnlab.runner.tracking import Tracker
from attnlab.runner.workers import run_schedule, stopped_by_errors
from attnlab.runner.workers.local import LocalWorkers
from attnlab.runner.workers.ray import Cluster, RayWorkers
from attnlab.study import ignore
from attnlab.study.study import Study
from attnlab.study.variants import notes_on_data, read_data, require_buildable


class ViolatedPropertyError(ValueError):
    """Mechanisms violate properties of the contract; nothing was run. `checked` has the results."""

    def __init__(self, checked: Sequence[Checked]) -> None:
        self.checked = list(checked)
        violated = [
            f"{one.target.name}: {result.name}: {result.how_much}"
            for one in checked
            for result in one.results
            if not result.holds
        ]
        super().__init__("\n".join(["nothing was run; these properties are violated:", *violated]))


@dataclass(frozen=True, kw_only=True)
class RunRequest(Request):
    """The arguments of `run`."""

    anyway: bool = False
    watch: Watch = ignore
    command: str | None = None


@taking(RunRequest)
def run(request: RunRequest) -> Analysis:
    """Train every variant of a study that is not trained yet, and compare them.

        import attnlab

        analysis = attnlab.run("quickstart", only=["mha", "linear"], seeds=2)
        print(*analysis.headline)

    Runs are trained in separate processes, which do not import the calling script. The mechanisms
    are checked first. If the study tunes learning rates, each variant's rate is chosen next, by
    validation loss with a separate seed.

    Args:
        study: the name of a shipped study, the path of a Python file, or a `Study`.
        length: one of the study's named lengths.
        add: mechanisms to add as variants, `NAME=KIND[:settings]` as in "mine=file.py:Class": each
            is the baseline with this mechanism in every layer.
        only: variants, as a list or separated by commas; those of `add` are included.
        seeds: seeds per variant.
        until: "decided" to add seeds to variants while their comparison with the best or with the
            baseline is open; `seeds` is then the number at the start. The report says so.
        most_seeds: the largest number of seeds of a variant, until decided: 10 by default.
        steps: training steps.
        overrides: dotted settings of every variant, such as `train.learning_rate=1e-3`.
        sweep: settings to give several values each, `{"model.mechanisms.0.window": [128, 256]}`:
            the variants are those of the study, with every combination of the values.
        tune: False to train at the recipes that the variants have; True to search each variant's,
            as `Tuning()` does, also where the study does not. None: as the study says.
        check: False to train mechanisms without checking them.
        out: the study's folder, results/NAME by default.
        data: the folder of your data, ATTNLAB_DATA by default.
        cache: a folder for derived files, ATTNLAB_CACHE or ~/.cache/attnlab by default.
        device: auto, cpu, cuda or cuda:1.
        workers: runs at the same time, by default one per GPU or CPU core; on a cluster all.
        gpus_per_run: GPUs of one run, or processes on CPUs; results depend on it by rounding alone.
        fla_path: a local clone of flash-linear-attention to use instead of the installed package,
            ATTNLAB_FLA_PATH by default.
        engine: local for processes of this machine, ray for the nodes of a Ray cluster.
        address: of the Ray cluster, HOST:PORT; by default RAY_ADDRESS, the cluster of this machine,
            or a new one of this machine alone.
        cpus_per_run: CPUs that a run takes on a Ray cluster, 1 by default.
        track: tools that metrics are copied to: tensorboard, wandb.
        anyway: train even if the folder holds runs that the new ones cannot be compared with; the
            report then carries a warning.
        watch: a function that is called with every event: an `Activity`, `Started`, `RunEvent` or
            `Notice` of `attnlab.runner.events`. Nothing is printed.
        command: the command that the study's record names, by default this call.

    Returns:
        The analysis of all runs in the folder. Failed and diverged runs are in its
        `table.failures`; they raise nothing. Runs, record and report are files of the folder, and
        the same call continues with the missing runs. KeyboardInterrupt, and exceptions of
        `watch`, leave a report of the runs that have ended.

    Raises:
        ConfigError: settings are invalid; it lists all of them. Nothing was run.
        ViolatedPropertyError: a mechanism violates a property. Nothing was run.
        DataError: data is missing or unfit. Nothing was run.
        ValueError: there is no such study, device or tool; or the folder holds runs that were made
            with different settings, or that read other data, took other numbers of steps or were
            measured on other splits. The three errors above are ValueErrors, too.
        WriteError: the disk is full, or refuses a file for another reason; the message names it.
            Runs in progress were stopped, and the same call continues them from their checkpoints.
        RuntimeError: it is called while a process of the caller imports the calling script.
    """
    require_processes()
    chosen = request.apply_options()
    require_importable(chosen)
    with request.cluster() as cluster:
        return _run(request, chosen, cluster)


def _run(request: RunRequest, chosen: Study, cluster: Cluster | None) -> Analysis:
    """Train and compare the variants of the chosen study, on the cluster if there is one."""
    watch, command = request.watch, request.command or request.call()
    lacking = require_buildable(chosen)
    study_dir, slots = request.study_dir(chosen), request.slots(chosen)
    remove_temporary(study_dir)
    tracker = Tracker(request.track, study_dir, lambda text: watch(Notice(text)))
    for note in (*chosen.notes, *lacking):
        watch(Notice(note))
    watch(Activity("reading the data"))
    read = read_data(chosen, request.places())
    for note in notes_on_data(chosen, read):
        watch(Notice(note))
    fingerprints = {name: corpus.fingerprint for name, corpus in read.items()}
    schedule = open_schedule(chosen, study_dir, fingerprints)
    for config in chosen.variants.values():
        remember_code(config)
    left = schedule.unfinished_variants()
    if left and not request.anyway:
        requested = {name: of_run(chosen.variants[name], corpus) for name, corpus in read.items()}
        require_comparable(chosen, study_dir, requested)
    local = LocalWorkers(slots, study_dir, request.places()) if cluster is None else None
    with stopped_by_errors(local):
        if left and request.check:
            if local is not None:
                local.prepare(len(left))  # processes load their libraries during the checks
            _require_correct(chosen.only(left), watch)
        record = chosen.record(command=command, checked=request.check)
        with StudyRecord.held(study_dir):
            _joined(record, study_dir, trains=bool(left)).write(study_dir)
        watch(Started(schedule))
        workers = local or _on_cluster(request, cluster, study_dir, read, watch)
    events = run_schedule(schedule, workers)
    try:
        with closing(events), tracker:
            _follow(events, study_dir, tracker, watch)
        watch(Activity("writing the report"))
    except WriteError:
        with suppress(WriteError):  # a full disk may have no room for a report
            write_report(study_dir)
        raise
    except BaseException:  # an interrupted study has a report, too
        write_report(study_dir)
        raise
    return write_report(study_dir)


def _follow(events: Iterable[RunEvent], study_dir: Path, tracker: Tracker, watch: Watch) -> None:
    """Report the events of runs, and keep the files that follow from them up to date."""
    results = ResultsSoFar()
    for event in events:
        watch(event)
        if not isinstance(event.event, Held):
            tracker.update(event.run.folder(study_dir))
        if isinstance(event.event, Ended) and not event.run.tunes:
            results.update(study_dir)


def _on_cluster(
    request: Request,
    cluster: Cluster | None,
    study_dir: Path,
    corpora: Mapping[str, Corpus],
    watch: Watch,
) -> RayWorkers:
    assert cluster is not None
    return RayWorkers(
        cluster,
        study_dir,
        corpora,
        cluster.needs(request.device, request.gpus_per_run, request.cpus_per_run),
        most=request.workers,
        notify=lambda text: watch(Notice(text)),
    )


class ResultsSoFar:
    """The files about the runs that have ended, written in a small share of the study's time."""

    SHARE = 0.01  # on a CPU, workers need every core

    def __init__(self) -> None:
        self.next = 0.0  # when they may be written again

    def update(self, study_dir: Path) -> None:
        """Write the files, unless that took more than the share of the time since."""
        begin = time.monotonic()
        if begin >= self.next:
            write_results(study_dir)
            end = time.monotonic()
            self.next = end + (end - begin) * (1 / self.SHARE - 1)


def _require_correct(study: Study, watch: Watch) -> None:
    """Raise ViolatedPropertyError if a mechanism of the study violates a property."""
    checked = check_targets(
        of_study(study),
        quick=True,
        watch=lambda target: watch(Activity(f"checking {target.name}")),
    )
    violated = [one for one in checked if not one.holds]
    if violated:
        raise ViolatedPropertyError(violated)


def _joined(record: StudyRecord, study_dir: Path, *, trains: bool) -> StudyRecord:
    """Return the new record of the folder, joined with the record that it has.

    If no run remains, the provenance of the runs stays as it was recorded.
    """
    joined, before = record.joined(study_dir), StudyRecord.find(study_dir)
    if trains or before is None:
        return joined
    return dataclasses.replace(
        joined,
        command=before.command,
        attnlab_version=before.attnlab_version,
        checked=before.checked,
    )
