"""Outputs have the right shape and finite numbers, and every parameter has a gradient.

Shapes: B batch, T tokens, D model width.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from attnlab.checks.result import Finding, mechanism_property
from attnlab.checks.subject import (
    BFLOAT16_EVAL,
    BFLOAT16_TRAIN,
    EVAL,
    FIRST_STEP,
    TRAIN,
    Mode,
    Subject,
)
from attnlab.mechanism import Mechanism


@mechanism_property(
    "output is finite, with the shape and dtype of the input",
    cause="a `squeeze` or `view` that takes a length or batch of 1 for something else, or a "
    "constant of a fixed dtype",
)
@torch.no_grad()
def shapes(subject: Subject) -> Iterator[Finding]:
    """Run many lengths, with batch sizes 1 and 3."""
    mechanism = subject.build()
    for tokens in subject.lengths:
        for batch in (1, 3):
            with subject.at(EVAL, batch, tokens) as place:
                x_BTD = subject.tokens(batch, tokens)
                y_BTD = subject.forward(mechanism, EVAL, x_BTD)
                words = f"{tuple(y_BTD.shape)} of {y_BTD.dtype}"
                is_alike = y_BTD.shape == x_BTD.shape and y_BTD.dtype == x_BTD.dtype
                yield Finding(place, 0.0 if is_alike else math.inf, words="" if is_alike else words)
                yield _finite(place, y_BTD)


@mechanism_property(
    "every parameter is trained",
    cause="a parameter that nothing reads, a `detach` too many, or a factor that is always zero",
)
def trained(subject: Subject) -> Iterator[Finding]:
    """Require finite gradients in both phases of training, and a nonzero one in at least one."""
    reached, left = set[str](), list[str]()
    for mode in (FIRST_STEP, TRAIN):
        mechanism = subject.build(mode)
        with subject.at(mode, 3, subject.past) as place:
            _backward(subject, mode, subject.tokens(3, subject.past), mechanism)
        for name, parameter in mechanism.named_parameters():
            if parameter.grad is not None and not parameter.grad.isfinite().all():
                yield Finding(f"{name} ({place})", math.inf, words="gradient is not finite")
            elif parameter.grad is not None and parameter.grad.any():
                reached.add(name)
        left = [name for name, _ in mechanism.named_parameters() if name not in reached]
    for name in left:
        words = f"no gradient, or zero: {', '.join(left)}"
        yield Finding(name, math.inf, words=words)


@mechanism_property(
    "values and gradients are finite in bfloat16",
    cause="an infinity minus an infinity, a logarithm or division of what rounds to zero in "
    "bfloat16, or dtypes that do not match under autocast",
)
def finite(subject: Subject) -> Iterator[Finding]:
    """Train one step under autocast, and decode after a prompt."""
    for tokens in (1, subject.past):
        mechanism = subject.build(BFLOAT16_TRAIN)
        with subject.at(BFLOAT16_TRAIN, 3, tokens) as place:
            x_BTD = subject.tokens(3, tokens, BFLOAT16_TRAIN).requires_grad_()
            y_BTD = _backward(subject, BFLOAT16_TRAIN, x_BTD, mechanism)
        yield _finite(f"output ({place})", y_BTD)
        yield _finite(f"gradient of the input ({place})", x_BTD.grad)
        for name, parameter in mechanism.named_parameters():
            yield _finite(f"gradient of {name} ({place})", parameter.grad)

        decoder, prompt = subject.build(BFLOAT16_EVAL), tokens // 2
        with (
            torch.no_grad(),
            subject.at(BFLOAT16_EVAL, 3, tokens, f", {prompt} of them in the prompt") as place,
        ):
            y_BTD = subject.decode(decoder, x_BTD.detach(), prompt, BFLOAT16_EVAL)
        yield _finite(f"decoding ({place})", y_BTD)


def _backward(subject: Subject, mode: Mode, x_BTD: Tensor, mechanism: Mechanism[Any]) -> Tensor:
    y_BTD, loss = subject.forward_with_loss(mechanism, mode, x_BTD)
    weight_BTD = subject.tokens(x_BTD.shape[0], x_BTD.shape[1], mode, seed=1)
    total = (y_BTD.to(weight_BTD.dtype) * weight_BTD).mean()
    (total if loss is None else total + loss).backward()
    return y_BTD


def _finite(where: str, x: Tensor | None) -> Finding:
    wrong = 0 if x is None else int((~x.isfinite()).sum())
    total = 0 if x is None else x.numel()
    words = f"{wrong} of {total} numbers are not finite" if wrong else ""
    return Finding(where, math.inf if wrong else 0.0, words=words)
