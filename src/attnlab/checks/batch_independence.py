"""Independence of the sequences of a batch: in outputs, in gradients and in decoding.

Shapes: B batch, T tokens, D model width.
"""

from collections.abc import Iterator

import torch

from attnlab.checks.result import Finding, by_position, mechanism_property, relative, tolerance
from attnlab.checks.subject import EVAL, TRAIN, Subject


@mechanism_property(
    "one sequence of a batch does not see another",
    cause="a mean, norm or softmax over the batch, batch and heads mixed up in a reshape, or one "
    "decode state for all sequences",
)
def independence(subject: Subject) -> Iterator[Finding]:
    """Compare each sequence of a batch with the same sequence alone, and gradients across rows."""
    tokens, limit = subject.past, tolerance(subject.dtype)
    for mode in (EVAL, TRAIN):
        mechanism = subject.build(mode)
        with subject.at(mode, 3, tokens) as place:
            x_BTD = subject.tokens(3, tokens).requires_grad_()
            y_BTD = subject.forward(mechanism, mode, x_BTD)
            weighted_BTD = y_BTD * subject.tokens(3, tokens, seed=1)
            (by_x_BTD,) = torch.autograd.grad(weighted_BTD[1].sum(), x_BTD)
            with torch.no_grad():
                for row in range(3):
                    alone_1TD = subject.forward(mechanism, mode, x_BTD[row : row + 1])
                    off_1TD = relative(alone_1TD, y_BTD[row : row + 1])
                    deviation, first = by_position(off_1TD, limit)
                    where = f"sequence {row} alone differs at position {first} ({place})"
                    yield Finding(where, deviation, limit)
                own_BTD = torch.zeros_like(by_x_BTD)
                own_BTD[1] = by_x_BTD[1]
                deviation, first = by_position(relative(own_BTD, by_x_BTD), limit)
                where = f"sequence 1 has a gradient by token {first} of another ({place})"
                yield Finding(where, deviation, limit)


@mechanism_property(
    "one sequence does not see another in decoding",
    cause="a decode state that the sequences share, or that is indexed by the wrong dimension",
)
@torch.no_grad()
def decoding_independence(subject: Subject) -> Iterator[Finding]:
    """Decode one sequence beside different other sequences, with and without a prompt."""
    mechanism, limit = subject.build(), tolerance(subject.dtype)
    tokens = min(subject.past, 37)
    for prompt in (0, tokens // 2):
        more = f", {prompt} of them in the prompt" if prompt else ""
        with subject.at(EVAL, 3, tokens, more) as place:
            x_BTD = subject.tokens(3, tokens)
            other_BTD = subject.tokens(3, tokens, seed=1)
            other_BTD[1] = x_BTD[1]
            y_1TD = subject.decode(mechanism, x_BTD, prompt)[1:2]
            again_1TD = subject.decode(mechanism, other_BTD, prompt)[1:2]
            deviation, first = by_position(relative(again_1TD, y_1TD), limit)
            yield Finding(f"sequence 1, position {first} ({place})", deviation, limit)
