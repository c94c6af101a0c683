"""One run from settings to record: data, model, training, evaluation, the folder it leaves.

A run that was cut off goes on from its last checkpoint; what it measured after that is measured
again, on a CPU to the same bits.
"""

import math
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from attnlab import checkpoint
from attnlab.data import Corpus, DataConfig, Places
from attnlab.data.batches import window_starts
from attnlab.environment import describe
from attnlab.evaluate import HeldOut, Quality
from attnlab.memory import PeakMemory
from attnlab.record import RunFolder, replace_file
from attnlab.study import Run, RunConfig
from attnlab.train import CheckpointDue, Clock, DivergedError, Measurement, train
from attnlab.training_step import TrainingStep, autocast

Json = dict[str, Any]


class Progress(NamedTuple):
    """How far a run is."""

    step: int
    steps: int
    loss: float | None  # the latest training loss
    tokens_per_second: float | None


class Ended(NamedTuple):
    """The run is over, one way or another."""

    status: Literal["finished", "diverged", "failed"]
    reason: str | None
    final_loss: float | None


Event = Progress | Ended


def execute(
    run: Run, study_dir: Path, identity: str, places: Places, device: torch.device
) -> Iterator[Event]:
    """Run it, or what is left of it. The last event is `Ended`; an exception becomes a record.

    KeyboardInterrupt and a kill go through: the folder then stands as at the last checkpoint.
    """
    folder = RunFolder(study_dir, run.variant, run.seed)
    try:
        yield from _Execution(run.config, folder, identity, places, device).events()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        folder.fail(reason)
        yield Ended("failed", reason, None)


class _Execution:
    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        identity: str,
        places: Places,
        device: torch.device,
    ) -> None:
        self.config, self.folder, self.identity, self.device = config, folder, identity, device
        self.started = time.perf_counter()
        self.seconds_before = 0.0  # of this run in earlier processes
        self.environment = describe(device)
        self.corpus = _corpus(config.data, places)
        self.memory, self.clock = PeakMemory(device), Clock()
        self.autocast = autocast(config.train, device)
        self.model = config.model.build(self.corpus.vocab_size, config.seed).to(device)
        self.compiled = config.train.compiles_on(device.type, _petaflops(config, self.corpus))
        self.step = TrainingStep(
            config.train,
            self.model,
            torch.from_numpy(self.corpus.train.astype("int32")).to(device),
            _starts(config, self.corpus),
            seed=config.seed,
            compiled=self.compiled,
        )

    def events(self) -> Iterator[Event]:
        self._open()
        valid = self._held_out("valid")
        quality: Quality | None = None

        def evaluate() -> dict[str, float | None]:
            nonlocal quality
            quality = valid.quality(self.model, self.autocast)
            return _named("eval", quality)

        config = self.config.train
        progress = Progress(self.step.step, config.steps, None, None)
        yield progress
        try:
            for event in train(self.step, config, evaluate, self.clock, self.memory):
                if isinstance(event, CheckpointDue):
                    self._save()
                else:
                    self.folder.append({"step": event.step, **event.values})
                    progress = self._progress(event, progress)
                    yield progress
        except DivergedError as error:
            self._finish({"status": "diverged", "reason": str(error)})
            yield Ended("diverged", str(error), None)
            return
        # a run that was cut off after its last step has no evaluation of this process
        quality = quality or valid.quality(self.model, self.autocast)
        final: Json = _named("final", quality)
        if self.corpus.test is not None:
            final |= _named("test", self._held_out("test").quality(self.model, self.autocast))
        self._finish({"status": "finished", "reason": None, **final})
        yield Ended("finished", None, quality.loss)

    def _open(self) -> None:
        """The folder, and the state of the last checkpoint where there is one."""
        environment = self.environment | {
            "kernels": self._kernels(),
            "precision": self.config.train.precision_on(self.device.type),
            "compiled": self.compiled,
            "data": dict(self.corpus.description) | {"fingerprint": self.corpus.fingerprint},
        }
        self.folder.open(self.config.to_dict() | {"identity": self.identity}, environment)
        replace_file(self.folder.path / "tokenizer.json", self.corpus.codec.to_json().encode())
        found = checkpoint.load_newest(self.folder.checkpoints, self.identity)
        if found is not None:
            self.model.load_state_dict(found.model)
            self.step.restore(found.step, found.optimizer)
            self.seconds_before = found.seconds["total"]
            self.clock.resume(found.seconds)
        self.folder.truncate_after(found.step if found is not None else -1)

    def _save(self) -> None:
        seconds = self.clock.seconds() | {"total": self._total_seconds()}
        checkpoint.save(
            self.folder.checkpoints,
            checkpoint.Checkpoint(
                self.step.step, self.model.state_dict(), self.step.state(), seconds
            ),
            self.identity,
        )

    def _finish(self, outcome: Json) -> None:
        config, clock = self.config, self.clock
        seconds = clock.step_seconds
        tokens_a_step = config.train.batch_size * config.train.seq_len
        losses = [m["eval_loss"] for m in self.folder.metrics() if m.get("eval_loss") is not None]
        cost = config.model.cost(self.corpus.vocab_size, config.train.seq_len)
        parts = config.model.parts(self.corpus.vocab_size)
        self.folder.finish(
            {
                **outcome,
                "best_loss": min(losses, default=None),
                "steps": self.step.step,
                "tokens": self.step.step * tokens_a_step,
                "total_time": self._total_seconds(),
                "train_time": clock.train_seconds,
                "eval_time": clock.eval_seconds,
                "compile_time": clock.compile_seconds,
                "step_time": seconds,
                "tokens_per_second": tokens_a_step / seconds if seconds else None,
                "peak_memory_bytes": self.memory.peak_bytes,
                "attention_type": [m.kind() for m in config.model.per_layer()],
                "kernels": self._kernels(),
                "parameters": parts._asdict() | {"total": parts.total},
                "flops_per_token": cost.flops,
                "state_bytes": cost.state_bytes,
                "device": self.environment["device"]["name"],
                "parent": None,
            }
        )

    def _kernels(self) -> list[str]:
        dtype = getattr(torch, self.config.train.precision_on(self.device.type))
        return sorted({m.kernel_on(self.device, dtype) for m in self.model.mechanisms()})

    def _held_out(self, split: Literal["valid", "test"]) -> HeldOut:
        train_config = self.config.train
        return HeldOut(
            self.corpus,
            split,
            seq_len=train_config.seq_len,
            batch_size=train_config.eval_batch_size,
            device=self.device,
        )

    def _progress(self, event: Measurement, before: Progress) -> Progress:
        seconds = self.clock.step_seconds
        tokens_a_step = self.config.train.batch_size * self.config.train.seq_len
        rate = tokens_a_step / seconds if seconds else None
        return Progress(event.step, before.steps, event.values.get("train_loss", before.loss), rate)

    def _total_seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started


@lru_cache(maxsize=1)
def _corpus(data: DataConfig, places: Places) -> Corpus:
    """The corpus, read once for all runs of a process that share it."""
    return data.load(places)


def _starts(config: RunConfig, corpus: Corpus) -> Any:
    train_config = config.train
    return window_starts(
        len(corpus.train),
        seq_len=train_config.seq_len,
        batch_size=train_config.batch_size,
        steps=train_config.steps,
        seed=config.seed,
    )


def _petaflops(config: RunConfig, corpus: Corpus) -> float:
    """Arithmetic of the whole run: forward, and backward at twice that, at half the context."""
    train_config = config.train
    context = math.ceil(train_config.seq_len / 2)
    tokens = train_config.steps * train_config.batch_size * train_config.seq_len
    return 3 * config.model.cost(corpus.vocab_size, context).flops * tokens / 1e15


def _named(prefix: str, quality: Quality) -> dict[str, float | None]:
    return {
        f"{prefix}_loss": quality.loss,
        f"{prefix}_perplexity": quality.perplexity,
        f"{prefix}_accuracy": quality.accuracy,
        f"{prefix}_bits_per_byte": quality.bits_per_byte,
    }
