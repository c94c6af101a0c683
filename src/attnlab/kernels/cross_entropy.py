"""Cross-entropy of the output projection, without the logits of the whole batch in float32.

    loss = mean_n ( logsumexp_v(x_n . w_v) - x_n . w_target(n) )

The gradient of the logits, softmax minus one-hot, needs nothing but the logits. It is computed in
the forward pass, in chunks of tokens, and only the gradients of `x` and `w` are kept. Matrix
products run in the dtype of autocast, the rest in float32. The vocabulary is padded with zeros to a
width at which matrix products are fast: a padded logit is zero, and so is its gradient. On CUDA the
elementwise part is one compiled kernel.

Of a task, the answers alone have a loss, and nothing is computed elsewhere. An answer may be one of
a block of consecutive ids, over which alone its softmax then is.

Shapes: B batch, T positions, A answers of a sequence, at most; N tokens, C tokens per chunk, D
model width, V vocabulary, P padded vocabulary; B blocks of C choices.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, pad

from attnlab.kernels.compiled import compile_once

CHUNK = 8192  # tokens per chunk: 0.8 GB of bfloat16 logits at a vocabulary of 50,257
ALIGNED = 64  # matrix products are fast for widths divisible by it


class Answers(NamedTuple):
    """The predictions that count, in sequences of a task."""

    position_BA: Tensor  # after which token
    target_BA: Tensor  # the token to predict
    weight_BA: Tensor | None  # of the loss: 0 where a sequence has fewer answers; None: all 1
    choices: int | None = None  # an answer is among its block of so many ids; None: among all

    def split(self, rows: int) -> "list[Answers]":
        """Return the answers of every so many sequences."""
        position, target = self.position_BA.split(rows), self.target_BA.split(rows)
        weight = [None] * len(target) if self.weight_BA is None else self.weight_BA.split(rows)
        parts = zip(position, target, weight, strict=True)
        return [Answers(*part, choices=self.choices) for part in parts]


def mean_loss(
    x_BTD: Tensor, weight_VD: Tensor, tokens_BT1: Tensor, answers: Answers | None = None
) -> Tensor:
    """Return the mean loss of the next tokens, or of the answers, in nats per prediction."""
    if answers is None:
        return linear_cross_entropy(x_BTD.flatten(0, 1), weight_VD, tokens_BT1[:, 1:].flatten())
    x_BAD = x_BTD.take_along_dim(answers.position_BA[:, :, None], 1)
    weight_BA = answers.weight_BA
    if answers.choices is not None:
        logits_NV, target_N = linear(x_BAD.flatten(0, 1), weight_VD), answers.target_BA.flatten()
        loss_N = cross_entropy(*among(logits_NV, target_N, answers.choices), reduction="none")
        return (loss_N if weight_BA is None else loss_N * weight_BA.flatten()).mean()
    return linear_cross_entropy(
        x_BAD.flatten(0, 1),
        weight_VD,
        answers.target_BA.flatten(),
        weight_N=None if weight_BA is None else weight_BA.flatten(),
    )


def among(logits_NV: Tensor, target_N: Tensor, choices: int) -> tuple[Tensor, Tensor]:
    """Return the logits of the target's block of ids, in float32 or wider, and its place there."""
    blocks = logits_NV.shape[1] // choices
    logits_NBC = logits_NV[:, : blocks * choices].unflatten(1, (blocks, choices))
    logits_NC = logits_NBC.take_along_dim((target_N // choices)[:, None, None], 1)[:, 0]
    wide = torch.promote_types(logits_NC.dtype, torch.float32)
    return logits_NC.to(wide), target_N % choices


def definition(x_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
    """Return the mean loss by the definition, which `linear_cross_entropy` is tested against."""
    return cross_entropy((x_ND @ weight_VD.mT).float(), target_N)


def linear_cross_entropy(
    x_ND: Tensor,
    weight_VD: Tensor,
    target_N: Tensor,
    chunk: int = CHUNK,
    weight_N: Tensor | None = None,
) -> Tensor:
    """Return the cross-entropy of `x @ weight.T` in nats/token, in float32 or wider.

    It is the mean over the tokens of loss times `weight_N`, by default 1.
    """
    return _LinearCrossEntropy.apply(x_ND, weight_VD, target_N, chunk, weight_N)  # pyright: ignore[reportReturnType]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        weight_VD: Tensor,
        target_N: Tensor,
        chunk: int,
        weight_N: Tensor | None,
    ) -> Tensor:
        device = x_ND.device.type
        dtype = (
            torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_ND.dtype
        )
        with torch.autocast(device, enabled=False):
            vocab = len(weight_VD)
            low_PD = pad(weight_VD.to(dtype), (0, 0, 0, -vocab % ALIGNED))
            differentiate = (
                compile_once(_fusible, dynamic=False) if device == "cuda" else _as_written
            )
            losses, dx_chunks = list[Tensor](), list[Tensor]()
            dweight_VD = torch.zeros_like(weight_VD)
            weights = [None] * len(target_N) if weight_N is None else weight_N.split(chunk)
            for x_CD, target_C, weight_C in zip(
                x_ND.to(dtype).split(chunk), target_N.split(chunk), weights, strict=False
            ):
                logits_CP = x_CD @ low_PD.mT
                losses.append(differentiate(logits_CP[:, :vocab], target_C))
                if weight_C is not None:
                    losses[-1] = losses[-1] * weight_C
                    logits_CP *= weight_C[:, None]
                dx_chunks.append(logits_CP @ low_PD)
                dweight_VD += (logits_CP.mT @ x_CD)[:vocab]
            ctx.save_for_backward(torch.cat(dx_chunks), dweight_VD)
            ctx.x_dtype, ctx.tokens = x_ND.dtype, len(target_N)
            return torch.cat(losses).mean()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, Tensor, None, None, None]:
        dx_ND, dweight_VD = ctx.saved_tensors
        scale = grad_outputs[0] / ctx.tokens
        return (dx_ND * scale).to(ctx.x_dtype), dweight_VD * scale, None, None, None


def _as_written(logits_CV: Tensor, target_C: Tensor) -> Tensor:
    """Return the loss of each token, and overwrite the logits with the gradient of their sum."""
    wide_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
    log_p_CV = wide_CV.log_softmax(-1)
    loss_C = -log_p_CV.gather(1, target_C[:, None])[:, 0]
    gradient_CV = log_p_CV.exp_()
    gradient_CV.scatter_add_(1, target_C[:, None], gradient_CV.new_full((len(target_C), 1), -1.0))
    logits_CV.copy_(gradient_CV)
    return loss_C


def _fusible(logits_CV: Tensor, target_C: Tensor) -> Tensor:
    """Do the same as one kernel per row: a reduction, and a pass over what it has just read.

    The target's logit is a masked sum: a compiler does not overwrite in the same kernel what a
    gather reads.
    """
    wide_CV = logits_CV.float()
    is_target_CV = torch.arange(wide_CV.shape[1], device=wide_CV.device) == target_C[:, None]
    log_total_C = wide_CV.logsumexp(-1)
    loss_C = log_total_C - torch.where(is_target_CV, wide_CV, 0.0).sum(-1)
    logits_CV.copy_((wide_CV - log_total_C[:, None]).exp() - is_target_CV.float())
    return loss_C
