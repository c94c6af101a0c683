"""The training step: one update of the model, a function of the step number and the last state.

The batch is row `step` of a table of window starts, the learning rate is an element of a table, and
the random stream of dropout is seeded by a hash of seed and step. On CUDA, tokens and tables are on
the device, and after a few eager steps the whole update is recorded as one CUDA graph and replayed.
Losses and gradient norms are written to the device, so that no step waits for it.

Shapes: S steps, B batch, T tokens, C measured columns.
"""

import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attnlab.config import is_own
from attnlab.device.measuring import beside, side_stream
from attnlab.device.ranks import Ranks
from attnlab.kernels.cross_entropy import Answers
from attnlab.model.initialization import stream
from attnlab.model.language_model import LanguageModel, Losses
from attnlab.training.config import TrainConfig
from attnlab.training.learning_rate import Cosine, learning_rates
from attnlab.training.optimizer import MOMENTS, optimizer_of, set_learning_rate
from attnlab.training.parallel import DividedStep, apply
from attnlab.training.quality import AnswerTable

CUDNN_ALLOWED = torch.backends.cuda.cudnn_sdp_enabled()  # by whoever started the process
EAGER_STEPS = 3  # training steps that warm up kernels and allocator before the recording
COLUMNS = ("train_loss", "auxiliary_loss", "gradient_norm")


class TrainingStep:
    """A model in training: `advance` makes one update and increments `step`."""

    def __init__(  # noqa: PLR0913  one parameter per part
        self,
        config: TrainConfig,
        model: LanguageModel,
        tokens: Tensor,
        starts_SB: np.ndarray,
        *,
        seed: int,
        compiled: bool,
        ranks: Ranks | None = None,
        answers: AnswerTable | None = None,
    ) -> None:
        """Start at step 0.

        Args:
            config: the settings of training.
            model: the model, on the device of `tokens`; with several `ranks`, on any.
            tokens: the training split, 1-D, of any integer dtype.
            starts_SB: for each step, the position of the first token of each window of its batch.
            seed: the seed of dropout.
            compiled: True to compile the blocks of the model.
            ranks: the processes of the run; None: this one alone.
            answers: those of a task, whose sequences are the windows; None: every next token.
        """
        allow_cudnn(model)
        self.model, self.seed, self.clip_norm = model, seed, config.clip_norm
        self.answers = answers
        self.device = device = tokens.device
        self.divided = _divided(config, model, ranks or Ranks.alone(device), compiled=compiled)
        if self.divided is not None:
            starts_SB = starts_SB[:, self.divided.rows]
        self.tokens, self.starts_SB = tokens, torch.from_numpy(starts_SB).to(device)
        self.offset_T1 = torch.arange(config.seq_len + 1, device=device)
        self.rates_S = torch.tensor(_rates(config), device=device)
        self.measured_SC = torch.full((config.steps, len(COLUMNS)), math.nan, device=device)
        self.shards = self.divided and self.divided.shards
        self.optimizer = optimizer_of(
            config,
            model,
            dict(model.named_parameters()) if self.shards is None else self.shards.own,
            device,
            of_whole=None if self.shards is None else self.shards.of_whole,
        )
        self.step = 0
        self._step_1 = torch.zeros(1, dtype=torch.int64, device=device)  # a copy of `step`
        self.autocast = autocast(config, device)
        self.compiled = compiled
        self._records = device.type == "cuda" and config.cuda_graph == "auto"
        self._records &= self.divided is None or self.divided.records
        self._graph: torch.cuda.CUDAGraph | None = None
        self._eager_steps_left = EAGER_STEPS if self._records else 1

    @property
    def warm(self) -> bool:
        """True if the next step takes the usual time: compiled, warmed up and recorded."""
        return not self._eager_steps_left and (self._graph is not None or not self._records)

    def advance(self) -> None:
        """Make one update. On CUDA it returns before the update is complete."""
        if self._records and self._graph is None and not self._eager_steps_left:
            self._record()
        self.model.at_step(self.step)
        seed_dropout(self.device, stream(self.seed, f"dropout/{self.step}"))
        if self._graph is not None:
            self._graph.replay()
        elif self._records:
            with beside(self.device):
                self._update()
        else:
            self._update()
        self.step += 1
        self._eager_steps_left = max(0, self._eager_steps_left - 1)

    def require_known_parameters(self) -> None:
        """Raise ValueError for a parameter that was made, or replaced, after the constructor."""
        known = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        if self.shards is not None:
            self.shards.require_common_memory()
            known = {id(parameter) for parameter in self.shards.sharded.values()}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and id(parameter) not in known:
                raise ValueError(
                    f"parameter {name} was made or replaced in a forward pass, so that the "
                    "optimizer does not train it: make it in the constructor"
                )

    def means(self, first: int, last: int) -> dict[str, float]:
        """Return the mean of each column over steps `first` to `last` (excluded). Waits."""
        means_C = self.measured_SC[first:last].double().mean(0).tolist()
        return dict(zip(COLUMNS, means_C, strict=True))

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of step `step`, counted from 0. Waits for the device."""
        return self.rates_S[step].item()

    def first_non_finite(self, first: int, last: int) -> tuple[int, str, float] | None:
        """Return step, column and value of the first number that is not finite; None if all are.

        It reads the steps from `first` up to `last` (excluded), and waits for the device.
        """
        rows_SC = self.measured_SC[first:last].cpu()
        for step, row_C in enumerate(rows_SC.tolist(), first):
            for name, value in zip(COLUMNS, row_C, strict=True):
                if not math.isfinite(value):
                    return step, name, value
        return None

    def parameters(self) -> dict[str, Tensor]:
        """Return the parameters that the optimizer updates, by name: this process's shards."""
        return dict(self.model.named_parameters()) if self.shards is None else {**self.shards.own}

    def weights(self) -> dict[str, Tensor]:
        """Return the model's state dict; of several processes, each has its shards."""
        return self.model.state_dict() if self.shards is None else self.shards.state_dict()

    def whole(self, own: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return whole tensors of those that each process has a shard of, where they are written.

        They are on the host then. One process has whole tensors, and gets them as they are.
        """
        return own if self.shards is None else self.shards.whole(own)

    def own(self, whole: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return this process's shards of whole tensors, the inverse of `whole`."""
        return whole if self.shards is None else self.shards.shard(whole)

    def state(self) -> dict[str, Tensor]:
        """Return all tensors beside the model that a later process needs to continue, by name.

        Of several processes, each has those of its shards.
        """
        tensors = {"measured": self.measured_SC[: self.step].contiguous()}
        for name, parameter in self.parameters().items():
            moments = self.optimizer.state.get(parameter, {})
            tensors |= {f"{key}.{name}": moments[key] for key in MOMENTS if key in moments}
        return tensors

    def restore(self, step: int, weights: dict[str, Tensor], state: dict[str, Tensor]) -> None:
        """Restore the whole tensors of the model, and those that `state` returned at `step`."""
        if self.shards is None:
            self.model.load_state_dict(weights)
        else:
            self.shards.load(weights)
        state = self.own(state)
        self.step = step
        self._step_1.fill_(step)
        self.measured_SC[:step] = state["measured"].to(self.device)
        for name, parameter in self.parameters().items():
            moments = {key: state[f"{key}.{name}"] for key in MOMENTS if f"{key}.{name}" in state}
            if moments:
                self.optimizer.state[parameter] = {
                    key: moment.to(self.device).clone() for key, moment in moments.items()
                }

    def next_batch(self) -> tuple[Tensor, Answers | None]:
        """Return the token ids `tokens_BT1` of the next step, and the answers of a task."""
        starts_B = self.starts_SB.index_select(0, self._step_1)[0]
        batch_BT1 = self.tokens[starts_B[:, None] + self.offset_T1].long()
        return batch_BT1, None if self.answers is None else self.answers.at(starts_B)

    def _update(self) -> None:
        batch_BT1, answers = self.next_batch()
        set_learning_rate(self.optimizer, self.rates_S.index_select(0, self._step_1)[0])
        self.optimizer.zero_grad(set_to_none=True)
        if self.divided is not None:
            losses, norm = self.divided.gradients(batch_BT1, answers, self.autocast, self.clip_norm)
        else:
            compiled = self.compiled
            losses = forward_and_backward(
                self.model, batch_BT1, self.autocast, answers, compiled=compiled
            )
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
        row_C = torch.stack([losses.language_model, losses.auxiliary, norm]).detach()
        self.measured_SC.index_copy_(0, self._step_1, row_C[None].float())
        self._step_1 += 1

    def _record(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=side_stream(self.device)):
                self._update()
        except RuntimeError as error:
            advice = "a mechanism waits for the device or depends on its values in Python"
            raise RuntimeError(
                f"the step could not be recorded as a CUDA graph: {error}\n"
                f"Usual cause: {advice}. Set train.cuda_graph=off to train without a graph."
            ) from error
        self._graph = graph


def _divided(
    config: TrainConfig, model: LanguageModel, ranks: Ranks, *, compiled: bool
) -> DividedStep | None:
    """Return the division of every batch; None if one process computes it in one pass."""
    if ranks.count == 1 and not config.micro_batch_size and not config.activation_checkpointing:
        return None
    apply(model, config, ranks, compiled=compiled)
    return DividedStep(config, model, ranks)


def forward_and_backward(
    model: LanguageModel,
    tokens_BT1: Tensor,
    context: Any,
    answers: Answers | None = None,
    *,
    compiled: bool = False,
) -> Losses:
    """Add the gradients of the losses of one batch to those of the parameters.

    `context` is the autocast of the forward pass; `answers` are those of a task. Returns the
    losses.
    """
    with context:
        losses = model.losses(tokens_BT1, answers=answers, compiled=compiled)
    (losses.language_model + losses.auxiliary).backward()
    return losses


def autocast(config: TrainConfig, device: torch.device) -> Any:
    """Return the context of forward passes: bfloat16 autocast if the settings choose it."""
    if config.precision_on(device.type) == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def allow_cudnn(model: LanguageModel) -> None:
    """Let torch choose cuDNN's attention only where all mechanisms are attnlab's.

    Its backward pass may be wrong for a gradient in an unusual layout (`kernels/attention.py`),
    which a mechanism of the user's own may give it.
    """
    torch.backends.cuda.enable_cudnn_sdp(CUDNN_ALLOWED and not has_own_mechanism(model))


def has_own_mechanism(model: LanguageModel) -> bool:
    """True if a mechanism of the model is the user's own."""
    return any(is_own(type(mechanism)) for mechanism in model.mechanisms())


def seed_dropout(device: torch.device, seed: int) -> None:
    """Seed the random generator of the device; recorded CUDA graphs use it, too."""
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def _rates(config: TrainConfig) -> list[float]:
    """Return the learning rate of every step; those of a run that this one continues stay."""
    shorter = config.shorter()
    before = _rates(shorter) if shorter is not None else []
    if config.extends is not None and config.extends.schedule == "constant":
        return before + [before[-1]] * (config.steps - len(before))
    whole = learning_rates(
        config.schedule or Cosine(),
        config.steps,
        peak=config.learning_rate,
        warmup_steps=config.warmup_steps,
        final_ratio=config.final_learning_rate_ratio,
    )
    return [*before, *whole[len(before) :]]
