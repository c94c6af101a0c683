"""Outputs have the right shape and finite numbers, and gradients are the outputs' derivatives.

Shapes: B batch, T tokens, D model width.
"""

import inspect
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attnlab.checks.modes import (
    BFLOAT16_EVAL,
    BFLOAT16_TRAIN,
    DROPOUT,
    EVAL,
    FLOAT32_EVAL,
    FLOAT32_TRAIN,
    Elsewhere,
    Mode,
    NotJudgedError,
    narrowest_dtype,
    tolerance,
)
from attnlab.checks.result import (
    Finding,
    difference,
    errors,
    mechanism_property,
    of_rounded,
    raised,
)
from attnlab.checks.small_configs import FAR, FEW, LONG, PAST_256, PAST_512
from attnlab.checks.subject import Subject
from attnlab.mechanism import Mechanism

SCALES = (0.0, 1.0, 30.0)  # of inputs that are standard normal
MOST_GROWTH = 4  # the error of late positions over that of early ones, in bfloat16
TRIES = 3  # a derivative is wrong only if it is so at each of several points: ReLU has kinks


@mechanism_property(
    "output is finite, with the shape and dtype of the input",
    cause="a `squeeze` or `view` that takes a length or batch of 1 for something else, a constant "
    "of a fixed dtype, or a tensor that is no buffer or is made on no device",
)
@torch.no_grad()
def shapes(subject: Subject) -> Iterator[Finding]:
    """Run many lengths and batch sizes, in float32 as in training, too."""
    trials = [(EVAL, batch, tokens) for tokens in subject.lengths for batch in (1, 3)]
    trials += [(FLOAT32_TRAIN, 8, subject.short), (FLOAT32_TRAIN, FEW, FEW)]
    trials += [(FLOAT32_TRAIN, 1, FAR)] * (not subject.quick)
    if subject.of_study is not None:
        trials.append((FLOAT32_TRAIN, *subject.of_study))
    for mode, batch, tokens in trials:
        with subject.at(mode, batch, tokens) as place:
            y_BTD = subject.output(mode, batch, tokens)
            words = f"{tuple(y_BTD.shape)} of {y_BTD.dtype}"
            is_alike = y_BTD.shape == (batch, tokens, subject.d_model)
            is_alike = is_alike and y_BTD.dtype == subject.dtype_in(mode)
            deviation = 0.0 if is_alike else math.inf
            yield Finding("", deviation, words="" if is_alike else words, place=place)
            yield _finite("", y_BTD)._replace(place=place)
    if subject.device.type == "cpu":
        with subject.at(EVAL, 2, 5, ", as if it moved to another device") as place:
            words = _on_two_devices(subject)
        yield Finding("", math.inf if words else 0.0, words=words, place=place)


def _on_two_devices(subject: Subject) -> str:
    """Return which line mixes tensors of two devices when the module moves; "" if none does.

    A class that asks for CUDA is not judged: what it would do there is not done here.
    """
    mechanism, x_BTD = subject.build(), subject.tokens(2, 5)
    with suppress(OSError, TypeError):  # it is in no file
        if "cuda" in inspect.getsource(type(mechanism)):
            return ""
    for part in mechanism.modules():
        tensors = {name: x for name, x in vars(part).items() if isinstance(x, Tensor)}
        vars(part).update({name: x.to("meta") for name, x in tensors.items()})
    try:
        with Elsewhere():
            subject.forward(mechanism, EVAL, x_BTD)
            for prompt in (0, 3) if subject.decodes else ():
                subject.decode(mechanism, x_BTD, prompt)
    except Exception as error:  # most say nothing about devices
        where = "".join(re.findall(r" \(at [^)]*\)", raised(error)))
        if re.search("expected device|(in|have) the same device", str(error)):
            return f"a tensor stays on the CPU{where}: make it a buffer, or on `x.device`"
    return ""


@mechanism_property(
    "float32 stays float32 inside",
    cause="a cast to a narrower dtype, perhaps in long sequences only; if it is intended, set "
    "`computes_in` in the settings' class",
)
@torch.no_grad()
def dtypes_inside(subject: Subject) -> Iterator[Finding]:
    """Look at the dtype of every operation's result, in a long sequence."""
    if subject.config.computes_in is not None or not subject.serves_float32:
        raise NotJudgedError("it does not compute in float32")
    for mode in (FLOAT32_EVAL, FLOAT32_TRAIN):
        call = partial(subject.forward, mode=mode, x_BTD=subject.tokens(1, LONG, mode))
        with subject.at(mode, 1, LONG) as place:
            seen = narrowest_dtype(partial(call, subject.build(mode)), torch.float32)
            if seen is None:
                call(subject.build(mode))
                raise NotJudgedError("its operations cannot be observed")
        words = "" if seen == torch.float32 else f"computes in {seen} inside"
        yield Finding("", math.inf if words else 0.0, words=words, place=place)


@mechanism_property(
    "roundings are small, and do not grow with the length",
    cause="a position, a running sum or a state in bfloat16, which cannot count past 256, a small "
    "difference of large sums, or a kernel for one dtype that computes something else",
)
@torch.no_grad()
def roundings(subject: Subject) -> Iterator[Finding]:
    """Compare outputs in float32 and bfloat16 with the same in a wider dtype, late ones, too."""
    if torch.finfo(subject.precision).eps >= torch.finfo(torch.bfloat16).eps:
        raise NotJudgedError(f"it computes in {subject.precision}")
    is_wide = torch.finfo(subject.precision).eps <= torch.finfo(torch.float32).eps
    trials = [(BFLOAT16_EVAL, 2, PAST_256)] + [(FLOAT32_EVAL, 8, subject.short)] * is_wide
    if not subject.is_noisy:
        trials += [(BFLOAT16_TRAIN, 8, subject.short)]
        trials += [(FLOAT32_TRAIN, 1, LONG)] * (is_wide and not subject.quick)
    for mode, batch, tokens in trials:
        with subject.at(mode, batch, tokens) as place:
            y_BTD = subject.output(mode, batch, tokens)
            error_T = errors(y_BTD, of_rounded(subject, batch, tokens, mode))
        eps, typical = torch.finfo(subject.dtype_in(mode)).eps, float(error_T[:64].median())
        words = f"it is off by {typical:.2g} of the output in a wider dtype"
        yield Finding("", typical, eps**0.5, words, place)
        if tokens < PAST_256:
            continue
        parts_T = error_T[:64], error_T[tokens - 74 :]
        early, late = (float(part_T.median()) for part_T in parts_T)
        words = f"{late:.2g} of the output past {tokens - 74} tokens, {early:.2g} at the first"
        least = eps if mode.autocast else tolerance(torch.float32)
        yield Finding("", late, MOST_GROWTH * early + least, words, place)


@mechanism_property(
    "values and gradients are finite, in bfloat16 and for inputs at 0 and 30",
    cause="an infinity minus an infinity, a logarithm or division of what rounds to zero in "
    "bfloat16, a root at zero, an exponential without its maximum, or dtypes that do not match "
    "under autocast",
)
def finite(subject: Subject) -> Iterator[Finding]:
    """Train one step in float32 and under autocast, and decode after a prompt."""
    trials = [(BFLOAT16_TRAIN, 1, (1.0,))]
    trials += [(mode, subject.short, SCALES) for mode in (FLOAT32_TRAIN, BFLOAT16_TRAIN)]
    for mode, tokens, scales in trials:
        found = _not_finite(subject, mode, tokens, scales)
        if len(scales) > 1 and not all(finding.within_limit for finding in found):
            alone = [_not_finite(subject, mode, tokens, (scale,)) for scale in scales]
            found = [finding for each in alone for finding in each] + found
        yield from found


def _not_finite(
    subject: Subject, mode: Mode, tokens: int, scales: Sequence[float]
) -> list[Finding]:
    """Return a finding per tensor of one step, with a sequence or three per scale of the inputs."""
    mechanism, batch = subject.build(mode), 3
    scale_B11 = torch.tensor([scales[i % len(scales)] for i in range(batch)])[:, None, None]
    x_BTD = subject.tokens(batch, tokens, mode)
    x_BTD = (scale_B11.to(x_BTD) * x_BTD).requires_grad_()
    said = " and ".join(f"{scale:g}" for scale in scales)
    more = "" if said == "1" else f", inputs times {said}"
    with subject.at(mode, batch, tokens, more) as place:
        y_BTD, loss = backward(subject, mode, x_BTD, mechanism)
    found = {"output": y_BTD, "auxiliary loss": loss, "gradient of the input": x_BTD.grad}
    found |= {f"gradient of {name}": p.grad for name, p in mechanism.named_parameters()}
    findings = [_finite(name, tensor)._replace(place=place) for name, tensor in found.items()]
    if subject.decodes and mode.autocast:
        decoder, prompt = subject.build(BFLOAT16_EVAL), max(0, tokens - 9)
        more = f", {prompt} of them in the prompt{more}"
        with torch.no_grad(), subject.at(BFLOAT16_EVAL, batch, tokens, more) as place:
            y_BTD = subject.decode(decoder, x_BTD.detach(), prompt, BFLOAT16_EVAL)
        findings.append(_finite("decoding", y_BTD)._replace(place=place))
    return findings


@mechanism_property(
    "gradients are the derivatives of the outputs",
    cause="a backward pass written by hand that is wrong, a `detach` or `.data` too many, or a "
    "straight-through estimator; if that is intended, set `gradients_are_exact = False` in the "
    "settings' class",
)
def derivatives(subject: Subject) -> Iterator[Finding]:
    """Compare gradients with differences of outputs, along the input and along each parameter."""
    require_exact_gradients(subject)
    eps = torch.finfo(subject.precision).eps
    if eps > torch.finfo(torch.float32).eps:
        raise NotJudgedError(f"it computes in {subject.precision}, too coarse for differences")
    trials = [(EVAL, 11), (EVAL, 300 if subject.quick else PAST_512)]
    if subject.can_drop() and not subject.is_noisy and not subject.off_in_training:
        trials.append((DROPOUT, 11))
    for mode, tokens in trials:
        mechanism = subject.build(mode)
        names = ["the input", *(n for n, p in mechanism.named_parameters() if p.requires_grad)]
        with subject.at(mode, 2, tokens) as place:
            wrong = _wrong(subject, mode, tokens, [names])
            if wrong:
                wrong = _wrong(subject, mode, tokens, [[name] for name in names]) or wrong
        yield Finding("", 0.0, place=place)
        for along, (deviation, limit) in wrong.items():
            words = f"off by {deviation:.2g} of the largest derivative"
            yield Finding(f"along {along}", deviation, limit, words, place)


def require_exact_gradients(subject: Subject) -> None:
    """Raise NotJudgedError if the settings' class says that gradients are no derivatives."""
    if not getattr(subject.config, "gradients_are_exact", True):
        raise NotJudgedError("gradients_are_exact is False")


def _wrong(
    subject: Subject, mode: Mode, tokens: int, groups: Sequence[Sequence[str]]
) -> dict[str, tuple[float, float]]:
    """Return the error and its limit for each group whose derivative is wrong at every point."""
    eps = torch.finfo(subject.precision).eps
    step, limit = min(eps ** (1 / 3), 1e3 * eps ** (2 / 3)), 20 * eps ** (1 / 3)
    wrong = dict[str, tuple[float, float]]()
    for point in range(TRIES):
        deviations = _off_derivative(subject, mode, tokens, groups, step, point, limit)
        wrong = {
            name: (min(deviation, wrong[name][0] if point else math.inf), limit)
            for name, deviation in deviations.items()
            if (point == 0 or name in wrong) and deviation > limit
        }
        if not wrong:
            break
    return wrong


def _off_derivative(
    subject: Subject,
    mode: Mode,
    tokens: int,
    groups: Sequence[Sequence[str]],
    step: float,
    point: int,
    least: float,
) -> dict[str, float]:
    """Return the error of the derivative along a random direction of each group of tensors.

    It is relative to the largest derivative by one tensor, so that roundings of the others do not
    count. An error above `least` counts only where a smaller step measures the same derivative.
    """
    mechanism = subject.build(mode)
    x_BTD = subject.tokens(2, tokens, seed=2 * point).requires_grad_()
    weight_BTD = subject.tokens(2, tokens, seed=2 * point + 1)
    tensors = {"the input": x_BTD, **dict(mechanism.named_parameters())}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}

    def output() -> Tensor:
        return (subject.forward(mechanism, mode, x_BTD) * weight_BTD).sum()

    found: Any = torch.autograd.grad(output(), list(tensors.values()), allow_unused=True)
    generator = torch.Generator().manual_seed(point)
    moves, stated = dict[str, Tensor](), dict[str, float]()
    for (name, tensor), gradient in zip(tensors.items(), found, strict=True):
        direction = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        scale = tensor.detach().norm() / max(1, tensor.numel()) ** 0.5
        moves[name] = (direction / direction.norm() * scale.clamp_min(0.1).cpu()).to(tensor)
        stated[name] = 0.0 if gradient is None else float((gradient * moves[name]).sum())
    steps = {tuple(names): {name: moves[name] for name in names} for names in groups}
    measured = {names: difference(tensors, move, step, output) for names, move in steps.items()}
    largest = max(map(abs, (*stated.values(), *measured.values()))) or 1.0
    off = dict[str, float]()
    for names, value in measured.items():
        error = sum(stated[name] for name in names) - value
        if abs(error) > least * largest:  # where outputs jump, a smaller step measures another one
            again = difference(tensors, steps[names], step / 4, output)
            error = 0.0 if abs(again - value) > abs(error) / 2 else error
        along = names[0] if len(names) == 1 else "input and parameters together"
        off[along] = abs(error) / largest
    return off


def backward(
    subject: Subject, mode: Mode, x_BTD: Tensor, mechanism: Mechanism[Any]
) -> tuple[Tensor, Tensor | None]:
    """Return `y_BTD` and the auxiliary loss after a backward pass from both."""
    y_BTD, loss = subject.forward_with_loss(mechanism, mode, x_BTD)
    weight_BTD = subject.tokens(x_BTD.shape[0], x_BTD.shape[1], mode, seed=1)
    total = (y_BTD.to(weight_BTD.dtype) * weight_BTD).float().mean()
    if mode == EVAL or not (mode.autocast or mode.float32):
        total = (y_BTD * weight_BTD).mean()
    (total if loss is None else total + loss).backward()
    return y_BTD, loss


def _finite(where: str, x: Tensor | None) -> Finding:
    wrong = 0 if x is None else int((~x.isfinite()).sum())
    total = 0 if x is None else x.numel()
    words = f"{wrong} of {total} numbers are not finite" if wrong else ""
    return Finding(where, math.inf if wrong else 0.0, words=words)
