"""Decoding gives what `forward` gives: from an empty state, and on from a prompt of any length.

Also past the window or top-k, where a ring overwrites its oldest token. In float64: a sparse
mechanism in float32 may choose another token of two that score alike, and both would be right.
One that is not exact at every length, and says so (`MechanismConfig.exact_length`), is held to it
up to that length.

Shapes: B batch, T tokens, D model width.
"""

from collections.abc import Iterator

import torch

from attnlab.checks.result import Finding, by_position, promise, relative, tolerance
from attnlab.checks.subject import EVAL, Subject

AFTER_PROMPT = 12  # tokens decoded after each prompt


@promise(
    "step by step equals all at once",
    cause="a cache that drops, repeats or overwrites a token, a rotary position that is off, or a "
    "ring that is a slot too short",
)
@torch.no_grad()
def steps(subject: Subject) -> Iterator[Finding]:
    mechanism, limit = subject.build(), tolerance(subject.dtype)
    for batch, tokens in subject.shapes if subject.quick else [(1, 1), (1, 139), (3, subject.past)]:
        tokens = subject.exact(tokens)
        with subject.at(EVAL, batch, tokens) as place:
            x_BTD = subject.tokens(batch, tokens)
            y_BTD = subject.forward(mechanism, EVAL, x_BTD)
            off_BTD = relative(subject.decode(mechanism, x_BTD), y_BTD)
            deviation, first = by_position(off_BTD, limit)
            yield Finding(f"position {first} ({place})", deviation, limit)


@promise(
    "decoding goes on from a prompt",
    cause="`prefill` leaves another state than stepping would: a token missing or twice, positions "
    "counted from elsewhere, or the wrong tokens kept of a prompt past the window",
)
@torch.no_grad()
def prompts(subject: Subject) -> Iterator[Finding]:
    mechanism, limit = subject.build(), tolerance(subject.dtype)
    tokens = subject.exact(subject.past)
    for batch in (3,) if subject.quick else (1, 3):
        x_BTD = subject.tokens(batch, tokens)
        with subject.at(EVAL, batch, tokens):
            y_BTD = subject.forward(mechanism, EVAL, x_BTD)
        for prompt in [*subject.cuts(tokens), tokens]:
            end = min(tokens, prompt + AFTER_PROMPT)
            with subject.at(EVAL, batch, end, f", {prompt} of them the prompt") as place:
                decoded_BTD = subject.decode(mechanism, x_BTD[:, :end], prompt)
                deviation, first = by_position(relative(decoded_BTD, y_BTD[:, :end]), limit)
                yield Finding(f"position {first} ({place})", deviation, limit)
