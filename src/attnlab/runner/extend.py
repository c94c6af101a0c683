"""`attnlab.extend`: a finished run with more steps, as a new run.

An extended run is a function of its settings like any other: they contain its previous length, and
so the learning rate of every step. It could be trained from step 0. It starts from the checkpoint
of the run that it extends instead, and on a CPU gives the same bits.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from attnlab.config.problem import with_types
from attnlab.data import Places
from attnlab.device.machine import choose_device, one_worker
from attnlab.inference.recorded import Recorded, read_recorded
from attnlab.inference.saved_model import checkpoint_of
from attnlab.record import (
    RunFolder,
    StudyRecord,
    WriteError,
    digest_of,
    is_published,
    remove_temporary,
    require_results_folder,
)
from attnlab.reporting.files import write_report
from attnlab.runner.comparable import conflict, of_run, unlike_others
from attnlab.runner.events import Ended, Event, Held, Progress
from attnlab.runner.execute import corpus_of, execute_held
from attnlab.study import ignore
from attnlab.training.checkpoint import Checkpoint, load_newest, save
from attnlab.training.config import Continuation
from attnlab.training.run import Run
from attnlab.version import __version__


@with_types
def extend(  # noqa: PLR0913  one parameter per option
    run: Path | str,
    *,
    steps: int | None = None,
    by: int | None = None,
    schedule: Continuation = "rederived",
    out: Path | str | None = None,
    trust: bool = False,
    anyway: bool = False,
    data: Path | str | None = None,
    cache: Path | str | None = None,
    device: str = "auto",
    watch: Callable[[Event], None] = ignore,
    command: str | None = None,
) -> RunFolder:
    """Continue a finished run to `steps` steps in total, or by `by` more, as a new run.

    The batch and the dropout of a step depend on the seed and the step's number alone, so they are
    those of a run of this length. The new run's folder begins with the metrics of the finished run,
    and its summary names that run's identity as "parent". The same call resumes an interrupted
    extension.

    Args:
        run: the run's folder, such as results/quickstart/mha/seed-0.
        steps: training steps of the new run in total.
        by: training steps of the new run beyond those of the finished one, in place of `steps`.
        schedule: "rederived": the learning rate is that of a run of `steps` steps, and so rises
            again at first. With the schedule `warmup_stable_decay` the new run begins at the
            checkpoint before the decay instead, and equals one that was this long from the start.
            "constant": it stays at its last value.
        out: the study folder of the new run, results/NAME_to_STEPS by default. The variant keeps
            its name.
        trust: True to execute code that the run's folder carries; see `attnlab.load_run`.
        anyway: extend even if `out` holds runs that the new one cannot be compared with; the report
            then carries a warning.
        data, cache, device: as for `attnlab.run`.
        watch: a function that is called with each event of the run, `Progress` or `Ended`.
        command: the command that the record names, by default this call.

    Returns:
        The new run's folder. A run that fails or diverges raises nothing: its status says so.

    Raises:
        ValueError: the run is not finished or kept no checkpoint; `steps` is not larger than its
            number of steps; both or neither of `steps` and `by` are given; its data or a file in
            its folder has changed; its code is not trusted, or its original was edited; or `out`
            holds this run with different settings, or runs that it cannot be compared with; or
            another process trains the run now. Nothing was run.
    """
    parent = RunFolder.at(Path(run))
    recorded = _finished(parent, trust=trust)
    steps = _total(recorded.config.train.steps, steps, by, parent)
    longer, where = recorded.config.extended(steps, schedule), Places.from_environment(data, cache)
    branches = longer.parent() is None
    state, note = checkpoint_of(parent.path, recorded.identity, stable=branches)
    if branches:
        state = state._replace(stable=False, parent=recorded.identity)
    choose_device(device)  # an unknown one is an error before anything is written
    corpus = corpus_of(longer.data, where)
    fingerprint = corpus.fingerprint
    if fingerprint != recorded.fingerprint:
        raise ValueError(
            f"{parent.path} cannot be extended: its data has changed ({longer.data.kind()}, "
            f"fingerprint {recorded.fingerprint} then, {fingerprint} now); restore the files"
        )
    study_dir = Path(out) if out is not None else _beside(parent, steps)
    require_results_folder(study_dir)
    planned = Run(variant=parent.variant, config=longer)
    new, new_identity = planned.folder(study_dir), longer.identity(fingerprint)
    remove_temporary(study_dir)
    new.finalize()
    if different := conflict(planned, new, fingerprint):
        raise ValueError(
            f"{new.path} was made with different settings: {different}; choose another --out"
        )
    if new.status() in ("finished", "diverged"):
        return new
    called = f"attnlab.extend({str(run)!r}, steps={steps}, schedule={schedule!r})"
    record = _record(parent, study_dir, steps, command or called)
    others = (
        () if anyway else unlike_others({parent.variant: of_run(longer, corpus)}, record, study_dir)
    )
    if others:
        lines = "\n".join(f"  {line}" for line in others)
        raise ValueError(
            f"the extended run would not be comparable with those in {study_dir}:\n{lines}\n"
            "choose another --out, or use --anyway to extend it regardless; the report then "
            "carries this warning"
        )
    with new.hold(observing=True), one_worker(device) as on_device:
        new.recover(new_identity)
        _begin(new, new_identity, state, parent)
        if note is not None:
            watch(Progress(state.step, steps, None, None, note=note))
        with StudyRecord.held(study_dir):
            record.joined(study_dir).write(study_dir)
        _train(execute_held(planned, new, new_identity, where, on_device), study_dir, watch)
    return new


def _train(events: Iterator[Event], study_dir: Path, watch: Callable[[Event], None]) -> None:
    """Train the run and write the report. Raises WriteError if the disk refuses it."""
    try:
        for event in events:
            watch(event)
            if isinstance(event, Ended) and event.disk_refused:
                raise WriteError(f"{event.reason}; the same command continues the run")
            if isinstance(event, Held):
                raise ValueError(f"the run was taken over by {event.by}; wait until it has ended")
    except WriteError:
        raise
    except BaseException:  # an interrupted run has a report, too
        write_report(study_dir)
        raise
    write_report(study_dir)


def _total(done: int, steps: int | None, by: int | None, run: RunFolder) -> int:
    """Return the number of steps of the extended run."""
    if (steps is None) == (by is None):
        raise ValueError("give either the steps in total (--steps N) or the steps to add (--by N)")
    if by is not None and by < 1:
        raise ValueError(f"by: must be at least 1 step, got {by}")
    total = done + by if by is not None else steps
    assert total is not None
    if total <= done:
        raise ValueError(f"{run.path} has {done} steps; {total} is not more")
    return total


def _finished(run: RunFolder, *, trust: bool) -> Recorded:
    """Return the settings and the identity of a run. Raise ValueError if it has not finished."""
    recorded = read_recorded(run.path, trust=trust)
    if damage := run.damage():
        raise ValueError(damage)
    status = run.status()
    if status != "finished":
        advice = {
            "diverged": "it cannot be extended",
            "failed": "run its command again",
            "partial": "run its command again to resume it",
        }
        raise ValueError(f"{run.path} has not finished ({status}): {advice[status]}")
    return recorded


def _beside(parent: RunFolder, steps: int) -> Path:
    study_dir = parent.ended.parent.parent
    home = Path("results") if is_published(study_dir) else study_dir.parent
    return home / f"{study_dir.name}_to_{steps}"


def _begin(new: RunFolder, identity: str, state: Checkpoint, parent: RunFolder) -> None:
    """Copy the parent's metrics and last checkpoint, unless the new run has its own already."""
    if load_newest(new.checkpoints, identity).checkpoint is not None:
        return
    shutil.rmtree(new.checkpoints, ignore_errors=True)  # unusable, but they would count as newer
    new.inherit(parent.metrics())
    digest = digest_of(m for m in parent.metrics() if m["step"] <= state.step)
    save(new.checkpoints, state._replace(metrics_digest=digest), identity)


def _record(parent: RunFolder, study_dir: Path, steps: int, command: str) -> StudyRecord:
    """Return the record of the extended run, to be joined with that of its folder."""
    home = parent.ended.parent.parent
    before = StudyRecord.find(home)
    return StudyRecord(
        name=study_dir.name,
        question=f"{home.name}, extended to {steps} steps",
        baseline=parent.variant,
        variants=(parent.variant,),
        seeds=(parent.seed,),
        command=command,
        attnlab_version=__version__,
        checked=before is not None and before.checked,
        by_design=before.by_design if before else {},
    )
