"""Decoding equals `forward`: from an empty state, and after a prompt of any length.

Sequences are longer than the window or top-k, where a ring buffer overwrites its oldest token.
Numbers are float64: in float32 a sparse mechanism may choose either of two tokens with nearly equal
scores, and both would be right. In bfloat16 nine of ten positions must agree for the same reason,
and the error of decoding must be about as small as that of the forward pass. A mechanism that is
exact up to a stated length only (`MechanismConfig.exact_length`) is checked up to that length.

Shapes: B batch, T tokens, D model width.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from attnlab.checks.modes import BFLOAT16_EVAL, DROPOUT, EVAL, FLOAT32_EVAL, NotJudgedError, Place
from attnlab.checks.result import (
    Finding,
    by_position,
    errors,
    mechanism_property,
    of_rounded,
    relative,
)
from attnlab.checks.small_configs import FAR, FEW, HUGE, LONG, PAST_256
from attnlab.checks.subject import Subject
from attnlab.inference.decoder import others, tensors
from attnlab.mechanism import Mechanism

AFTER_PROMPT = 12  # tokens decoded after each prompt
AFTER_LONG_PROMPT = 50
ALIKE = 5  # tokens with which sequences begin that have the same first ones
# tokens of a prompt, of the whole sequence, and that the state has room for
CHUNKED_PROMPTS = ((60, 75, 75), (100, 112, 128), (128, 140, 256), (192, 260, 512))
ACROSS_512 = 505, 519  # tokens of a prompt, and of the whole sequence
IN_TURNS = ((3, 23), (2, 19), (2, 19), (2, 14))  # (batch size, length) of states, ever smaller
DECODE = "init_state", "step"  # methods that decoding needs
MOST_DISAGREE = 0.1  # fraction of positions, in float32 and bfloat16
MOST_TIMES = 4  # the error of decoding over that of the forward pass, in bfloat16


@mechanism_property(
    "step by step equals all at once",
    cause="a cache that drops, repeats or overwrites a token, a rotary position that is off, or a "
    "ring buffer that is one slot too short",
)
@torch.no_grad()
def steps(subject: Subject) -> Iterator[Finding]:
    """Decode a whole sequence from an empty state."""
    _require_decoding(subject)
    limit = subject.limit_in(EVAL)
    trials = [(3, 1), (1, 7), (8, 19), (64, FEW), (3, subject.short)]
    if not subject.quick:
        trials += [(1, 1), (1, 139), (3, subject.past)]
    for batch, tokens in trials:
        tokens, note = subject.exact(tokens) if tokens > 1 else (tokens, "")
        with subject.at(EVAL, batch, tokens) as place:
            y_BTD = subject.output(EVAL, batch, tokens)
            yield _compared(subject.decoded(batch, tokens), y_BTD, limit, place, note)
    if subject.precision != torch.float64:
        return  # large inputs make roundings large
    tokens, note = subject.exact(FEW)
    with subject.at(EVAL, 8, tokens, f", every third token times {HUGE:g}") as place:
        x_BTD, mechanism = subject.tokens(8, tokens), subject.built()
        x_BTD[:, ::3] *= HUGE
        y_BTD = subject.forward(mechanism, EVAL, x_BTD)
        yield _compared(subject.decode(mechanism, x_BTD), y_BTD, limit, place, note)


@mechanism_property(
    "decoding keeps shapes and dtypes",
    cause="a dimension that a step keeps or drops, a result in the dtype of the state, or a state "
    "that grows: it is made for `capacity` tokens and written at the same address",
)
@torch.no_grad()
def shapes(subject: Subject) -> Iterator[Finding]:
    """Read a prompt and a few tokens: outputs are as those of `forward`, the state as it was."""
    cls = type(subject.built())
    own = [name for name in DECODE if getattr(cls, name) is not getattr(Mechanism, name)]
    if len(own) == 1:
        words = f"`{own[0]}` is defined alone: decoding needs `init_state` and `step`"
        yield Finding("", math.inf, words=words)
    _require_decoding(subject)
    for mode in (EVAL, BFLOAT16_EVAL):
        tokens = 19 if mode == EVAL else 4
        mechanism, x_BTD = subject.built(mode), subject.tokens(2, tokens, mode)
        with subject.at(mode, 2, tokens, ", 3 of them in the prompt") as place:
            with subject.autocast_in(mode):
                y_BTD, state = mechanism.prefill(x_BTD[:, :3], tokens)
                before, y_BD = [_form(part) for part in tensors(state)], y_BTD[:, 0]
                for x_BD in x_BTD[:, 3:].unbind(1):
                    y_BD, state = mechanism.step(x_BD, state)
            like_BTD = subject.output(mode, 2, tokens)
            pairs = [("prefill", like_BTD[:, :3], y_BTD), ("step", like_BTD[:, 3], y_BD)]
            forms = [(name, _form(like), _form(y)) for name, like, y in pairs]
            if not any(others(state)):  # else it is replaced by each step
                after = [_form(part) for part in tensors(state)]
                forms += [("the state", *pair) for pair in zip(before, after, strict=True)]
            for name, expected, found in forms:
                words = "" if found == expected else f"{found}, expected {expected}"
                yield Finding(name, math.inf if words else 0.0, words=words, place=place)


def _form(x: Tensor) -> str:
    return f"{tuple(x.shape)} of {x.dtype}".replace("torch.", "")


@mechanism_property(
    "decoding continues after a prompt",
    cause="`prefill` returns another state than stepping: a token missing or twice, positions "
    "counted from elsewhere, or the wrong tokens kept of a prompt past the window",
)
@torch.no_grad()
def prompts(subject: Subject) -> Iterator[Finding]:
    """Decode a few tokens after prompts of many lengths and of whole chunks, 50 after long ones."""
    _require_decoding(subject)
    mechanism, limit = subject.built(), subject.limit_in(EVAL)
    tokens, note = subject.exact(subject.past)
    for batch in (3,) if subject.quick else (1, 3):
        x_BTD = subject.tokens(batch, tokens)
        with subject.at(EVAL, batch, tokens):
            y_BTD = subject.output(EVAL, batch, tokens)
        for prompt in [*subject.cuts(tokens), tokens]:
            end = min(tokens, prompt + AFTER_PROMPT)
            with subject.at(EVAL, batch, end, f", {prompt} of them in the prompt") as place:
                decoded_BTD = subject.decode(mechanism, x_BTD[:, :end], prompt)
                yield _compared(decoded_BTD, y_BTD[:, :end], limit, place, note)
    for prompt, end, capacity in () if subject.quick else CHUNKED_PROMPTS:
        end, note = subject.exact(end)
        prompt = min(prompt, end - 1)
        with subject.at(EVAL, 2, end, f", {prompt} of them in the prompt") as place:
            tokens, _ = subject.exact(CHUNKED_PROMPTS[-1][1])
            x_BTD, y_BTD = subject.tokens(2, tokens)[:, :end], subject.output(EVAL, 2, tokens)
            decoded_BTD = subject.decode(mechanism, x_BTD, prompt, spare=capacity - end)
            yield _compared(decoded_BTD, y_BTD[:, :end], limit, place, note)
    with subject.at(EVAL, 3, 19, ", 9 of them in the prompt, which begin alike") as place:
        tokens, note = subject.exact(19)
        x_BTD = subject.tokens(3, tokens)
        x_BTD[:, :ALIKE] = x_BTD[:1, :ALIKE].clone()
        y_BTD = torch.cat([subject.forward(mechanism, EVAL, row_1TD) for row_1TD in x_BTD.split(1)])
        decoded_BTD = subject.decode(mechanism, x_BTD, min(9, tokens - 1))
        yield _compared(decoded_BTD, y_BTD, limit, place, note)
    if subject.has_schedule:
        early, (tokens, note) = EVAL._replace(name="eval at step 0", step=0), subject.exact(19)
        with subject.at(early, 2, tokens, ", 1 of them in the prompt") as place:
            x_BTD, at_first = subject.tokens(2, tokens), subject.build(early)
            y_BTD = subject.forward(at_first, early, x_BTD)
            yield _compared(subject.decode(at_first, x_BTD, 1), y_BTD, limit, place, note)
    trials = [(64, FEW, 5), (2, subject.past + AFTER_LONG_PROMPT, AFTER_LONG_PROMPT)]
    if not subject.quick:
        trials += [(2, max(LONG, subject.past), AFTER_LONG_PROMPT), (1, FAR, AFTER_LONG_PROMPT)]
    for batch, tokens, after in trials:
        tokens, note = subject.exact(tokens)
        prompt = max(1, tokens - after)
        x_BTD, y_BTD = subject.tokens(batch, tokens), subject.output(EVAL, batch, tokens)
        across = [(1, *ACROSS_512)] * (batch == 2 and tokens > ACROSS_512[1])
        for rows, read, end in ((batch, prompt, tokens), *across):
            with subject.at(EVAL, rows, end, f", {read} of them in the prompt") as place:
                decoded_BTD = subject.decode(mechanism, x_BTD[:rows, :end], read, spare=13)
                yield _compared(decoded_BTD, y_BTD[:rows, :end], limit, place, note)


@mechanism_property(
    "decoding depends on its sequence and the present weights alone",
    cause="something kept on the module from another sequence, from earlier weights or from "
    "training: a position, a cache, a product of weights, dropout that ignores `self.training`",
)
@torch.no_grad()
def in_turns(subject: Subject) -> Iterator[Finding]:
    """Decode several batches in turns, again after the weights changed, and built with dropout."""
    _require_decoding(subject)
    limit = subject.limit_in(EVAL)
    most, note = subject.exact(IN_TURNS[0][1])
    sizes = [(batch, min(tokens, most)) for batch, tokens in IN_TURNS]
    prompts = [min(prompt, most - 1) for prompt in (5, 11, 3, 2)]
    mode = EVAL._replace(dropout=DROPOUT.dropout if subject.can_drop() else 0.0)
    for more, settings in (("", EVAL), (", built with dropout", mode)):
        mechanism = subject.build(settings)
        if settings == mode:
            subject.forward(mechanism.train(), DROPOUT, subject.tokens(2, most))
            mechanism.eval()
        with subject.at(EVAL, *sizes[0], f", beside smaller ones in turns{more}") as place:
            x_BTD = [subject.tokens(*size, seed=seed) for seed, size in enumerate(sizes)]
            for i, decoded_BTD in enumerate(_decoded_in_turns(mechanism, x_BTD, prompts)):
                y_BTD = subject.forward(mechanism, EVAL, x_BTD[i])
                off_BTD = relative(decoded_BTD, y_BTD)
                if off_BTD.max() > limit:  # of other calls; alone it may differ from forward, too
                    alone_BTD = subject.decode(subject.build(), x_BTD[i], prompts[i])
                    off_BTD = relative(decoded_BTD, alone_BTD)
                deviation, first = by_position(off_BTD, limit)
                where = f"prompt {i + 1}, position {first}"
                yield Finding(where, deviation, limit, place=place, note=note)
        if more:
            continue
        with subject.at(EVAL, *sizes[0], ", after the weights changed") as place:
            fresh = with_other_weights(subject, mechanism)
            found_BTD, expected_BTD = (
                subject.decode(each, x_BTD[0], prompts[0]) for each in (mechanism, fresh)
            )
            yield _compared(found_BTD, expected_BTD, limit, place, "")


@torch.no_grad()
def with_other_weights(subject: Subject, mechanism: Mechanism[Any]) -> Mechanism[Any]:
    """Change the weights of a module in place; return another one that has the same ones."""
    for parameter in mechanism.parameters():
        parameter.copy_(1.5 * parameter.roll(1, 0) if parameter.ndim else parameter * 1.5)
    fresh = subject.build()
    fresh.load_state_dict(mechanism.state_dict())
    return fresh


@mechanism_property(
    "decoding in float32 and bfloat16 equals the forward pass",
    cause="a cache or state of a narrower dtype, a position that bfloat16 cannot count, or a "
    "product that one of the two computes in a narrower dtype",
)
@torch.no_grad()
def in_narrower_dtypes(subject: Subject) -> Iterator[Finding]:
    """Decode after a prompt in float32, and as generation does under autocast, past 256 tokens."""
    _require_decoding(subject)
    trials = [(FLOAT32_EVAL, 19, 7)] * (subject.precision in (torch.float64, torch.float32))
    for mode, tokens, prompt in (*trials, (BFLOAT16_EVAL, 12, 0), (BFLOAT16_EVAL, PAST_256, 280)):
        mechanism, limit = subject.built(mode), 2 * subject.limit_in(mode)
        tokens, note = subject.exact(tokens)
        prompt = min(prompt, tokens - 1)
        more = f", {prompt} of them in the prompt"
        with subject.at(mode, 2, tokens, more) as place:
            x_BTD = subject.tokens(2, tokens, mode)
            y_BTD = subject.output(mode, 2, tokens)
            decoded_BTD = subject.decode(mechanism, x_BTD, prompt, mode)
            yield _mostly(relative(decoded_BTD, y_BTD)[:, prompt:], limit, prompt)._replace(
                place=place, note=note
            )
            narrow = torch.finfo(torch.bfloat16).eps
            if mode.autocast and torch.finfo(subject.precision).eps < narrow:
                exact_BTD = of_rounded(subject, 2, tokens)
                of_decoding, of_forward = (
                    float(errors(found_BTD, exact_BTD)[prompt:].median())
                    for found_BTD in (decoded_BTD, y_BTD)
                )
                most = MOST_TIMES * of_forward + narrow
                where = "distance from the same in a wider dtype"
                yield Finding(where, of_decoding, most, place=place)


def _decoded_in_turns(
    mechanism: Mechanism[Any], x_BTD: Sequence[Tensor], prompts: Sequence[int]
) -> list[Tensor]:
    """Return `y_BTD` of several batches of one length, decoded in turns by one module."""
    states, outputs = list[Any](), list[list[Tensor]]()
    for each_BTD, prompt in zip(x_BTD, prompts, strict=True):
        y_BTD, state = mechanism.prefill(each_BTD[:, :prompt], each_BTD.shape[1])
        states.append(state)
        outputs.append(list(y_BTD.unbind(1)))
    for t in range(min(prompts), max(each_BTD.shape[1] for each_BTD in x_BTD)):
        for i, each_BTD in enumerate(x_BTD):
            if prompts[i] <= t < each_BTD.shape[1]:
                y_BD, states[i] = mechanism.step(each_BTD[:, t], states[i])
                outputs[i].append(y_BD)
    return [torch.stack(each, 1) for each in outputs]


def _compared(
    found_BTD: Tensor, expected_BTD: Tensor, limit: float, place: Place, note: str
) -> Finding:
    """Return the largest deviation, at the first position beyond the limit."""
    deviation, first = by_position(relative(found_BTD, expected_BTD), limit)
    return Finding(f"position {first}", deviation, limit, place=place, note=note)


def _mostly(off_BTD: Tensor, limit: float, first: int) -> Finding:
    """Return the deviation that a tenth of the positions exceed."""
    off_T = off_BTD.amax((0, 2))
    deviation = float(off_T.quantile(1 - MOST_DISAGREE, interpolation="lower"))
    beyond = (off_T > limit).nonzero()
    position = first + (int(beyond[0]) if len(beyond) else len(off_T) - 1)
    return Finding(f"position {position}", deviation, limit)


def _require_decoding(subject: Subject) -> None:
    if not subject.decodes:
        raise NotJudgedError("it has no init_state and step")
