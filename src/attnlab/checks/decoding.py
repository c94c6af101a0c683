"""Decoding equals `forward`: from an empty state, and after a prompt of any length.

Sequences are longer than the window or top-k, where a ring buffer overwrites its oldest token.
Numbers are float64: in float32 a sparse mechanism may choose either of two tokens with nearly equal
scores, and both would be right. A mechanism that is exact up to a stated length only
(`MechanismConfig.exact_length`) is checked up to that length.

Shapes: B batch, T tokens, D model width.
"""

from collections.abc import Iterator

import torch

from attnlab.checks.result import Finding, by_position, mechanism_property, relative, tolerance
from attnlab.checks.subject import EVAL, Subject

AFTER_PROMPT = 12  # tokens decoded after each prompt


@mechanism_property(
    "step by step equals all at once",
    cause="a cache that drops, repeats or overwrites a token, a rotary position that is off, or a "
    "ring buffer that is one slot too short",
)
@torch.no_grad()
def steps(subject: Subject) -> Iterator[Finding]:
    """Decode a whole sequence from an empty state."""
    mechanism, limit = subject.build(), tolerance(subject.dtype)
    for batch, tokens in subject.shapes if subject.quick else [(1, 1), (1, 139), (3, subject.past)]:
        tokens = subject.exact(tokens)
        with subject.at(EVAL, batch, tokens) as place:
            x_BTD = subject.tokens(batch, tokens)
            y_BTD = subject.forward(mechanism, EVAL, x_BTD)
            off_BTD = relative(subject.decode(mechanism, x_BTD), y_BTD)
            deviation, first = by_position(off_BTD, limit)
            yield Finding(f"position {first} ({place})", deviation, limit)


@mechanism_property(
    "decoding continues after a prompt",
    cause="`prefill` returns another state than stepping: a token missing or twice, positions "
    "counted from elsewhere, or the wrong tokens kept of a prompt past the window",
)
@torch.no_grad()
def prompts(subject: Subject) -> Iterator[Finding]:
    """Decode a few tokens after prompts of many lengths."""
    mechanism, limit = subject.build(), tolerance(subject.dtype)
    tokens = subject.exact(subject.past)
    for batch in (3,) if subject.quick else (1, 3):
        x_BTD = subject.tokens(batch, tokens)
        with subject.at(EVAL, batch, tokens):
            y_BTD = subject.forward(mechanism, EVAL, x_BTD)
        for prompt in [*subject.cuts(tokens), tokens]:
            end = min(tokens, prompt + AFTER_PROMPT)
            with subject.at(EVAL, batch, end, f", {prompt} of them in the prompt") as place:
                decoded_BTD = subject.decode(mechanism, x_BTD[:, :end], prompt)
                deviation, first = by_position(relative(decoded_BTD, y_BTD[:, :end]), limit)
                yield Finding(f"position {first} ({place})", deviation, limit)
