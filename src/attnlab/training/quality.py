"""The quality of a model on a held-out split, as it is recorded; of a task, that of its answers.

A sequence of a task has its answers in a row of a table, filled up to the largest number of answers
of a sequence. In training, an answer has the weight

    A / mean answers per sequence

and filling has 0, so that the mean over all entries is the loss per answer (`attnlab.data.task`).

Shapes: B batch, N sequences, T tokens, A answers of a sequence, at most, W windows, n predictions,
c of a chunk, D model width, V vocabulary.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from attnlab.data import Examples
from attnlab.device.ranks import Ranks
from attnlab.kernels.cross_entropy import Answers, among
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


def predict(
    model: LanguageModel, x_nD: Tensor, target_n: Tensor, choices: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the loss (nats, float32) and the correctness of predictions from features.

    A prediction is correct if the most likely token is the target: of all tokens, or of the
    target's block of `choices` consecutive ones.
    """
    chunk = max(1, _LOGITS // len(model.head_VD))
    nats, right = list[Tensor](), list[Tensor]()
    for x_cD, target_c in zip(x_nD.split(chunk), target_n.split(chunk), strict=True):
        logits_cV = linear(x_cD, model.head_VD).float()
        if choices is not None:
            logits_cV, target_c = among(logits_cV, target_c, choices)
        nats.append(cross_entropy(logits_cV, target_c, reduction="none"))
        right.append(logits_cV.argmax(-1) == target_c)
    return torch.cat(nats), torch.cat(right)


def by_block(nats_W: NDArray[np.float64], targets_W: NDArray[np.int64]) -> ByBlock:
    """Return the losses of at most `_BLOCKS` runs of windows, as even in number as can be."""
    blocks = min(_BLOCKS, len(nats_W))
    first = np.arange(blocks) * len(nats_W) // blocks
    nats, tokens = np.add.reduceat(nats_W, first), np.add.reduceat(targets_W, first)
    return ByBlock(tuple(tokens.tolist()), tuple((nats / tokens).round(6).tolist()))


class AnswerTable:
    """The answers of all sequences of a split, on a device."""

    def __init__(self, examples: Examples, device: torch.device, *, seq_len: int) -> None:
        """Build the table. Raises ValueError if the sequences have not `seq_len` tokens."""
        if examples.length != seq_len:
            raise ValueError(
                f"the task has sequences of {examples.length} tokens: set train.seq_len="
                f"{examples.length}, or data.length={seq_len}"
            )
        answered_NT = examples.answers_NT >= 0
        self.counts_N = torch.from_numpy(answered_NT.sum(1))
        most = int(self.counts_N.max())
        in_order_NT = np.argsort(~answered_NT, axis=1, kind="stable")  # those with an answer first
        position_NA = torch.from_numpy(in_order_NT[:, :most])
        valid_NA = torch.arange(most) < self.counts_N[:, None]
        target_NA = torch.from_numpy(examples.answers_NT).gather(1, position_NA)
        group_NA = torch.from_numpy(examples.groups_NT).gather(1, position_NA)
        if examples.choices is not None:
            position_NA.fill_(seq_len - 1)
        self.length, self.choices = seq_len, examples.choices
        self.position_NA = position_NA.int().to(device)
        self.target_NA = target_NA.clamp(min=0).to(device)
        self.group_NA = group_NA.to(device)
        self.valid_NA = valid_NA.to(device)
        self.share = most / self.counts_N.double().mean().item()
        self.uniform = bool(valid_NA.all())

    def at(self, starts_B: Tensor) -> Answers:
        """Return the answers of the sequences that begin at these tokens of the split."""
        return self.of(torch.div(starts_B, self.length + 1, rounding_mode="floor"))

    def of(self, rows_B: Tensor) -> Answers:
        """Return the answers of some sequences."""
        weight_BA = None if self.uniform else self.valid_NA[rows_B].float() * self.share
        position_BA, target_BA = self.position_NA[rows_B].long(), self.target_NA[rows_B].long()
        return Answers(position_BA, target_BA, weight_BA, self.choices)


class HeldOutAnswers:
    """The sequences of a task in batches, on a device.

    With `one_shape`, all batches have the same number of rows: the last one repeats its last row.
    """

    def __init__(
        self,
        examples: Examples,
        *,
        batch_size: int,
        device: torch.device,
        one_shape: bool,
        ranks: Ranks,
    ) -> None:
        self.examples, self.ranks = examples, ranks
        self.table = AnswerTable(examples, device, seq_len=examples.length)
        tokens_NT = torch.from_numpy(examples.tokens_NT).to(device)
        n = len(tokens_NT)
        rows = min(batch_size, n)
        rows_N = torch.arange(n, device=device)
        more = rows_N[-1:].expand(-n % rows if one_shape else 0)
        self.rows = torch.cat([rows_N, more]).split(rows)
        self.tokens = [tokens_NT[rows_B].long() for rows_B in self.rows]

    @torch.no_grad()
    def try_one_batch(self, model: LanguageModel, context: Any) -> None:
        """Score one batch and discard the result. Raises the model's error at this length."""
        training = model.training
        model.eval()
        with context:
            _score(model, self.tokens[0], self.table.of(self.rows[0]))
        model.train(training)

    @torch.no_grad()
    def quality(self, model: LanguageModel, context: Any) -> Quality:
        """Score all answers in eval mode under the autocast `context`. Waits for the device."""
        training = model.training
        model.eval()
        table, n = self.table, len(self.examples.tokens_NT)
        answers = [table.of(rows_B) for rows_B in self.rows]
        calls = [
            partial(_score, model, tokens_BT, of)
            for tokens_BT, of in zip(self.tokens, answers, strict=True)
        ]
        with context:
            scored = list(self.ranks.shared_out(calls, [of.target_BA.shape for of in answers]))
        model.train(training)
        nats_NA = torch.cat([nats_BA for nats_BA, _ in scored])[:n].double() * table.valid_NA
        right_NA = torch.cat([right_BA for _, right_BA in scored])[:n] & table.valid_NA
        sums = [nats_NA.sum(1)]
        for group in range(len(self.examples.groups)):
            of_NA = table.valid_NA & (table.group_NA == group)
            of_group = (nats_NA * of_NA).sum(), (right_NA & of_NA).sum(), of_NA.sum()
            sums.append(torch.stack([each.double() for each in of_group]))
        found = torch.cat(sums).cpu().numpy()
        nats_N, counts_N = found[:n], table.counts_N.numpy()
        of_groups = zip(self.examples.groups, found[n:].reshape(-1, 3).tolist(), strict=True)
        return Quality(
            loss=float(nats_N.sum() / counts_N.sum()),
            accuracy=float(found[n + 1 :: 3].sum() / counts_N.sum()),
            bits_per_byte=None,
            by_block=by_block(nats_N, counts_N),
            by_group={
                name: {"accuracy": right / count, "loss": nats / count, "answers": int(count)}
                for name, (nats, right, count) in of_groups
                if count
            },
        )


def _score(model: LanguageModel, tokens_BT: Tensor, answers: Answers) -> tuple[Tensor, ...]:
    """Return the loss and the correctness of the answers, shape (B, A)."""
    x_BAD = model.features(tokens_BT).take_along_dim(answers.position_BA[:, :, None], 1)
    found = predict(model, x_BAD.flatten(0, 1), answers.target_BA.flatten(), answers.choices)
    return tuple(each.view_as(answers.target_BA) for each in found)
