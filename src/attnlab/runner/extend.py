"""A finished run, and more steps of it: a new run that goes on where the other ended.

An extended run is a function of its settings like any other: they say how long it was before, and
so the learning rate of every step. It could be trained from step 0. It begins with the checkpoint
of the run that it extends instead, and on a CPU comes to the same bits.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from attnlab.data import Places
from attnlab.device.selection import choose_device
from attnlab.inference.saved_model import checkpoint_of, settings_of
from attnlab.record import RunFolder, StudyRecord
from attnlab.reporting.files import write_report
from attnlab.runner.events import Event, Progress, ignore
from attnlab.runner.execute import corpus_of, execute
from attnlab.runner.schedule import conflict
from attnlab.training.checkpoint import Checkpoint, load_newest, save
from attnlab.training.config import Schedule
from attnlab.training.run import Run, RunConfig
from attnlab.version import __version__


def extend(  # noqa: PLR0913  one parameter an option
    run: Path | str,
    *,
    steps: int,
    schedule: Schedule = "rederived",
    out: Path | str | None = None,
    data: Path | str | None = None,
    cache: Path | str | None = None,
    device: str = "auto",
    watch: Callable[[Event], None] | None = None,
    command: str | None = None,
) -> RunFolder:
    """Continue a finished run to `steps` steps, those that it has among them, as a new run.

    Batches and dropout of a step depend on the seed and its number alone, and so go on as if the
    run had always been meant to be this long. The new run is a folder like any other, with the
    curve of the one before it; its summary names that one's identity as its "parent". The same call
    again goes on where it was interrupted.

    Args:
        run: the run's folder, such as results/quickstart/mha/seed-0.
        steps: of the new run, in all.
        schedule: "rederived": the learning rate goes on where it would be in a run of `steps` from
            the start, and so rises again at first. "constant": it stays what it was at the end.
        out: the folder of the study that the new run is put into, results/NAME_to_STEPS by default.
            The variant is called as before.
        data, cache, device: as of `attnlab.run`.
        watch: is told what happens, as it happens.
        command: what the record says made it, by default this call.

    Returns the new run's folder. A run that fails or diverges is no exception: its status says so.

    Raises ValueError before anything is spent: where that is no finished run, or it kept no
    checkpoint; where `steps` is no more than it has; where its data, or a file of the user's own,
    is not what it was; where `out` holds such a run with other settings.
    """
    parent = RunFolder.at(Path(run))
    config, identity = _finished(parent)
    if steps <= config.train.steps:
        raise ValueError(f"{parent.path} has {config.train.steps} steps: {steps} are no more")
    state, note = checkpoint_of(parent.path, identity)
    longer, where = config.extended(steps, schedule), Places.from_environment(data, cache)
    on_device = choose_device(device)
    fingerprint = corpus_of(longer.data, where).fingerprint
    if config.identity(fingerprint) != identity:
        raise ValueError(
            f"{parent.path} cannot go on: its data, or a file of your own that it uses, has changed"
        )
    study_dir = Path(out) if out is not None else _beside(parent, steps)
    planned = Run(variant=parent.variant, config=longer)
    new, new_identity = planned.folder(study_dir), longer.identity(fingerprint)
    new.finalize()
    if different := conflict(planned, new, fingerprint):
        raise ValueError(f"{new.path} has other settings: {different}; choose another --out")
    if new.ended.is_dir():
        return new
    tell = watch or ignore
    _begin(new, new_identity, state, parent)
    if note is not None:
        tell(Progress(state.step, steps, None, None, note=note))
    called = f"attnlab.extend({str(run)!r}, steps={steps}, schedule={schedule!r})"
    _record(parent, study_dir, steps, command or called).write(study_dir)
    try:
        for event in execute(planned, study_dir, new_identity, where, on_device):
            tell(event)
    finally:  # an interrupted run has a report of what it did
        write_report(study_dir)
    return new


def _finished(run: RunFolder) -> tuple[RunConfig, str]:
    """The settings of a run and its identity. Raises ValueError where it has not finished."""
    config, identity = settings_of(run.path)
    status = run.status()
    if status != "finished":
        advice = {
            "diverged": "more steps would not help it",
            "failed": "the command that started it tries it again",
            "partial": "the command that started it goes on with it",
        }
        raise ValueError(f"{run.path} has not finished ({status}): {advice[status]}")
    return config, identity


def _beside(parent: RunFolder, steps: int) -> Path:
    study_dir = parent.ended.parent.parent
    return study_dir.with_name(f"{study_dir.name}_to_{steps}")


def _begin(new: RunFolder, identity: str, state: Checkpoint, parent: RunFolder) -> None:
    """Give the new run what the other had at its end, unless it has gone on from there already."""
    if load_newest(new.checkpoints, identity).checkpoint is not None:
        return
    shutil.rmtree(new.checkpoints, ignore_errors=True)  # of no use, but they would seem newer
    new.inherit(parent.metrics())
    save(new.checkpoints, state, identity)


def _record(parent: RunFolder, study_dir: Path, steps: int, command: str) -> StudyRecord:
    """What the folder of extended runs says of itself: those that it has, and this one."""
    home = parent.ended.parent.parent
    before = StudyRecord.read(home) if (home / "study.json").is_file() else None
    there = StudyRecord.read(study_dir) if (study_dir / "study.json").is_file() else None
    commands = [*(there.command.splitlines() if there else ()), command]
    return StudyRecord(
        name=study_dir.name,
        question=f"{home.name}, extended to {steps} steps",
        baseline=parent.variant,
        variants=(parent.variant,),
        seeds=(parent.seed,),
        command="\n".join(dict.fromkeys(commands)),
        attnlab_version=__version__,
        checked=before is not None and before.checked,
    ).joined(study_dir)
