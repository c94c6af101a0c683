"""The alarm on implausible loss: a loss that the text does not allow is a leak, not quality.

Suspicion is cheap and looks at every number that training yields. A loss is suspicious below

    half of what n-grams with a cache reach on the same text      (attnlab.data.ngram)

Small models that are trained on the text alone stay above that; a mechanism that sees the next
token falls through it within some hundred steps. A training loss counts in the first pass over the
data only, where every window is new; later it may fall as far as memory goes.

Proof is a test on the trained model, on the first suspicion and once more at the end of training:
tokens after a cut are replaced, and the losses before it must stay. No causal model fails it for
being good, and a leak that pays in most windows cannot pass it. What moves in one window alone does
not count: a model on the verge of diverging can make a nat of a rounding error. This test alone
decides. A suspicion that it clears, of a very large model or on text with a rule that counting
cannot find (arithmetic, say), is recorded as cleared.

Shapes: B batch, T tokens that are read, M measurements: modes x cuts.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attnlab.data import Corpus
from attnlab.data.ngram import ngram_loss
from attnlab.model.language_model import LanguageModel
from attnlab.training.config import TrainConfig
from attnlab.training.evaluate import HeldOut, score
from attnlab.training.step import seed_dropout

FRACTION = 0.5  # of the loss of the n-grams: what lies below is suspicious
MOVES = (
    0.2  # nats: more than rounding moves any loss of a window in bfloat16, less than a leak does
)
ROWS, CUTS = 4, 8


class LookAhead(NamedTuple):
    """How far losses move when later tokens change."""

    nats: float  # the largest move of a window, the median over a few windows
    position: int  # whose loss moves most
    cut: int  # tokens from here on were replaced
    mode: str  # "eval" or "train"

    @property
    def sees_the_future(self) -> bool:
        return not self.nats <= MOVES  # a loss that is no number is no proof of innocence

    def __str__(self) -> str:
        if self.sees_the_future:
            return (
                f"the model sees the future: losses move by {self.nats:.2g} nats when later tokens "
                f"change, most at position {self.position} when those from {self.cut} on do "
                f"(in {self.mode} mode)"
            )
        return (
            f"yet no loss moves by more than {self.nats:.1g} nats when the tokens after it change"
        )


@torch.no_grad()
def look_ahead(
    model: LanguageModel, tokens_BT: Tensor, target_BT: Tensor, context: Any
) -> LookAhead:
    """Put a model to the test on some windows, in eval and in train mode; waits once.

    From each of a few cuts on, the tokens that are read are replaced by those of the window in
    reverse, and the losses before the cut are compared. `context` is that of autocast.
    """
    n_tokens = tokens_BT.shape[1]
    cuts = sorted({n_tokens * i // (CUTS + 1) for i in range(1, CUTS + 1)} - {0})
    if not cuts:
        return LookAhead(0.0, 0, 0, "eval")
    training = model.training
    moved = list[Tensor]()
    with context:
        for train_mode in (False, True):
            model.train(train_mode)
            nats_BT = _nats(model, tokens_BT, target_BT)
            for cut in cuts:
                other_BT = torch.cat([tokens_BT[:, :cut], tokens_BT.flip(1)[:, cut:]], 1)
                moved_BT = (_nats(model, other_BT, target_BT) - nats_BT).abs()
                moved_BT[:, cut:] = 0.0
                moved.append(moved_BT)
    model.train(training)
    moved_MBT = torch.stack(moved).cpu()
    measured, position = divmod(int(moved_MBT.mean(1).argmax()), n_tokens)
    mode = "eval" if measured < len(cuts) else "train"
    nats = moved_MBT.amax((0, 2)).median().item()
    return LookAhead(nats, position, cuts[measured % len(cuts)], mode)


class Watch:
    """What a run says of its own plausibility: sentences with numbers."""

    def __init__(
        self,
        corpus: Corpus,
        config: TrainConfig,
        model: LanguageModel,
        context: Any,
        valid: HeldOut,
    ) -> None:
        self.model, self.context = model, context
        tokens_BT1 = valid.batches[0].tokens_BT1[:ROWS]
        self.tokens_BT, self.target_BT = tokens_BT1[:, :-1], tokens_BT1[:, 1:]
        self.ngrams = _ngram_loss(corpus, config.seq_len)
        windows = len(corpus.train) // (config.seq_len + 1)
        self.first_pass = windows // config.batch_size  # steps in which every window is new
        self.alarms, self.cleared = list[str](), list[str]()

    def resume(self, metrics: Iterable[Mapping[str, Any]]) -> None:
        """Take back what an earlier process said in the lines of metrics that are kept."""
        for line in metrics:
            self.alarms += [line["alarm"]] if "alarm" in line else []
            self.cleared += [line["cleared"]] if "cleared" in line else []

    def look(self, step: int, values: Mapping[str, float | None]) -> dict[str, str]:
        """What to add to the line of metrics of this step: nothing, but for the first suspicion."""
        suspicion = self._suspicion(step, values)
        if suspicion is None or self.alarms or self.cleared:
            return {}
        found = self._look_ahead()
        said = f"{suspicion}; {found}"
        (self.alarms if found.sees_the_future else self.cleared).append(said)
        return {"alarm" if found.sees_the_future else "cleared": said}

    def last_look(self) -> str | None:
        """Put the trained model to the test; its alarm, where there was none before."""
        if self.alarms or not (found := self._look_ahead()).sees_the_future:
            return None
        self.alarms.append(f"after the last step {found}")
        return self.alarms[-1]

    def said(self) -> dict[str, Any]:
        """For the run's summary."""
        return {"ngram_loss": self.ngrams, "alarms": self.alarms, "cleared": self.cleared}

    def _suspicion(self, step: int, values: Mapping[str, float | None]) -> str | None:
        losses = {"validation": values.get("eval_loss")}
        if step <= self.first_pass:
            losses["training"] = values.get("train_loss")
        for split, loss in losses.items():
            if loss is not None and loss < FRACTION * self.ngrams:
                return (
                    f"{split} loss {loss:.3f} at step {step} is below {FRACTION * self.ngrams:.3f},"
                    f" {FRACTION:.0%} of what n-grams with a cache reach on this text"
                )
        return None

    def _look_ahead(self) -> LookAhead:
        return look_ahead(self.model, self.tokens_BT, self.target_BT, self.context)


def _nats(model: LanguageModel, tokens_BT: Tensor, target_BT: Tensor) -> Tensor:
    seed_dropout(tokens_BT.device, 0)  # every step of training seeds it anew, too
    return score(model, tokens_BT, target_BT)[0]


@lru_cache(maxsize=1)
def _ngram_loss(corpus: Corpus, seq_len: int) -> float:
    """Once for all runs of a process that share the corpus: it takes up to a second or two."""
    return ngram_loss(corpus.train, corpus.valid, vocab_size=corpus.vocab_size, seq_len=seq_len)
