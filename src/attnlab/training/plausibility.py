"""The alarms of a run: losses that are implausibly low, and gradients that a kernel gets wrong.

Gradients in bfloat16 are compared with those in float32 before the first step (`precision.py`).
Implausibly low losses are the sign of a model that sees the future.

The first test is cheap and applies to every loss that training yields. A loss is suspicious below

    half the loss of n-grams with a cache on the same text      (attnlab.data.ngram)

Small models that are trained on the text alone stay above that; a mechanism that sees the next
token falls below it within some hundred steps. A training loss is tested during the first epoch
only, in which every window is new; later it may fall because the model memorises the text.

The second test decides. It runs on the first suspicion, and once more at the end of training: the
tokens after a cut are replaced, and the losses before it must not change. No causal model fails it
because it is good, and no leak that lowers the loss in most windows passes it. It runs
on windows of the training split, in the length, the dtype and the batches of training, and in
batches of eight if those are smaller: a leak may show in large batches only. The change is the
median over a few windows, since in a single window a model that is about to diverge can amplify a
rounding error. A suspicion that this test refutes is recorded as cleared: of a very large model, or
on text with a rule that n-grams cannot learn, such as arithmetic. The answers of a task can be
predicted without a loss, so that no loss is suspicious there, and only the test at the end is made.

Shapes: B batch, T input tokens, M measurements: modes x cuts.
"""

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from attnlab.data import Corpus
from attnlab.data.ngram import ngram_loss
from attnlab.model.language_model import LanguageModel
from attnlab.training.config import TrainConfig
from attnlab.training.evaluate import score
from attnlab.training.precision import GradientError, gradient_error
from attnlab.training.step import TrainingStep, seed_dropout

FRACTION = 0.5  # of the loss of the n-grams; a loss below is suspicious
MAX_CHANGE = 0.2  # nats/token; bfloat16 rounding changes a loss by less, a leak by more
ROWS, CUTS = 4, 8  # least number of windows, and cuts per window, of the second test
LARGE_BATCH = 8  # sequences; the second test runs on batches of at least this size, too


class LookAhead(NamedTuple):
    """The largest change of a loss when later tokens are replaced."""

    nats: float  # largest change in a window, median over the windows
    position: int  # the position whose loss changes most
    cut: int  # position of the first replaced token
    mode: str  # "eval" or "train"
    batch_size: int  # sequences per forward pass

    @property
    def sees_the_future(self) -> bool:
        """True if the change exceeds `MAX_CHANGE`, or is not a number."""
        return not self.nats <= MAX_CHANGE

    def __str__(self) -> str:
        if self.sees_the_future:
            return (
                f"the model sees the future: losses change by {self.nats:.2g} nats when later "
                f"tokens are replaced, most at position {self.position} when those from {self.cut} "
                f"on are (in {self.mode} mode, batch {self.batch_size})"
            )
        return (
            f"but no loss changes by more than {self.nats:.1g} nats when later tokens are replaced"
        )


@torch.no_grad()
def look_ahead(
    model: LanguageModel, tokens_BT: Tensor, target_BT: Tensor, context: Any, batch_size: int
) -> LookAhead:
    """Return the largest change of losses when later tokens are replaced, in eval and train mode.

    Args:
        model: the model; its mode is restored.
        tokens_BT: input tokens of some windows.
        target_BT: their targets.
        context: the autocast of forward passes.
        batch_size: sequences per forward pass.

    From each of several cuts on, the input tokens are replaced by those of the reversed window, and
    the losses before the cut are compared. Waits for the device once.
    """
    n_tokens = tokens_BT.shape[1]
    cuts = sorted({n_tokens * i // (CUTS + 1) for i in range(1, CUTS + 1)} - {0})
    if not cuts:
        return LookAhead(0.0, 0, 0, "eval", batch_size)
    training = model.training
    changes = list[Tensor]()
    with context:
        for train_mode in (False, True):
            model.train(train_mode)
            nats_BT = _nats(model, tokens_BT, target_BT, batch_size)
            for cut in cuts:
                other_BT = torch.cat([tokens_BT[:, :cut], tokens_BT.flip(1)[:, cut:]], 1)
                change_BT = (_nats(model, other_BT, target_BT, batch_size) - nats_BT).abs()
                change_BT[:, cut:] = 0.0
                changes.append(change_BT)
    model.train(training)
    change_MBT = torch.stack(changes).cpu()
    measured, position = divmod(int(change_MBT.mean(1).argmax()), n_tokens)
    mode = "eval" if measured < len(cuts) else "train"
    nats = change_MBT.amax((0, 2)).median().item()
    return LookAhead(nats, position, cuts[measured % len(cuts)], mode, batch_size)


class PlausibilityMonitor:
    """The tests of one run, and their messages: `alarms`, and refuted suspicions, `cleared`."""

    def __init__(
        self,
        corpus: Corpus,
        config: TrainConfig,
        model: LanguageModel,
        context: Any,
    ) -> None:
        self.model, self.context = model, context
        own = config.batch_size
        self.batch_sizes = sorted({own, max(own, LARGE_BATCH)})
        windows = _windows(corpus, config.seq_len, rows=max(LARGE_BATCH, own))
        self.tokens_BT, self.target_BT = (x.to(model.embed.weight.device) for x in windows)
        self.ngrams = _ngram_loss(corpus, config.seq_len) if corpus.examples is None else None
        windows = len(corpus.train) // (config.seq_len + 1)
        self.first_epoch = windows // config.batch_size  # steps in which every window is new
        self.alarms, self.cleared = list[str](), list[str]()
        self.gradients: GradientError | None = None

    def check_gradients(self, step: TrainingStep) -> str | None:
        """Compare the gradients of the next step with those in float32; return the alarm."""
        self.gradients = gradient_error(step)
        if self.gradients is None or not self.gradients.is_wrong:
            return None
        self.alarms.append(f"at step {step.step} {self.gradients}")
        return self.alarms[-1]

    def resume(self, metrics: Iterable[Mapping[str, Any]]) -> None:
        """Restore the messages of earlier processes from the recorded metrics."""
        for line in metrics:
            self.alarms += [line["alarm"]] if "alarm" in line else []
            self.cleared += [line["cleared"]] if "cleared" in line else []

    def check(self, step: int, values: Mapping[str, float | None]) -> dict[str, str]:
        """Return the message for this step's metrics; empty except at the first suspicion."""
        suspicion = self._suspicion(step, values)
        if suspicion is None or self.alarms or self.cleared:
            return {}
        found = self._look_ahead()
        message = f"{suspicion}; {found}"
        (self.alarms if found.sees_the_future else self.cleared).append(message)
        return {"alarm" if found.sees_the_future else "cleared": message}

    def final_check(self) -> str | None:
        """Run the second test on the trained model; return its alarm if it is the first one."""
        if self.alarms or not (found := self._look_ahead()).sees_the_future:
            return None
        self.alarms.append(f"after the last step {found}")
        return self.alarms[-1]

    def summary(self) -> dict[str, Any]:
        """Return the fields of the run's summary."""
        found = self.gradients
        return {
            "ngram_loss": self.ngrams,
            "alarms": self.alarms,
            "cleared": self.cleared,
            "gradient_error": found and found.record(),
        }

    def _suspicion(self, step: int, values: Mapping[str, float | None]) -> str | None:
        if self.ngrams is None:
            return None
        losses = {"validation": values.get("eval_loss")}
        if step <= self.first_epoch:
            losses["training"] = values.get("train_loss")
        for split, loss in losses.items():
            if loss is not None and loss < FRACTION * self.ngrams:
                return (
                    f"{split} loss {loss:.3f} at step {step} is below {FRACTION * self.ngrams:.3f},"
                    f" {FRACTION:.0%} of the loss of n-grams with a cache on this text"
                )
        return None

    def _look_ahead(self) -> LookAhead:
        """Return the result for the smallest batch that sees the future, else for the largest."""
        found = None
        for size in self.batch_sizes:
            rows = size * math.ceil(ROWS / size)
            tokens_BT, target_BT = self.tokens_BT[:rows], self.target_BT[:rows]
            found = look_ahead(self.model, tokens_BT, target_BT, self.context, size)
            if found.sees_the_future:
                break
        assert found is not None
        return found


def _windows(corpus: Corpus, seq_len: int, rows: int) -> tuple[Tensor, Tensor]:
    """Return inputs and targets of windows that are spread over the training split.

    Short splits repeat them. Of a task, the targets are the answers, and elsewhere the next tokens.
    """
    last = len(corpus.train) - seq_len - 1
    start_B = np.linspace(0, last, rows).astype(int)
    if corpus.examples is not None:
        start_B -= start_B % (seq_len + 1)
    tokens_BT1 = corpus.train[start_B[:, None] + np.arange(seq_len + 1)].astype("int64")
    tokens_BT, target_BT = tokens_BT1[:, :-1], tokens_BT1[:, 1:]
    if corpus.examples is not None:
        answer_BT = corpus.examples["train"].answers_NT[start_B // (seq_len + 1)]
        target_BT = np.where(answer_BT >= 0, answer_BT, target_BT)
    return torch.from_numpy(tokens_BT), torch.from_numpy(target_BT)


def _nats(model: LanguageModel, tokens_BT: Tensor, target_BT: Tensor, batch_size: int) -> Tensor:
    seed_dropout(tokens_BT.device, 0)  # training seeds it before every step, too
    batches = zip(tokens_BT.split(batch_size), target_BT.split(batch_size), strict=True)
    return torch.cat([score(model, tokens_bT, target_bT)[0] for tokens_bT, target_bT in batches])


@lru_cache(maxsize=1)
def _ngram_loss(corpus: Corpus, seq_len: int) -> float:
    """Return the loss of n-grams; cached, since it takes up to two seconds."""
    return ngram_loss(corpus.train, corpus.valid, vocab_size=corpus.vocab_size, seq_len=seq_len)
