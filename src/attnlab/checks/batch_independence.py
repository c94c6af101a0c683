"""Independence of the sequences of a batch: in outputs, in gradients and in decoding.

Shapes: B batch, T tokens, D model width.
"""

from collections.abc import Iterator

import torch

from attnlab.checks.causality import beside_others, half_changed
from attnlab.checks.modes import EVAL, FLOAT32_TRAIN, TRAIN, NotJudgedError
from attnlab.checks.result import Finding, by_position, mechanism_property, relative
from attnlab.checks.subject import Subject

EVEN = 64  # tokens, of sequences that a wrong reshape could cut into equal parts


@mechanism_property(
    "one sequence of a batch does not see another",
    cause="a mean, norm or softmax over the batch, batch and heads mixed up in a reshape, or one "
    "decode state for all sequences",
)
def independence(subject: Subject) -> Iterator[Finding]:
    """Compare sequences of a batch with the same alone or beside others, and their gradients."""
    short = subject.short
    trials = [(EVAL, 3, short), (TRAIN, 8, short), (FLOAT32_TRAIN, 16, EVEN)]
    trials += [(FLOAT32_TRAIN, 4, short), (FLOAT32_TRAIN, *subject.whole_batch)]
    if not subject.quick:
        modes = (EVAL, TRAIN, FLOAT32_TRAIN)
        trials += [(mode, batch, short) for mode in modes for batch in (3, 8)]
    for mode, batch, tokens in dict.fromkeys(trials):
        mechanism, limit = subject.build(mode), subject.limit_in(mode)
        with subject.at(mode, batch, tokens) as place:
            x_BTD = subject.tokens(batch, tokens, mode).requires_grad_()
            y_BTD = subject.forward(mechanism, mode, x_BTD)
            weighted_BTD = y_BTD * subject.tokens(batch, tokens, mode, seed=1)
            (by_x_BTD,) = torch.autograd.grad(weighted_BTD[1].sum(), x_BTD)
            with torch.no_grad():
                for row in range(0 if mode.training and subject.is_noisy else 3):
                    alone_1TD = subject.forward(mechanism, mode, x_BTD[row : row + 1])
                    off_1TD = relative(alone_1TD, y_BTD[row : row + 1])
                    deviation, first = by_position(off_1TD, limit)
                    where = f"sequence {row} alone differs at position {first}"
                    yield Finding(where, deviation, limit, place=place)
                own_BTD = torch.zeros_like(by_x_BTD)
                own_BTD[1] = by_x_BTD[1]
                deviation, first = by_position(relative(own_BTD, by_x_BTD), limit)
                where = f"sequence 1 has a gradient by token {first} of another"
                yield Finding(where, deviation, limit, place=place)
    for mode, batch, tokens in beside_others(subject):
        with subject.at(mode, batch, tokens) as place:
            calls, limit = half_changed(subject, mode, batch, tokens), subject.limit_in(mode)
            is_kept_B = torch.tensor(calls.cut_B) == tokens
            off_BTD = relative(calls.again_BTD, calls.y_BTD)[is_kept_B]
            deviation, first = by_position(off_BTD, limit) if is_kept_B.any() else (0.0, 0)
            where = f"a sequence differs at position {first} beside others"
            yield Finding(where, deviation, limit, place=place)


@mechanism_property(
    "one sequence does not see another in decoding",
    cause="a decode state that the sequences share, or that is indexed by the wrong dimension",
)
@torch.no_grad()
def decoding_independence(subject: Subject) -> Iterator[Finding]:
    """Decode one sequence beside different other sequences, with and without a prompt."""
    if not subject.decodes:
        raise NotJudgedError("it has no init_state and step")
    mechanism, limit = subject.built(), subject.limit_in(EVAL)
    for batch, tokens, prompt in ((3, subject.short, 0), (8, 19, 0), (3, 19, 9)):
        more = f", {prompt} of them in the prompt" if prompt else ""
        with subject.at(EVAL, batch, tokens, more) as place:
            other_BTD = subject.tokens(batch, tokens, seed=1)
            other_BTD[1] = subject.tokens(batch, tokens)[1]
            y_1TD = subject.decoded(batch, tokens, prompt)[1:2]
            again_1TD = subject.decode(mechanism, other_BTD, prompt)[1:2]
            deviation, first = by_position(relative(again_1TD, y_1TD), limit)
            yield Finding(f"sequence 1, position {first}", deviation, limit, place=place)
