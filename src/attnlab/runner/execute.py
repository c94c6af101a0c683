"""The execution of a run: `execute`, the one door for every kind of worker.

A run on one device is executed in the process that calls it, one on several in a process for each.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from functools import lru_cache
from pathlib import Path

import torch

from attnlab.config import ConfigError, OwnCodeError, Problem, is_out_of_memory, suggestion
from attnlab.config.problem import with_types
from attnlab.data import Corpus, DataConfig, Places
from attnlab.device.child_process import Printed
from attnlab.device.machine import worker_slots
from attnlab.device.ranks import Ranks, uneven
from attnlab.kernels.compiled import keep_compiled
from attnlab.record import (
    HeldError,
    LostLeaseError,
    RunFolder,
    StudyRecord,
    WriteError,
    is_of_disk,
)
from attnlab.runner.events import Ended, Event, Held, Progress
from attnlab.runner.execution import events_of
from attnlab.runner.processes import Job, execute_in_processes
from attnlab.study import ignore
from attnlab.study.study import Study
from attnlab.study.variants import read_data
from attnlab.training.assemble import memory_advice
from attnlab.training.run import Run


def execute(
    run: Run,
    study_dir: Path,
    identity: str,
    places: Places,
    device: torch.device,
    *others: torch.device,
    corpus: Corpus | None = None,
) -> Iterator[Event]:
    """Execute a run, or the rest of an interrupted one; yield its events, the last one `Ended`.

    `corpus` is the data of the run if the caller has it; by default it is read from `places`.
    The last one is `Held` if another process holds the run's lease, or has taken it over. An
    exception is recorded in the folder as the reason of a failed run, and not raised.
    KeyboardInterrupt is raised; the folder then keeps the last checkpoint.
    """
    folder = run.folder(study_dir)
    try:
        with folder.hold():
            yield from execute_held(run, folder, identity, places, device, *others, corpus=corpus)
    except HeldError as error:
        yield Held(str(error.holder))
    except WriteError as error:  # of the lease
        yield Ended("failed", str(error), None, True)


def execute_held(
    run: Run,
    folder: RunFolder,
    identity: str,
    places: Places,
    device: torch.device,
    *others: torch.device,
    corpus: Corpus | None = None,
) -> Iterator[Event]:
    """Execute a run whose lease this process holds; see `execute`."""
    if folder.status() != "damaged" and folder.identity() not in (None, identity):
        reason = f"{folder.path} holds a run with different settings; choose another --out"
        yield Ended("failed", reason, None)
    elif (known := ended(folder)) is not None:  # by another process, in the meantime
        yield known
    else:
        if others:
            devices = [device, *others]
            events = _in_processes(run, folder, identity, places, devices, corpus)
        else:
            ranks = Ranks.alone(device)
            events = execute_as(run, folder, identity, places, ranks, corpus=corpus)
        yield from until_lost(events)


def until_lost(events: Iterable[Event]) -> Iterator[Event]:
    """Yield the events of a run; the last one says so if another process took its lease over."""
    try:
        yield from events
    except LostLeaseError as error:
        yield Held(str(error.holder or "another process"), lost=True)


def _in_processes(
    run: Run,
    folder: RunFolder,
    identity: str,
    places: Places,
    devices: Sequence[torch.device],
    corpus: Corpus | None,
) -> Iterator[Event]:
    job = Job.of(run, folder.study_dir, identity, places, devices, corpus)
    with closing(execute_in_processes(job)) as events:
        for event in events:
            folder.require_lease()
            match event:
                case Ended("failed", str(reason), disk_refused=False):
                    yield ended(folder) or failed(folder, reason)
                case _:
                    yield event


def execute_as(
    run: Run,
    folder: RunFolder,
    identity: str,
    places: Places,
    ranks: Ranks,
    *,
    corpus: Corpus | None = None,
) -> Iterator[Event]:
    """Execute a run in this process, which is one of `ranks`; yield its events, as `execute`.

    All processes of the run yield the same events, if none fails. What the user's code prints in
    them is kept; its first lines are notes of `Progress`, each once per variant.
    """
    events = _executed(run, folder, identity, places, ranks, corpus)
    printed = _printed_of(folder.study_dir, run.variant)
    now = Progress(0, run.config.train.steps, None, None)
    for event in printed.while_making(events):
        now = event._replace(alarm=None) if isinstance(event, Progress) else now
        for line in printed.take():
            yield now._replace(note=line)
        yield event


@lru_cache(maxsize=256)
def _printed_of(study_dir: Path, variant: str) -> Printed:
    del study_dir, variant
    return Printed()


def _executed(
    run: Run, folder: RunFolder, identity: str, places: Places, ranks: Ranks, corpus: Corpus | None
) -> Iterator[Event]:
    threads = torch.get_num_threads()
    if ranks.device.type == "cuda" or run.config.train.compile == "on":
        keep_compiled(places.cache / "compiled")
    try:
        corpus = corpus or corpus_of(run.config.data, places)
        yield from events_of(run, folder, identity, corpus, ranks)
    except LostLeaseError:
        raise
    except Exception as error:
        is_said = isinstance(error, WriteError | OwnCodeError)
        reason = str(error) if is_said else f"{type(error).__name__}: {error}"
        if is_out_of_memory(error):
            reason = f"{reason}\n{memory_advice(run.config.train, ranks.device, ranks.count)}"
        if ranks.writes:
            yield failed(folder, reason, disk_refused=is_of_disk(error))
        else:
            yield Ended("failed", reason, None)
    finally:
        torch.set_num_threads(threads)


def ended(folder: RunFolder) -> Ended | None:
    """Return the end of a run that has finished or diverged; None if it has not."""
    summary = folder.ended_summary()
    if summary is None:
        return None
    return Ended(summary["status"], summary["reason"], summary.get("final_loss"))


def failed(folder: RunFolder, reason: str, *, disk_refused: bool = False) -> Ended:
    """Record a failure and return it as the end of the run; the disk may refuse the record."""
    try:
        folder.fail(reason)
    except OSError as error:
        return Ended("failed", reason if disk_refused else f"{reason}; {error}", None, True)
    return Ended("failed", reason, None, disk_refused)


def record_failure(folder: RunFolder, reason: str) -> Event:
    """Record the failure of a run that nobody executes, and return the end of the run."""
    try:
        with folder.hold():  # the process may have died between the run's end and its message
            return ended(folder) or failed(folder, reason)
    except HeldError as error:
        return Held(str(error.holder))
    except WriteError as error:
        return Ended("failed", f"{reason}; {error}", None, True)


@lru_cache(maxsize=4)
def corpus_of(data: DataConfig, places: Places) -> Corpus:
    """Return the corpus; a process reads it once for its runs, which may read some in turn."""
    return data.load(places)


@with_types
def train(  # noqa: PLR0913  one parameter per option
    study: Study | Path | str,
    *,
    variant: str | None = None,
    seed: int = 0,
    length: str | None = None,
    steps: int | None = None,
    overrides: Iterable[str] = (),
    out: Path | str | None = None,
    data: Path | str | None = None,
    cache: Path | str | None = None,
    device: str = "auto",
    fla_path: Path | str | None = None,
    watch: Callable[[Event], None] = ignore,
    command: str | None = None,
) -> Event:
    """Train one run of a study in this process, which may be one of torchrun's; return its end.

    The run has its variant's own recipe, and `attnlab.run` takes it for done afterwards.

    Args:
        study, length, steps, overrides, out, data, cache, device, fla_path: as for `attnlab.run`.
        variant: the variant's name; None: the baseline.
        seed: the run's seed.
        watch: a function that is called with every event, in the process that writes the run.
        command: the command that the study's record names, by default a call of `attnlab.run`.

    Raises the errors of `attnlab.run`, and HeldError if another process writes the run.
    """
    from attnlab.runner.request import Request  # it imports this module

    request = Request(
        study=study,
        length=length,
        steps=steps,
        overrides=overrides,
        out=out,
        data=data,
        cache=cache,
        device=device,
        fla_path=fla_path,
    )
    asked = request.apply_options()
    name = _variant_of(asked, variant)
    run, study_dir = asked.verdict_run(name, seed), request.study_dir(asked)
    local_rank, count = Ranks.of_torchrun() or (0, 1)
    if problem := uneven(run.config.train.batch_size, count):
        raise ConfigError([Problem("train.batch_size", problem)])
    own_device = _device_of(request.device, local_rank)
    ranks = Ranks.join(own_device) if count > 1 else Ranks.alone(own_device)
    if not ranks.writes:
        ranks.wait()  # the first one has cached the data
    corpus = read_data(asked.only([name]), request.places())[name]
    folder, identity = run.folder(study_dir), run.config.identity(corpus.fingerprint)
    if ranks.writes:
        if folder.conflict(run.config.to_dict() | {"identity": identity}):
            raise ValueError(
                f"{folder.path} was made with different settings; choose another --out"
            )
        with StudyRecord.held(study_dir):
            record = asked.record(command=command or request.call(), checked=False)
            record.joined(study_dir).write(study_dir)
        ranks.wait()
    end: Event | None = ended(folder)
    ranks.wait()  # all have looked before the first one writes
    if end is None:
        events = execute_as(run, folder, identity, request.places(), ranks, corpus=corpus)
        with folder.hold() if ranks.writes else nullcontext():
            for end in until_lost(events):
                if ranks.writes:
                    watch(end)
    assert end is not None
    if ranks.writes:
        from attnlab.reporting.files import write_report  # not for workers: scipy, templates

        write_report(study_dir)
    if isinstance(end, Ended) and end.status != "failed":
        ranks.leave()
    return end


def _variant_of(study: Study, name: str | None) -> str:
    """Return the variant with this name; None: the baseline, or the first without one."""
    name = name or study.baseline or next(iter(study.variants))
    if name not in study.variants:
        message = f"no variant {name!r}{suggestion(name, study.variants)}"
        raise ConfigError([Problem("variant", message)])
    return name


def _device_of(device: str, local_rank: int) -> torch.device:
    """Return the device of one process of torchrun: the GPU of its rank, or the CPU."""
    slots = worker_slots(device, local_rank + 1)
    chosen = torch.device(slots[min(local_rank, len(slots) - 1)].devices[0])
    if chosen.type == "cuda" and local_rank >= len(slots):
        raise ValueError(f"process {local_rank} has no GPU: {device!r} is {len(slots)} here")
    return chosen
