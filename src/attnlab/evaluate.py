"""Held-out quality: loss, token accuracy, perplexity and bits per byte over a whole split.

Every token of the split but the first is predicted exactly once, from the tokens of its window
before it; a last window that would run over the end starts earlier, and only its new tokens count.

Shapes: B batch, T tokens, N tokens that are predicted, V vocabulary, D model width.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from attnlab.data import Corpus
from attnlab.data.batches import evaluation_starts
from attnlab.model import LanguageModel

_LOGITS = 1 << 26  # logits at a time: 256 MiB in float32


class Quality(NamedTuple):
    """What a split says of a model."""

    loss: float  # nats per token
    accuracy: float  # fraction of tokens that were the most likely prediction
    bits_per_byte: float | None  # None where the bytes of the text are not known

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))


class HeldOut:
    """One split, laid out in windows on a device."""

    def __init__(
        self,
        corpus: Corpus,
        split: str,
        *,
        seq_len: int,
        batch_size: int,
        device: torch.device,
    ) -> None:
        self.corpus, self.split = corpus, split
        tokens = torch.from_numpy(corpus.splits()[split].astype("int32")).to(device)
        windows = evaluation_starts(len(tokens), seq_len)
        offset_T1 = torch.arange(windows.length + 1)
        self.batches = list[tuple[Tensor, int]]()  # (B, T + 1) tokens, and how many targets count
        for counted in np.unique(windows.new_targets)[::-1].tolist():  # whole windows, and a rest
            starts = torch.from_numpy(windows.starts[windows.new_targets == counted])
            for start_B in starts.split(batch_size):
                index_BT1 = (start_B[:, None] + offset_T1).to(device)
                self.batches.append((tokens[index_BT1].long(), counted))

    @torch.no_grad()
    def quality(self, model: LanguageModel, context: Any) -> Quality:
        """Score the split in eval mode under the autocast `context`; waits for the device once."""
        training = model.training
        model.eval()
        totals = list[Tensor]()
        with context:
            for batch_BT1, counted in self.batches:
                features_BTD = model.features(batch_BT1[:, :-1])[:, -counted:]
                target_N = batch_BT1[:, -counted:].flatten()
                totals.append(_totals(features_BTD.flatten(0, 1), model.embed.weight, target_N))
        model.train(training)
        nats, right = torch.stack(totals).sum(0).tolist()
        n_targets = sum(len(batch) * counted for batch, counted in self.batches)
        loss = nats / n_targets
        return Quality(loss, right / n_targets, self.corpus.bits_per_byte(self.split, loss))


def _totals(x_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
    """Nats and right predictions, summed over the tokens, in float64."""
    totals = x_ND.new_zeros(2, dtype=torch.float64)
    chunk = max(1, _LOGITS // weight_VD.shape[0])
    for x_CD, target_C in zip(x_ND.split(chunk), target_N.split(chunk), strict=True):
        logits_CV = linear(x_CD, weight_VD).float()
        totals[0] += cross_entropy(logits_CV, target_C, reduction="none").double().sum()
        totals[1] += (logits_CV.argmax(-1) == target_C).sum()
    return totals
