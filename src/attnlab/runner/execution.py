"""One run in one process: data, model, training, evaluation, and its folder of results.

An interrupted run resumes from its last checkpoint. The steps after it are repeated, and on a CPU
give the same bits: with the number of threads that the checkpoint names, whatever the worker has.
"""

from collections.abc import Iterator
from typing import Any

import torch

from attnlab.config import OwnCodeError, digest, is_interrupt, own_error
from attnlab.data import Corpus
from attnlab.device.machine import describe
from attnlab.device.measuring import PeakMemory
from attnlab.device.ranks import Ranks
from attnlab.inference.recorded import own_code_record, write_sources
from attnlab.record import (
    RunFolder,
    digest_of,
)
from attnlab.runner.events import Ended, Event, Progress
from attnlab.training import checkpoint
from attnlab.training.assemble import step_of_run, warm_up
from attnlab.training.checkpoint import Best
from attnlab.training.evaluate import Quality, Splits
from attnlab.training.loop import (
    CheckpointDue,
    Clock,
    DivergedError,
    Measurement,
    train,
)
from attnlab.training.plausibility import PlausibilityMonitor
from attnlab.training.run import Run
from attnlab.training.sharded_checkpoint import is_sharded

Json = dict[str, Any]


class Execution:
    """One run in this process; `events` executes it."""

    def __init__(
        self,
        run: Run,
        folder: RunFolder,
        identity: str,
        corpus: Corpus,
        ranks: Ranks,
    ) -> None:
        config, device = run.config, ranks.device
        self.tunes, self.ranks = run.tunes, ranks
        self.config, self.folder, self.identity, self.device = config, folder, identity, device
        self.clock = Clock()
        self.best: Best | None = None
        parent = config.parent()
        self.parent = parent and parent.identity(corpus.fingerprint)
        self.metrics = dict[int, Json]()  # by step
        self.corpus = corpus
        self.tokenizer = self.corpus.codec.to_json().encode()
        warm_up(config, self.corpus.vocab_size, device)
        self.memory = PeakMemory(device)
        self.step = step_of_run(config, self.corpus, device, ranks)
        self.model, self.autocast = self.step.model, self.step.autocast

    def events(self) -> Iterator[Event]:
        """Execute the run, or the rest of it; yield its events, the last one `Ended`."""
        found = self._open()
        splits = Splits(self.config.train, self.config.eval, self.corpus, self.ranks)
        valid = splits.held_out("valid")
        splits.try_longest_window(self.model, self.autocast)
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
        if alarm := monitor.check_gradients(self.step):
            yield progress._replace(alarm=alarm)
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
                    if self.ranks.writes:
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
        final: Json = quality.detailed("final")
        final |= splits.by_length(self.model, self.autocast, quality)
        # choices must not depend on the test split
        if self.corpus.test is not None and not self.tunes:
            test = splits.held_out("test").quality(self.model, self.autocast)
            final |= test.detailed("test")
        self._finish({"status": "finished", "reason": None, **final, **monitor.summary()})
        yield Ended("finished", None, quality.loss)

    def _open(self) -> checkpoint.Loaded:
        """Open the folder; restore the last checkpoint, if there is one, and return it."""
        if self.ranks.writes:
            self.folder.recover(self.identity)
        self.ranks.wait()
        shards = self.step.shards
        newest = checkpoint.load_newest(
            self.folder.checkpoints, self.identity, shards and shards.empty
        )
        found, self.metrics = checkpoint.with_metrics(newest, self.folder, self.config.train)
        self.ranks.wait()  # all have read what the first one writes from here on
        state = found.checkpoint
        if state is not None and state.threads is not None and self.device.type == "cpu":
            torch.set_num_threads(state.threads)
        self.environment = describe(self.device)
        if self.ranks.writes:
            self._write_settings(found)
        if state is not None:
            self.step.restore(state.step, state.model, state.optimizer)
            self.clock.resume(state.seconds)
            self.parent = self.parent or state.parent
            self.best = state.best and state.best._replace(model=self.step.own(state.best.model))
        return found

    def _write_settings(self, found: checkpoint.Loaded) -> None:
        """Write all that is known before the first step."""
        environment = self.environment | {
            "processes": self.ranks.count,
            "kernels": self._kernels(),
            "precision": self.config.train.precision_on(self.device.type),
            "compiled": self.step.compiled,
            "data": dict(self.corpus.description) | {"fingerprint": self.corpus.fingerprint},
            "own_code": own_code_record(self.config),
            "tokenizer_sha256": digest(self.tokenizer),
            "begins": {
                "step": found.checkpoint.step if found.checkpoint else 0,
                "skipped": found.skipped,
            },
        }
        self.folder.inherit(self.metrics.values())
        self.folder.open(self.config.to_dict() | {"identity": self.identity}, environment)
        checkpoint.remove_old(self.folder.checkpoints)
        self.folder.write_tokenizer(self.tokenizer)
        write_sources(self.folder.path, self.config)

    def _keep_best(self, event: Measurement) -> None:
        loss = event.values.get("eval_loss")
        if self.config.train.keep != "best_and_last" or loss is None:
            return
        if self.best is None or loss < self.best.loss:
            weights = self.step.weights().items()
            on_host = {name: w.detach().to("cpu", copy=True) for name, w in weights}
            self.best = Best(event.step, loss, on_host)

    def _save(self) -> None:
        self.folder.require_lease()
        step, lines = self.step.step, self.metrics.values()
        shards, written = self.step.shards, self.step.whole
        n_parameters = self.config.model.parts(self.corpus.vocab_size).total
        together = is_sharded(n_parameters, self.ranks.count)
        if together and shards is not None:
            written = shards.divided
        state = checkpoint.Checkpoint(
            step,
            written(self.step.weights()),
            written(self.step.state()),
            self.clock.seconds(),
            self.best and self.best._replace(model=written(self.best.model)),
            torch.get_num_threads(),
            digest_of(lines),
            stable=self.config.train.is_stable(step),
            parent=self.parent,
        )
        if self.ranks.writes:
            self.folder.flush_metrics()  # a run that continues from here relies on them
            with checkpoint.explains_failure(self.folder.checkpoints, step):
                self.folder.write_metrics(lines)  # on disk before what relies on them
        if self.ranks.writes or together:
            ranks = self.ranks if together else None
            checkpoint.save(self.folder.checkpoints, state, self.identity, ranks)

    def _finish(self, outcome: Json) -> None:
        keeps = self.config.train.keep == "weights" and outcome["status"] == "finished"
        weights = self.step.whole(self.step.weights()) if keeps else {}
        peak_memory_bytes = self.ranks.highest(self.memory.peak_bytes)
        if not self.ranks.writes:
            return
        self.folder.write_metrics(self.metrics.values())
        evaluated = [m for m in self.metrics.values() if m.get("eval_loss") is not None]
        best = min(evaluated, key=lambda m: m["eval_loss"], default={})
        if keeps:
            checkpoint.save_weights(self.folder.checkpoints, self.step.step, weights, self.identity)
        self.folder.finish(
            {
                **outcome,
                "best_loss": best.get("eval_loss"),
                "best_step": best.get("step"),
                **self._cost(),
                "peak_memory_bytes": peak_memory_bytes,
                "kernels": self._kernels(),
                "device": self.environment["device"]["name"],
                "parent": self.parent,
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
            "attention_type": [mechanism.kind() for mechanism in config.model.per_layer()],
            "parameters": parts._asdict() | {"total": parts.total, "active": parts.active},
            "training_flops": config.petaflops(vocab_size) * 1e15
            if config.model.states_flops
            else None,
            "flops_per_token": cost.flops if config.model.states_flops else None,
            "state_bytes": cost.state_bytes if config.model.states_cost else None,
        }

    def _kernels(self) -> list[str]:
        dtype = getattr(torch, self.config.train.precision_on(self.device.type))
        return self.model.kernels_on(self.device, dtype)

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


def events_of(
    run: Run, folder: RunFolder, identity: str, corpus: Corpus, ranks: Ranks
) -> Iterator[Event]:
    """Yield the events of the run; raise OwnCodeError for an exit and the like of the user's code.

    A GeneratorExit that the code raises is one, and that of the caller who closes this is not.
    """
    events: Iterator[Event] | None = None
    while True:
        try:
            events = events or Execution(run, folder, identity, corpus, ranks).events()
            event = next(events, None)
        except Exception:
            raise
        except BaseException as error:
            if is_interrupt(error):
                raise
            said = own_error(error) or f"{type(error).__name__}: {error}"
            raise OwnCodeError(said) from error
        if event is None:
            return
        yield event
