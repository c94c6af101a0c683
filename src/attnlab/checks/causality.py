"""Causality: outputs and gradients depend neither on later tokens nor on the sequence length.

    y_t(x) = y_t(x')  for all x, x' that agree up to t        dy_t / dx_s = 0  for s > t

Shapes: B batch, T tokens, D model width.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from attnlab.checks.result import Finding, by_position, mechanism_property, relative, tolerance
from attnlab.checks.subject import (
    BFLOAT16_EVAL,
    BFLOAT16_TRAIN,
    DROPOUT,
    EVAL,
    FIRST_STEP,
    TRAIN,
    Mode,
    Subject,
)


@mechanism_property(
    "no position sees the future",
    cause="a mask that is off by one or inverted, a mean, norm or softmax over time, or top-k "
    "taken before the mask",
)
@torch.no_grad()
def values(subject: Subject) -> Iterator[Finding]:
    """Change the tokens after a cut; the outputs before it must stay."""
    for mode in _modes(subject):
        mechanism, limit = subject.build(mode), tolerance(subject.dtype_in(mode))
        for batch, tokens in _shapes(subject, mode):
            with subject.at(mode, batch, tokens) as place:
                x_BTD = subject.tokens(batch, tokens, mode)
                other_BTD = subject.tokens(batch, tokens, mode, seed=1)
                y_BTD = subject.forward(mechanism, mode, x_BTD)
                for cut in subject.cuts(tokens):
                    changed_BTD = torch.cat([x_BTD[:, :cut], other_BTD[:, cut:]], 1)
                    again_BTD = subject.forward(mechanism, mode, changed_BTD)
                    off_BTD = relative(again_BTD, y_BTD)[:, :cut]
                    deviation, first = by_position(off_BTD, limit)
                    where = f"position {first} sees tokens from {cut} on ({place})"
                    yield Finding(where, deviation, limit)


@mechanism_property(
    "no gradient reaches the future",
    cause="a path that is masked in value and not in gradient, such as a straight-through "
    "estimator or a statistic over time",
)
def gradients(subject: Subject) -> Iterator[Finding]:
    """Differentiate the outputs before a cut with respect to the inputs after it: must be 0."""
    for mode in (EVAL, TRAIN) if subject.quick else (EVAL, FIRST_STEP, TRAIN, BFLOAT16_TRAIN):
        mechanism, limit = subject.build(mode), tolerance(subject.dtype_in(mode))
        for batch, tokens in _shapes(subject, mode):
            with subject.at(mode, batch, tokens) as place:
                x_BTD = subject.tokens(batch, tokens, mode).requires_grad_()
                weight_BTD = subject.tokens(batch, tokens, mode, seed=1)
                forward = partial(subject.forward, mechanism, mode, x_BTD)
                for cut, by_x_BTD in _input_gradients(
                    forward, x_BTD, weight_BTD, subject.cuts(tokens)
                ):
                    allowed_BTD = torch.cat([by_x_BTD[:, :cut], 0 * x_BTD[:, cut:]], 1)
                    deviation, first = by_position(relative(allowed_BTD, by_x_BTD), limit)
                    where = f"outputs before {cut} have a gradient by token {first} ({place})"
                    yield Finding(where, deviation, limit)


@mechanism_property(
    "a prefix alone gives the same outputs",
    cause="something that depends on the length of the whole sequence: a scale, a position "
    "counted from the end, padding that is not masked",
)
@torch.no_grad()
def prefixes(subject: Subject) -> Iterator[Finding]:
    """Compare a prefix alone with the same tokens of a longer sequence, up to `exact_length`."""
    for mode in (EVAL,) if subject.quick else (EVAL, FIRST_STEP, TRAIN):
        mechanism, limit = subject.build(mode), tolerance(subject.dtype)
        for batch, tokens in subject.shapes:
            tokens = subject.exact(tokens)
            x_BTD = subject.tokens(batch, tokens)
            with subject.at(mode, batch, tokens):
                y_BTD = subject.forward(mechanism, mode, x_BTD)
            for cut in subject.cuts(tokens):
                with subject.at(mode, batch, cut) as place:
                    alone_BTD = subject.forward(mechanism, mode, x_BTD[:, :cut])
                    deviation, first = by_position(relative(alone_BTD, y_BTD[:, :cut]), limit)
                    where = f"position {first} of {tokens} differs ({place})"
                    yield Finding(where, deviation, limit)


def _input_gradients(
    forward: Callable[[], Tensor], x_BTD: Tensor, weight_BTD: Tensor, cuts: Sequence[int]
) -> Iterator[tuple[int, Tensor]]:
    """Yield each cut, and the gradient of the weighted outputs before it with respect to the input.

    Yield none if an output is not finite, which the property of finite values reports.
    """
    y_BTD, reusable = forward().to(x_BTD.dtype), True
    for cut in cuts if y_BTD.isfinite().all() else ():
        try:
            before_cut = (y_BTD * weight_BTD)[:, :cut].sum()
            (by_x_BTD,) = torch.autograd.grad(before_cut, x_BTD, retain_graph=reusable)
        except RuntimeError:
            if not reusable:
                raise
            reusable = False  # the backward pass of a compiled kernel runs only once
            before_cut = (forward().to(x_BTD.dtype) * weight_BTD)[:, :cut].sum()
            (by_x_BTD,) = torch.autograd.grad(before_cut, x_BTD)
        yield cut, by_x_BTD
        if not reusable:
            y_BTD = forward().to(x_BTD.dtype)


def _modes(subject: Subject) -> list[Mode]:
    if subject.quick:
        return [EVAL, TRAIN, BFLOAT16_TRAIN]
    modes = [EVAL, FIRST_STEP, TRAIN, BFLOAT16_EVAL, BFLOAT16_TRAIN]
    return [*modes, DROPOUT] if subject.can_drop() else modes


def _shapes(subject: Subject, mode: Mode) -> list[tuple[int, int]]:
    """Return all shapes in eval mode; in the others the last two, the longest."""
    shapes = [(batch, tokens) for batch, tokens in subject.shapes if tokens > 1]
    return shapes if mode == EVAL else shapes[-2:]
