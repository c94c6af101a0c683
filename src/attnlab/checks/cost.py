"""The stated cost of a mechanism, compared with the measured one.

Parameters are counted. FLOPs are those of the matrix products of one decode step, as torch's
counter counts them (without torch's fused CPU kernels, which the counter does not see). Bytes are
those of the smallest decode state that holds the context.

Shapes: B batch, T tokens, D model width.
"""

from collections.abc import Iterator

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from attnlab.checks.result import Finding, mechanism_property
from attnlab.checks.subject import EVAL, Subject
from attnlab.mechanism import state_bytes


@mechanism_property(
    "parameters are as stated",
    cause="`cost` counts a layer too many or too few: a norm, a bias, a gate",
)
def params(subject: Subject) -> Iterator[Finding]:
    """Count the elements of the parameters."""
    stated = subject.config.cost(subject.d_model, 1).params
    counted = sum(parameter.numel() for parameter in subject.build().parameters())
    yield _counted("", stated, counted, "parameters")


@mechanism_property(
    "FLOPs of a step are as stated",
    cause="`cost` leaves out a projection, the scores or the values, counts a multiply-add once, "
    "or does not stop growing at the window",
)
@torch.no_grad()
def flops(subject: Subject) -> Iterator[Finding]:
    """Count the FLOPs of a step: as stated, or at least that if `flops_are_exact` is False."""
    for context, stated, counted, _, _ in _contexts(subject):
        if not subject.config.flops_are_exact:
            counted = min(stated, counted)
        yield _counted(f"context {context}", stated, counted, "FLOPs")


@mechanism_property(
    "bytes of the decode state are as stated",
    cause="`cost` counts keys without values, forgets `itemsize`, or the state holds more tokens "
    "than it needs",
)
@torch.no_grad()
def bytes_of_state(subject: Subject) -> Iterator[Finding]:
    """Count the bytes of the decode state after a context."""
    for context, _, _, stated_bytes, counted_bytes in _contexts(subject):
        yield _counted(f"context {context}", stated_bytes, counted_bytes, "bytes")


@torch.no_grad()
def _contexts(subject: Subject) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield context, FLOPs stated and counted, bytes stated and counted."""
    mechanism = subject.build()
    for context in sorted({1, 7, subject.past}):
        stated = subject.config.cost(subject.d_model, context, itemsize=subject.dtype.itemsize)
        with subject.at(EVAL, 1, context):
            x_BTD = subject.tokens(1, context)
            state = mechanism.init_state(1, context)
            if context > 1:
                _, state = mechanism.prefill(x_BTD[:, :-1], context)
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                _, state = mechanism.step(x_BTD[:, -1], state)
        counted = counter.get_total_flops()
        yield context, stated.flops, counted, stated.state_bytes, state_bytes(state)


def _counted(where: str, stated: int, counted: int, what: str) -> Finding:
    words = "" if stated == counted else f"{stated:,} {what} stated, {counted:,} counted"
    return Finding(where, abs(stated - counted), words=words)
