"""One run of a study: every setting that decides its result, and what makes it the same run.

A run's identity is the hash of its whole configuration, the fingerprint of its data and the source
of any class of the user's own. The same identity is never computed twice.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import attnlab.mechanisms  # noqa: F401  # pyright: ignore[reportUnusedImport]  the zoo of kinds
from attnlab.config import Config, ConfigError, Problem, drop_unset, own_sources
from attnlab.data import DataConfig
from attnlab.mechanism import Cost, MechanismConfig
from attnlab.model.language_model import ModelConfig
from attnlab.model.layer_pattern import ByLayer
from attnlab.record import RunFolder
from attnlab.training.config import EvalConfig, Schedule, TrainConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig(Config):
    """Everything that decides the result of one run."""

    data: DataConfig
    model: ModelConfig
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    seed: int = 0

    def problems(self) -> Iterator[Problem]:
        if self.seed < 0:
            yield Problem("seed", f"must not be negative, got {self.seed}")

    def with_mechanisms(
        self, *mechanisms: MechanismConfig, layers: Mapping[int, MechanismConfig] | None = None
    ) -> "RunConfig":
        """The same run with other mechanisms, tiled over the layers.

        Or with one mechanism, and others in the `layers` that are named, from 0. Raises
        `ConfigError`.
        """
        pattern: tuple[MechanismConfig, ...] | ByLayer = mechanisms
        if layers:
            if len(mechanisms) > 1:
                message = (
                    f"beside layers name one, for the layers that are left; got {len(mechanisms)}"
                )
                raise ConfigError([Problem("mechanisms", message)])
            pattern = ByLayer(default=next(iter(mechanisms), None), layers=layers)
        return dataclasses.replace(self, model=dataclasses.replace(self.model, mechanisms=pattern))

    def with_learning_rate(self, rate: float) -> "RunConfig":
        """The same run with another peak learning rate."""
        return dataclasses.replace(self, train=dataclasses.replace(self.train, learning_rate=rate))

    def extended(self, steps: int, schedule: Schedule) -> "RunConfig":
        """The same run and more steps; see `TrainConfig.extended`."""
        return dataclasses.replace(self, train=self.train.extended(steps, schedule))

    def parent(self) -> "RunConfig | None":
        """The run that this one extends; None where it extends none."""
        train = self.train.shorter()
        return None if train is None else dataclasses.replace(self, train=train)

    def cost(self) -> Cost:
        """Return the cost of one token at the end of a sequence, in the whole model."""
        return self.model.cost(self.data.tokenizer.vocab_size, self.train.seq_len)

    def petaflops(self, vocab_size: int) -> float:
        """Return the arithmetic of the whole run in 10^15 FLOPs.

        A backward pass counts as two forward passes; a token sees half the sequence on average.
        """
        context = math.ceil(self.train.seq_len / 2)
        tokens = self.train.steps * self.train.batch_size * self.train.seq_len
        return 3 * self.model.forward_flops(vocab_size, context) * tokens / 1e15

    def identity(self, fingerprint: str) -> str:
        """Twelve hexadecimal digits of settings, data (by fingerprint) and the user's sources.

        A setting that is none or false says that something is absent, as it was before there was
        such a setting: it does not count, and nor does a section in which nothing else is said.
        Nor does how the mechanisms of the layers are written, or what has no influence on the
        result: where the data lies, which checkpoints are kept.
        """
        sections = {
            name: getattr(self, name).identity_fields() for name in ("data", "model", "train")
        }
        config = self.to_dict() | sections
        what = {"config": drop_unset(config), "data": fingerprint, "sources": own_sources(self)}
        canonical = json.dumps(what, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One variant with one seed; where it tunes the learning rate, with the rate that it tries."""

    variant: str
    config: RunConfig
    tunes: bool = False

    @property
    def seed(self) -> int:
        return self.config.seed

    def folder(self, study_dir: Path) -> RunFolder:
        """Where it is on disk, or will be."""
        rate = self.config.train.learning_rate if self.tunes else None
        return RunFolder(study_dir, self.variant, self.seed, tuning_rate=rate)
