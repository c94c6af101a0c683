"""The execution of one run: data, model, training, evaluation, and its folder of results.

An interrupted run resumes from its last checkpoint. The steps after it are repeated, and on a CPU
give the same bits: with the number of threads that the checkpoint names, whatever the worker has.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from attnlab.config import digest
from attnlab.data import Corpus, DataConfig, Places
from attnlab.device.environment import describe
from attnlab.device.memory import PeakMemory
from attnlab.inference.recorded import own_code_record, write_sources
from attnlab.record import (
    HeldError,
    LostLeaseError,
    RunFolder,
    WriteError,
    digest_of,
    is_of_disk,
)
from attnlab.runner.events import Ended, Event, Held, Progress
from attnlab.training import checkpoint
from attnlab.training.assemble import step_of_run, warm_up
from attnlab.training.checkpoint import Best
from attnlab.training.evaluate import HeldOut, Quality
from attnlab.training.loop import (
    CheckpointDue,
    Clock,
    DivergedError,
    Measurement,
    measured_steps,
    train,
)
from attnlab.training.plausibility import PlausibilityMonitor
from attnlab.training.run import Run

Json = dict[str, Any]


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
    if others:
        raise ValueError(f"one run uses one device, got {1 + len(others)}")
    folder = run.folder(study_dir)
    try:
        with folder.hold():
            yield from execute_held(run, folder, identity, places, device, corpus)
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
    corpus: Corpus | None = None,
) -> Iterator[Event]:
    """Execute a run whose lease this process holds; see `execute`."""
    if folder.status() != "damaged" and folder.identity() not in (None, identity):
        reason = f"{folder.path} holds a run with different settings; choose another --out"
        yield Ended("failed", reason, None)
    elif (known := ended(folder)) is not None:  # by another process, in the meantime
        yield known
    else:
        try:
            yield from _execute(run, folder, identity, places, device, corpus)
        except LostLeaseError as error:
            yield Held(str(error.holder or "another process"), lost=True)


def _execute(
    run: Run,
    folder: RunFolder,
    identity: str,
    places: Places,
    device: torch.device,
    corpus: Corpus | None,
) -> Iterator[Event]:
    threads = torch.get_num_threads()
    try:
        corpus = corpus or corpus_of(run.config.data, places)
        yield from _Execution(run, folder, identity, corpus, device).events()
    except LostLeaseError:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, WriteError) else f"{type(error).__name__}: {error}"
        yield failed(folder, reason, disk_refused=is_of_disk(error))
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


class _Execution:
    def __init__(
        self,
        run: Run,
        folder: RunFolder,
        identity: str,
        corpus: Corpus,
        device: torch.device,
    ) -> None:
        config = run.config
        self.tunes = run.tunes
        self.config, self.folder, self.identity, self.device = config, folder, identity, device
        self.clock = Clock()
        self.best: Best | None = None
        self.metrics = dict[int, Json]()  # by step
        self.corpus = corpus
        self.tokenizer = self.corpus.codec.to_json().encode()
        warm_up(config, self.corpus.vocab_size, device)
        self.memory = PeakMemory(device)
        self.step = step_of_run(config, self.corpus, device)
        self.model, self.autocast = self.step.model, self.step.autocast

    def events(self) -> Iterator[Event]:
        found = self._open()
        valid = self._held_out("valid")
        self._try_longest_window()
        monitor = PlausibilityMonitor(self.corpus, self.config.train, self.model, self.autocast)
        monitor.resume(self.metrics.values())
        quality: Quality | None = None

        def evaluate() -> dict[str, float | None]:
            nonlocal quality
            quality = valid.quality(self.model, self.autocast)
            return quality.mean("eval")

        config = self.config.train
        progress = Progress(self.step.step, config.steps, None, None)
        yield progress._replace(note=found.note)
        try:
            for event in train(self.step, config, evaluate, self.clock, self.memory):
                if isinstance(event, CheckpointDue):
                    self._save()
                else:
                    self._keep_best(event)
                    said = monitor.check(event.step, event.values)
                    counted = self.model.drain_statistics()
                    line = {"step": event.step, **event.values, **counted, **said}
                    self.metrics[event.step] = line
                    self.folder.append(line)
                    progress = self._progress(event, progress, said.get("alarm"))
                    yield progress
        except DivergedError as error:
            self._finish({"status": "diverged", "reason": str(error), **monitor.summary()})
            yield Ended("diverged", str(error), None)
            return
        if alarm := monitor.final_check():
            yield progress._replace(alarm=alarm)
        # a run that was interrupted after its last step has not been evaluated in this process
        quality = quality or valid.quality(self.model, self.autocast)
        final: Json = quality.detailed("final") | self._by_length(quality)
        # choices must not depend on the test split
        if self.corpus.test is not None and not self.tunes:
            test = self._held_out("test").quality(self.model, self.autocast)
            final |= test.detailed("test")
        self._finish({"status": "finished", "reason": None, **final, **monitor.summary()})
        yield Ended("finished", None, quality.loss)

    def _open(self) -> checkpoint.Loaded:
        """Open the folder; restore the last checkpoint, if there is one, and return it."""
        self.folder.recover(self.identity)
        found = self._with_metrics(checkpoint.load_newest(self.folder.checkpoints, self.identity))
        state = found.checkpoint
        if state is not None and state.threads is not None and self.device.type == "cpu":
            torch.set_num_threads(state.threads)
        self.environment = describe(self.device)
        environment = self.environment | {
            "kernels": self._kernels(),
            "precision": self.config.train.precision_on(self.device.type),
            "compiled": self.step.compiled,
            "data": dict(self.corpus.description) | {"fingerprint": self.corpus.fingerprint},
            "own_code": own_code_record(self.config),
            "tokenizer_sha256": digest(self.tokenizer),
            "begins": {"step": state.step if state else 0, "skipped": found.skipped},
        }
        self.folder.inherit(self.metrics.values())
        self.folder.open(self.config.to_dict() | {"identity": self.identity}, environment)
        checkpoint.remove_old(self.folder.checkpoints)
        self.folder.write_tokenizer(self.tokenizer)
        write_sources(self.folder.path, self.config)
        if state is not None:
            self.model.load_state_dict(state.model)
            self.step.restore(state.step, state.optimizer)
            self.clock.resume(state.seconds)
            self.best = state.best
        return found

    def _with_metrics(self, found: checkpoint.Loaded) -> checkpoint.Loaded:
        """Read the metrics up to the checkpoint; without them the run starts at step 0."""
        if found.checkpoint is None:
            return found
        last = found.checkpoint.step
        try:
            lines = {m["step"]: m for m in self.folder.metrics() if m["step"] <= last}
        except ValueError as error:
            reason = str(error)
        else:
            missing = [n for n in measured_steps(self.config.train, last) if n not in lines]
            altered = found.checkpoint.metrics_digest not in (None, digest_of(lines.values()))
            if not missing and not altered:
                self.metrics = dict(sorted(lines.items()))
                return found
            reason = (
                f"metrics.jsonl lacks step {missing[0]}" if missing else "metrics.jsonl altered"
            )
        return checkpoint.Loaded(None, (*found.skipped, f"step-{last:06d}: {reason}"))

    def _keep_best(self, event: Measurement) -> None:
        loss = event.values.get("eval_loss")
        if self.config.train.keep != "best_and_last" or loss is None:
            return
        if self.best is None or loss < self.best.loss:
            weights = self.model.state_dict().items()
            on_host = {name: w.detach().to("cpu", copy=True) for name, w in weights}
            self.best = Best(event.step, loss, on_host)

    def _save(self) -> None:
        self.folder.require_lease()
        self.folder.flush_metrics()  # a run that continues from here relies on them
        model, optimizer = self.model.state_dict(), self.step.state()
        seconds = self.clock.seconds()
        threads = torch.get_num_threads()
        step, lines = self.step.step, self.metrics.values()
        state = checkpoint.Checkpoint(
            step, model, optimizer, seconds, self.best, threads, digest_of(lines)
        )
        with checkpoint.explains_failure(self.folder.checkpoints, step):
            self.folder.write_metrics(lines)  # on disk before what relies on them
        checkpoint.save(self.folder.checkpoints, state, self.identity)

    def _finish(self, outcome: Json) -> None:
        self.folder.write_metrics(self.metrics.values())
        evaluated = [m for m in self.metrics.values() if m.get("eval_loss") is not None]
        best = min(evaluated, key=lambda m: m["eval_loss"], default={})
        parent = self.config.parent()
        if self.config.train.keep == "weights" and outcome["status"] == "finished":
            checkpoint.save_weights(
                self.folder.checkpoints, self.step.step, self.model.state_dict(), self.identity
            )
        self.folder.finish(
            {
                **outcome,
                "best_loss": best.get("eval_loss"),
                "best_step": best.get("step"),
                **self._cost(),
                "kernels": self._kernels(),
                "device": self.environment["device"]["name"],
                "parent": parent and parent.identity(self.corpus.fingerprint),
            }
        )

    def _cost(self) -> Json:
        """Return the fields of summary.json about time (seconds), memory and state (bytes)."""
        config, vocab_size, clock = self.config, self.corpus.vocab_size, self.clock
        tokens_per_step = config.train.batch_size * config.train.seq_len
        seconds = clock.step_seconds
        cost = config.model.cost(vocab_size, config.train.seq_len)
        parts = config.model.parts(vocab_size)
        return {
            "steps": self.step.step,
            "tokens": self.step.step * tokens_per_step,
            "total_time": clock.total_seconds,
            "train_time": clock.train_seconds,
            "eval_time": clock.eval_seconds,
            "compile_time": clock.compile_seconds,
            "step_time": seconds,
            "step_time_quartiles": clock.step_seconds_quartiles,
            "tokens_per_second": tokens_per_step / seconds if seconds else None,
            "peak_memory_bytes": self.memory.peak_bytes,
            "attention_type": [mechanism.kind() for mechanism in config.model.per_layer()],
            "parameters": parts._asdict() | {"total": parts.total, "active": parts.active},
            "flops_per_token": cost.flops if config.model.states_cost else None,
            "state_bytes": cost.state_bytes if config.model.states_cost else None,
        }

    def _kernels(self) -> list[str]:
        dtype = getattr(torch, self.config.train.precision_on(self.device.type))
        return self.model.kernels_on(self.device, dtype)

    def _held_out(self, split: Literal["valid", "test"], length: int | None = None) -> HeldOut:
        """Return a split in windows of `length` tokens, by default that of training.

        A batch has no more tokens than in training's evaluation.
        """
        train_config = self.config.train
        length = length or train_config.seq_len
        tokens = train_config.eval_batch_size * train_config.seq_len
        return HeldOut(
            self.corpus,
            split,
            seq_len=length,
            batch_size=max(1, tokens // length),
            device=self.device,
        )

    def _try_longest_window(self) -> None:
        """Raise RuntimeError before training if `eval.lengths` cannot be measured."""
        if self.config.eval.lengths is None:
            return
        longest = self.config.eval.lengths[-1]
        try:
            self._held_out("valid", longest).try_one_batch(self.model, self.autocast)
        except (RuntimeError, ValueError) as error:
            raise RuntimeError(f"eval.lengths: at {longest} tokens: {error}") from error

    def _by_length(self, quality: Quality) -> Json:
        """Return the losses at `eval.lengths`; `quality` is that at the length of training."""
        lengths = self.config.eval.lengths
        if lengths is None:
            return {}
        found: Json = {}
        for length in lengths:
            at_length = quality
            if length != self.config.train.seq_len:
                held_out = self._held_out("valid", length)
                at_length = held_out.quality(self.model, self.autocast)
            found[str(length)] = at_length.without_prefix()
        return {"final_by_length": found}

    def _progress(self, event: Measurement, before: Progress, alarm: str | None) -> Progress:
        seconds = self.clock.step_seconds
        tokens_per_step = self.config.train.batch_size * self.config.train.seq_len
        return Progress(
            event.step,
            before.steps,
            loss=event.values.get("train_loss", before.loss),
            tokens_per_second=tokens_per_step / seconds if seconds else None,
            alarm=alarm,
        )


@lru_cache(maxsize=1)
def corpus_of(data: DataConfig, places: Places) -> Corpus:
    """Return the corpus; it is read once for consecutive runs of a process that share it."""
    return data.load(places)
