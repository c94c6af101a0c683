"""The quality of a model on a held-out split, as it is recorded.

Shapes: W windows, n predictions, c of a chunk, D model width, V vocabulary.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from attnlab.model.language_model import LanguageModel

_BLOCKS = 256  # of a split, in a summary
_LOGITS = 1 << 26  # largest number of logits in memory: 256 MiB in float32


class ByPosition(NamedTuple):
    """Loss by position in the window, in bins; position 0 is predicted from one token."""

    first: tuple[int, ...]  # first position of each bin
    loss: tuple[float, ...]  # nats/token


class ByBlock(NamedTuple):
    """Loss by block of consecutive windows of the split, in the order of the text."""

    tokens: tuple[int, ...]  # predicted in each block
    loss: tuple[float, ...]  # nats/token


class Quality(NamedTuple):
    """The quality of a model on a split; of a task, that of its answers."""

    loss: float  # nats/token
    accuracy: float  # fraction of tokens that were the most likely prediction
    bits_per_byte: float | None  # None: the number of bytes of the text is unknown
    by_block: ByBlock
    by_position: ByPosition | None = None  # None: a task
    recall_loss: float | None = None  # nats/token over the recall tokens; None: there are none
    other_loss: float | None = None  # nats/token over the other tokens; None: there are none
    recall_fraction: float | None = None  # recall tokens / predicted tokens; None: a task
    by_group: Mapping[str, Mapping[str, float]] | None = None  # None: a text

    @property
    def perplexity(self) -> float:
        """e to the power of the loss."""
        return math.exp(min(self.loss, 700.0))

    def mean(self, prefix: str) -> dict[str, float | None]:
        """Return the means over all tokens, for metrics: `{"eval_loss": 5.1, ...}`."""
        return {
            f"{prefix}_loss": self.loss,
            f"{prefix}_perplexity": self.perplexity,
            f"{prefix}_accuracy": self.accuracy,
            f"{prefix}_bits_per_byte": self.bits_per_byte,
        }

    def detailed(self, prefix: str) -> dict[str, Any]:
        """Return all numbers, for a summary."""
        if self.by_position is None:
            return {
                **self.mean(prefix),
                f"{prefix}_loss_by_block": self.by_block._asdict(),
                f"{prefix}_by_group": self.by_group,
            }
        return {
            **self.mean(prefix),
            f"{prefix}_loss_by_position": self.by_position._asdict(),
            f"{prefix}_loss_by_block": self.by_block._asdict(),
            f"{prefix}_recall_loss": self.recall_loss,
            f"{prefix}_other_loss": self.other_loss,
            f"{prefix}_recall_fraction": self.recall_fraction,
        }

    def without_prefix(self) -> dict[str, Any]:
        """Return all numbers but those by block, for one length of `final_by_length`."""
        found = self.detailed("final")
        del found["final_loss_by_block"]
        return {key.removeprefix("final_"): it for key, it in found.items()}


def predict(model: LanguageModel, x_nD: Tensor, target_n: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss (nats, float32) and the correctness of predictions from features.

    A prediction is correct if the most likely token is the target.
    """
    chunk = max(1, _LOGITS // model.embed.weight.shape[0])
    nats, right = list[Tensor](), list[Tensor]()
    for x_cD, target_c in zip(x_nD.split(chunk), target_n.split(chunk), strict=True):
        logits_cV = linear(x_cD, model.embed.weight).float()
        nats.append(cross_entropy(logits_cV, target_c, reduction="none"))
        right.append(logits_cV.argmax(-1) == target_c)
    return torch.cat(nats), torch.cat(right)


def by_block(nats_W: NDArray[np.float64], targets_W: NDArray[np.int64]) -> ByBlock:
    """Return the losses of at most `_BLOCKS` runs of windows, as even in number as can be."""
    blocks = min(_BLOCKS, len(nats_W))
    first = np.arange(blocks) * len(nats_W) // blocks
    nats, tokens = np.add.reduceat(nats_W, first), np.add.reduceat(targets_W, first)
    return ByBlock(tuple(tokens.tolist()), tuple((nats / tokens).round(6).tolist()))
