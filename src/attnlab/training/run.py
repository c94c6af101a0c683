"""One run of a study: every setting that decides its result, and its identity.

The identity is a hash of the settings, the fingerprint of the data and the source code of the
user's own classes. Runs with the same identity have the same result; none is trained twice.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import attnlab.mechanisms  # noqa: F401  # pyright: ignore[reportUnusedImport]  registers the kinds
from attnlab.config import (
    Config,
    ConfigError,
    Problem,
    drop_unset,
    identity_sources,
    own_classes,
    without_folders,
)
from attnlab.data import DataConfig
from attnlab.data.tokenizer import HuggingFace, Ids, Tokenizer
from attnlab.data.tokens import Tokens
from attnlab.mechanism import Cost, MechanismConfig
from attnlab.model.feedforward import FeedForward
from attnlab.model.language_model import ModelConfig
from attnlab.model.layer_pattern import ByLayer
from attnlab.model.llama_checkpoint import Checkpoint
from attnlab.model.scale import scaled
from attnlab.record import TUNING_SEED, RunFolder
from attnlab.training.config import Continuation, EvalConfig, TrainConfig
from attnlab.training.optimizer import update_flops


@dataclass(frozen=True, kw_only=True)
class RunConfig(Config):
    """Everything that decides the result of one run."""

    data: DataConfig  # the text, its splits and its tokenizer
    model: ModelConfig  # the language model and its mechanisms
    train: TrainConfig = field(default_factory=TrainConfig)  # optimizer, length, precision
    eval: EvalConfig = field(default_factory=EvalConfig)  # measurements after training
    seed: int = 0  # seed of initial values, batches and dropout

    def problems(self) -> Iterator[Problem]:
        if self.seed < 0:
            yield Problem("seed", f"must not be negative, got {self.seed}")

    @classmethod
    def of_checkpoint(cls, folder: Path, settings: Checkpoint) -> "RunConfig":
        """Return the run that a checkpoint of Llama or Qwen stands for: its model, unknown data.

        `settings` are those in its config.json, as `find_checkpoint` reads them.
        """
        tokenizer: Tokenizer = Ids(vocab_size=settings.vocab_size)
        if (folder / "tokenizer.json").is_file():
            tokenizer = HuggingFace(path=str(folder), vocab_size=settings.vocab_size)
        return cls(data=Tokens(path=str(folder), tokenizer=tokenizer), model=settings.model)

    def with_mechanisms(
        self, *mechanisms: MechanismConfig, layers: Mapping[int, MechanismConfig] | None = None
    ) -> "RunConfig":
        """Return the same run with other mechanisms, tiled over the layers.

        Args:
            mechanisms: one or more; with `layers`, at most one, the default of the other layers.
            layers: mechanisms by layer, from 0.

        Raises `ConfigError` if the settings are impossible.
        """
        pattern: tuple[MechanismConfig, ...] | ByLayer = mechanisms
        if layers:
            if len(mechanisms) > 1:
                message = f"with layers, at most one other mechanism is used; got {len(mechanisms)}"
                raise ConfigError([Problem("mechanisms", message)])
            pattern = ByLayer(default=next(iter(mechanisms), None), layers=layers)
        return dataclasses.replace(self, model=dataclasses.replace(self.model, mechanisms=pattern))

    def in_every_layer(self, mechanism: MechanismConfig) -> "RunConfig":
        """Return the same run with one mechanism; see `ModelConfig.in_every_layer`."""
        return dataclasses.replace(self, model=self.model.in_every_layer(mechanism))

    def with_feedforward(self, feedforward: FeedForward) -> "RunConfig":
        """Return the same run with another feed-forward layer in every block."""
        return dataclasses.replace(
            self, model=dataclasses.replace(self.model, feedforward=feedforward)
        )

    def with_size(self, n_layers: int, d_model: int, name: str = "size") -> "RunConfig":
        """Return the same run of a model of another size: see `model.scale`.

        The peak learning rate is divided by the factor of the width. That is muP's rule for hidden
        matrices with Adam (Yang et al. 2022, arXiv:2203.03466), used for all parameters; a search
        starts there. Depth does not change it.

        Raises `ConfigError`, with the problem at `name`, if the size does not fit.
        """
        model = scaled(self.model, n_layers, d_model, name)
        rate = self.train.learning_rate * self.model.d_model / d_model
        return dataclasses.replace(self, model=model).with_learning_rate(rate)

    def with_learning_rate(self, rate: float) -> "RunConfig":
        """Return the same run with another peak learning rate."""
        return dataclasses.replace(self, train=dataclasses.replace(self.train, learning_rate=rate))

    def extended(self, steps: int, schedule: Continuation) -> "RunConfig":
        """Return the same run with more steps; see `TrainConfig.extended`."""
        return dataclasses.replace(self, train=self.train.extended(steps, schedule))

    def parent(self) -> "RunConfig | None":
        """Return the run that this one continues; None if it continues none."""
        train = self.train.shorter()
        return None if train is None else dataclasses.replace(self, train=train)

    def cost(self) -> Cost:
        """Return the cost of one token at the end of a sequence, in the whole model."""
        return self.model.cost(self.data.tokenizer.vocab_size, self.train.seq_len)

    def petaflops(self, vocab_size: int) -> float:
        """Return the arithmetic of the whole run in 10^15 FLOPs.

        A backward pass counts as two forward passes; a token sees half the sequence on average. The
        optimizer's matrix products are included.
        """
        tokens = self.train.batch_size * self.train.seq_len
        of_step = 3 * self.forward_flops(vocab_size) * tokens
        of_step += update_flops(self.train.optimizer, self.model)
        return self.train.steps * of_step / 1e15

    def forward_flops(self, vocab_size: int) -> int:
        """Return the FLOPs of a token's forward pass, at half the context of a sequence."""
        return self.model.forward_flops(vocab_size, math.ceil(self.train.seq_len / 2))

    def sources(self, *, executed: bool = False) -> dict[str, str]:
        """Return the SHA-256 of every file of the user's own code that runs, by name.

        They are those on disk, or with `executed` those that this process has imported.
        """
        return identity_sources(own_classes(self), executed=executed)

    def identity(self, fingerprint: str) -> str:
        """Return twelve hexadecimal digits: a hash of settings, data and the user's source code.

        `fingerprint` is that of the data. The user's source code is the files of the classes in the
        settings, and the modules of the user's that these import. Left out are settings that are
        none or false, since they mean the absence of a feature and so equal their absence, and
        sections that are then empty. Also left out are settings that do not change the result: the
        place of the data, the checkpoints to keep, and the way in which the mechanisms of the
        layers are written.
        """
        sections = {
            name: getattr(self, name).identity_fields() for name in ("data", "model", "train")
        }
        config = without_folders(self.to_dict() | sections)
        what = {"config": drop_unset(config), "data": fingerprint, "sources": self.sources()}
        canonical = json.dumps(what, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One variant with one seed; a run that tries another recipe also has that recipe's name."""

    variant: str  # name in the study
    config: RunConfig
    recipe: str | None = None  # None: that of the verdict

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def tunes(self) -> bool:
        """True if it chooses a recipe, and has no part in the verdict."""
        return self.recipe is not None and self.seed >= TUNING_SEED

    def folder(self, study_dir: Path) -> RunFolder:
        """Return the run's folder, which need not exist."""
        return RunFolder(study_dir, self.variant, self.seed, recipe=self.recipe)
