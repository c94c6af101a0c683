"""Evaluation: the loss of a model on a held-out split, in total, by position and by recall.

Every token of the split but the first is predicted exactly once, from the earlier tokens of its
window. The last window ends with the split and overlaps the one before; only its new tokens count.

The mean loss hides what the mechanism contributes (Arora et al. 2023, Zoology, arXiv:2312.04927).
The loss by position in the window shows it, and the loss on recall tokens. A recall token is one
that already followed the same token earlier in the window, so that a model can copy it.

Of a task (`attnlab.data.task`), the answers count and nothing else, in total and by group.

Shapes: B batch, T tokens, C counted targets of a row, N counted targets of a batch, W windows, P
position bins, V vocabulary, D model width.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attnlab.data import Corpus
from attnlab.data.batches import evaluation_starts
from attnlab.device.ranks import Ranks
from attnlab.model.language_model import LanguageModel
from attnlab.training.config import EvalConfig, TrainConfig
from attnlab.training.quality import ByBlock, ByPosition, HeldOutAnswers, Quality, by_block, predict


class _Batch(NamedTuple):
    tokens_BT1: Tensor  # may have more rows than are counted
    recall_BC: Tensor  # True: recall token; of the counted rows, the last C targets


class HeldOut:
    """One split in windows of `seq_len` tokens, on a device.

    Several processes (`ranks`) share the batches, and each has the whole result.

    With `one_shape`, the default on CUDA, all batches have the same number of rows; too short ones
    repeat their last row. Kernels are compiled for each shape, which takes longer than extra rows.
    """

    def __init__(
        self,
        corpus: Corpus,
        split: str,
        *,
        seq_len: int,
        batch_size: int,
        device: torch.device,
        one_shape: bool | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = ranks or Ranks.alone(device)
        self.corpus, self.split, self.device = corpus, split, device
        tokens = torch.from_numpy(corpus.splits()[split].astype("int32")).to(device)
        windows = evaluation_starts(len(tokens), seq_len)
        offset_T1 = torch.arange(windows.length + 1)
        rows = min(batch_size, len(windows.starts))
        one_shape = device.type == "cuda" if one_shape is None else one_shape
        self.batches = list[_Batch]()
        self.targets_T = np.zeros(windows.length, np.int64)  # counted targets by position
        # all windows count all their targets, but for the last, which comes second
        for counted in np.unique(windows.new_targets)[::-1].tolist():
            starts = torch.from_numpy(windows.starts[windows.new_targets == counted])
            self.targets_T[-counted:] += len(starts)
            for start_B in starts.split(batch_size):
                missing = rows - len(start_B) if one_shape else 0
                read_B = torch.cat([start_B, start_B[-1:].expand(missing)])
                tokens_BT1 = tokens[(read_B[:, None] + offset_T1).to(device)].long()
                recall_BC = repeated_bigrams(tokens_BT1)[: len(start_B), -counted:]
                self.batches.append(_Batch(tokens_BT1, recall_BC))
        self.recalls = int(torch.stack([batch.recall_BC.sum() for batch in self.batches]).sum())

    @torch.no_grad()
    def try_one_batch(self, model: LanguageModel, context: Any) -> None:
        """Score one batch and discard the result. Raises the model's error at this length."""
        tokens_BT1 = self.batches[0].tokens_BT1
        training = model.training
        model.eval()
        with context:
            score(model, tokens_BT1[:, :-1], tokens_BT1[:, 1:])
        model.train(training)

    @torch.no_grad()
    def quality(self, model: LanguageModel, context: Any) -> Quality:
        """Score the split in eval mode under the autocast `context`. Waits for the device once."""
        training = model.training
        model.eval()
        nats_T = torch.zeros(len(self.targets_T), dtype=torch.float64, device=self.device)
        recall_nats, right = nats_T.new_zeros(1), nats_T.new_zeros(1)
        nats_W, targets_W = list[Tensor](), list[int]()  # by window
        with context:
            for recall_BC, scored in self._scored(model):
                rows, counted = recall_BC.shape
                nats_BC, right_BC = (each_BC[:rows] for each_BC in scored)
                nats_T[-counted:] += nats_BC.double().sum(0)
                nats_W.append(nats_BC.double().sum(1))
                targets_W += [counted] * rows
                recall_nats += (nats_BC.double() * recall_BC).sum()
                right += right_BC.sum()
        model.train(training)
        totals = torch.cat([recall_nats, right, nats_T, *nats_W]).cpu().numpy()
        nats_T, nats_W = np.split(totals[2:], [len(nats_T)])
        blocks = by_block(nats_W, np.array(targets_W))
        return self._quality(nats_T, blocks, float(totals[0]), float(totals[1]))

    def _scored(self, model: LanguageModel) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
        """Yield for each batch its recall tokens, and the `score` of all its rows."""
        targets = [batch.tokens_BT1[:, -batch.recall_BC.shape[1] :] for batch in self.batches]
        calls = [
            partial(score, model, batch.tokens_BT1[:, :-1], target_BC)
            for batch, target_BC in zip(self.batches, targets, strict=True)
        ]
        scored = self.ranks.shared_out(calls, [target_BC.shape for target_BC in targets])
        return zip((batch.recall_BC for batch in self.batches), scored, strict=True)

    def _quality(
        self, nats_T: NDArray[np.float64], blocks: ByBlock, recall_nats: float, right: float
    ) -> Quality:
        nats, targets = float(nats_T.sum()), int(self.targets_T.sum())
        loss, others = nats / targets, targets - self.recalls
        first_P = bins(len(nats_T))
        loss_P = np.add.reduceat(nats_T, first_P) / np.add.reduceat(self.targets_T, first_P)
        return Quality(
            loss=loss,
            accuracy=right / targets,
            bits_per_byte=self.corpus.bits_per_byte(self.split, loss),
            by_position=ByPosition(first_P, tuple(loss_P.tolist())),
            by_block=blocks,
            recall_loss=recall_nats / self.recalls if self.recalls else None,
            other_loss=(nats - recall_nats) / others if others else None,
            recall_fraction=self.recalls / targets,
        )


Measured: TypeAlias = HeldOut | HeldOutAnswers


def held_out(
    corpus: Corpus,
    split: str,
    *,
    seq_len: int,
    batch_size: int,
    device: torch.device,
    ranks: Ranks | None = None,
) -> Measured:
    """Return a split of a text in windows of `seq_len` tokens, or of a task.

    The validation split of a task has sequences of any length; those of others have their own.
    """
    if corpus.examples is None:
        return HeldOut(
            corpus, split, seq_len=seq_len, batch_size=batch_size, device=device, ranks=ranks
        )
    examples = corpus.examples[split]
    if seq_len != examples.length:
        assert split == "valid"
        assert corpus.at_length is not None
        examples = corpus.at_length(seq_len)
    return HeldOutAnswers(
        examples,
        batch_size=batch_size,
        device=device,
        one_shape=device.type == "cuda",
        ranks=ranks or Ranks.alone(device),
    )


class Splits:
    """The held-out splits of a run, in windows of the length of training and of other lengths."""

    def __init__(
        self, train: TrainConfig, measured: EvalConfig, corpus: Corpus, ranks: Ranks
    ) -> None:
        self.train, self.lengths = train, measured.lengths or ()
        self.corpus, self.ranks = corpus, ranks

    def held_out(self, split: Literal["valid", "test"], length: int | None = None) -> Measured:
        """Return a split in windows of `length` tokens, by default that of training.

        A batch has no more tokens than in training's evaluation.
        """
        length = length or self.train.seq_len
        tokens = self.train.eval_batch_size * self.train.seq_len
        return held_out(
            self.corpus,
            split,
            seq_len=length,
            batch_size=max(1, tokens // length),
            device=self.ranks.device,
            ranks=self.ranks,
        )

    def try_longest_window(self, model: LanguageModel, context: Any) -> None:
        """Raise RuntimeError before training if `eval.lengths` cannot be measured."""
        if not self.lengths:
            return
        longest = self.lengths[-1]
        try:
            self.held_out("valid", longest).try_one_batch(model, context)
        except (RuntimeError, ValueError) as error:
            raise RuntimeError(f"eval.lengths: at {longest} tokens: {error}") from error

    def by_length(self, model: LanguageModel, context: Any, quality: Quality) -> dict[str, Any]:
        """Return the losses at `eval.lengths`; `quality` is that at the length of training."""
        if not self.lengths:
            return {}
        found = dict[str, Any]()
        for length in self.lengths:
            at_length = quality
            if length != self.train.seq_len:
                at_length = self.held_out("valid", length).quality(model, context)
            found[str(length)] = at_length.without_prefix()
        return {"final_by_length": found}


def score(model: LanguageModel, tokens_BT: Tensor, target_BC: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss (nats, float32) and the correctness of the last C positions, shape (B, C).

    A prediction is correct if the most likely token is the target.
    """
    features_BCD = model.features(tokens_BT)[:, -target_BC.shape[1] :]
    nats, right = predict(model, features_BCD.flatten(0, 1), target_BC.flatten())
    return nats.view_as(target_BC), right.view_as(target_BC)


def repeated_bigrams(tokens_BT1: Tensor) -> Tensor:
    """Return a mask of shape (B, T): True where a target followed the same token earlier.

    >>> repeated_bigrams(torch.tensor([[7, 8, 7, 8, 8, 8]])).tolist()
    [[False, False, True, False, True]]
    """
    pair_BT = tokens_BT1[:, :-1] << 32 | tokens_BT1[:, 1:]
    sorted_BT, order_BT = pair_BT.sort(dim=1, stable=True)
    again_BT = torch.zeros_like(pair_BT, dtype=torch.bool)
    again_BT[:, 1:] = sorted_BT[:, 1:] == sorted_BT[:, :-1]
    return torch.zeros_like(again_BT).scatter(1, order_BT, again_BT)


def bins(length: int) -> tuple[int, ...]:
    """Return the first position of each bin: width 1 up to position 8, then 4 bins per octave.

    >>> bins(40)
    (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32)
    """
    first, width, found = 0, 1, list[int]()
    while first < length:
        found.append(first)
        first += width
        if first == 8 * width:
            width *= 2
    return tuple(found)
