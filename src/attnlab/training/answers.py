"""Answers of a task: those of each batch in training, and their loss and accuracy on a split.

A sequence has its answers in a row of a table, filled up to the largest number of answers of a
sequence. In training, an answer has the weight

    A / mean answers per sequence

and filling has 0, so that the mean over all entries is the loss per answer (`attnlab.data.task`).

Shapes: B batch, N sequences, T tokens, A answers of a sequence, at most.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnlab.data import Examples
from attnlab.device.ranks import Ranks
from attnlab.kernels.cross_entropy import Answers
from attnlab.model.language_model import LanguageModel
from attnlab.training.quality import Quality, by_block, predict


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
        self.length = seq_len
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
        return Answers(self.position_NA[rows_B].long(), self.target_NA[rows_B].long(), weight_BA)


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
    found = predict(model, x_BAD.flatten(0, 1), answers.target_BA.flatten())
    return tuple(each.view_as(answers.target_BA) for each in found)
