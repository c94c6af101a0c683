"""Training reaches every parameter: at the real start, in float32 and under autocast.

A parameter may be reached late, by a schedule of the mechanism's own, and a frozen one need not be.
A parameter whose effect cancels has a gradient of nothing but roundings; biases are excepted, since
that of keys cancels in a softmax by its nature.

Shapes: B batch, T tokens, D model width.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attnlab.checks.modes import (
    BFLOAT16_TRAIN,
    EVAL,
    FIRST_STEP,
    FLOAT32_TRAIN,
    LATE,
    TRAIN,
    WITHIN_SCHEDULES,
    Mode,
    NotJudgedError,
    seeded,
)
from attnlab.checks.numbers import backward, require_exact_gradients
from attnlab.checks.result import Finding, mechanism_property
from attnlab.checks.small_configs import LONG, PAST_64, PAST_LONG
from attnlab.checks.subject import Subject
from attnlab.mechanism import Mechanism
from attnlab.model.language_model import LanguageModel, ModelConfig
from attnlab.training.optimizer import adamw, set_learning_rate
from attnlab.training.step import forward_and_backward

VOCABULARY = 32
SHAPE = 4, PAST_64  # sequences, and tokens of each, whose gradients in training are compared
OFF_IN_FLOAT32, OFF_IN_BFLOAT16 = 0.02, 0.4  # of a gradient, the most that roundings cause
MOST_TIMES = 2  # or what changes of the size of a rounding cause, this many times
STEPS = (0, 1, LATE)  # training steps that are made


@mechanism_property(
    "every parameter is trained",
    cause="a parameter that nothing reads or whose effect cancels, a `detach` too many, a factor "
    "that starts at zero and stays there, a tensor or layer that is not registered on the module, "
    "or an auxiliary loss without a gradient",
)
def trained(subject: Subject) -> Iterator[Finding]:
    """Require a gradient of every parameter in some phase, and from the real start."""
    reached, cancelled, left = set[str](), set[str](), list[str]()
    has_gradient = list[bool]()
    steps = WITHIN_SCHEDULES[::2] if subject.has_schedule else ()
    within = [TRAIN._replace(name=f"train at step {step}", step=step) for step in steps]
    for mode in subject.apart(FIRST_STEP, TRAIN, *within):
        mechanism = subject.build(mode)
        with subject.at(mode, 3, subject.past) as place:
            x_BTD = subject.tokens(3, subject.past)
            y_BTD, loss = backward(subject, mode, x_BTD, mechanism)
            has_gradient.append(loss is None or getattr(loss, "requires_grad", False))
            if loss is not None:
                again = subject.forward_with_loss(mechanism, mode, x_BTD.repeat(4, 1, 1))[1]
                adds_up = again is not None and 3 < float(again.detach() / loss.detach()) < 5
                words = "is 4 times as large for 4 times the sequences: average over them"
                deviation = math.inf if adds_up else 0.0
                yield Finding("the auxiliary loss", deviation, words=words * adds_up, place=place)
                of_one = subject.forward_with_loss(mechanism, mode, x_BTD[:1])[1]
                is_wrong = of_one is not None and not of_one.isfinite().all()
                words = "is not finite for a batch of one sequence" * is_wrong
                deviation = math.inf if is_wrong else 0.0
                yield Finding("the auxiliary loss", deviation, words=words, place=place)
        for name, parameter in mechanism.named_parameters():
            if parameter.grad is not None and not parameter.grad.isfinite().all():
                words = "gradient is not finite"
                yield Finding(name, math.inf, words=words, place=place)
        yield Finding(*_unregistered(mechanism, y_BTD))
        found, small = _with_effect(mechanism, subject)
        reached, cancelled = reached | found, cancelled | small
        left = [n for n, p in mechanism.named_parameters() if p.requires_grad and n not in reached]
    if not any(has_gradient):
        yield Finding("the auxiliary loss", math.inf, words="has no gradient: it trains nothing")
    if left:  # a parameter may be read in long sequences only, or where tokens come again
        mechanism, half = subject.build(FLOAT32_TRAIN), LONG // 2
        with subject.at(FLOAT32_TRAIN, 1, LONG):
            x_BTD = subject.tokens(1, LONG, FLOAT32_TRAIN)
            x_BTD[:, half : 2 * half] = x_BTD[:, :half].clone()
            backward(subject, FLOAT32_TRAIN, x_BTD, mechanism)
        reached |= {
            n for n, p in mechanism.named_parameters() if p.grad is not None and p.grad.any()
        }
        left = [name for name in left if name not in reached or name in cancelled]
    without = [name for name in left if name not in cancelled]
    for name in without:
        yield Finding(name, math.inf, words=f"no gradient, or zero: {', '.join(without)}")
    for name in (name for name in left if name in cancelled):
        yield Finding(name, math.inf, words="its effect cancels: the gradient is all rounding")
    if not left:
        yield from _from_the_start(subject)


@mechanism_property(
    "gradients of training are those of small batches in float64",
    cause="a backward pass that is wrong for some batch size, length or dtype, such as that of a "
    "kernel which training alone uses",
)
def in_training(subject: Subject) -> Iterator[Finding]:
    """Compare gradients of training with those of evaluation, of two sequences at a time.

    These are what differences have confirmed. Where the outputs of evaluation and training differ
    by intention, the gradients of training in float64 count.
    """
    require_exact_gradients(subject)
    if subject.violated:
        raise NotJudgedError("another property is violated")
    if subject.precision != torch.float64:
        raise NotJudgedError(f"it computes in {subject.precision}")
    if subject.is_noisy:
        raise NotJudgedError("training adds noise")
    off = subject.off_in_training
    note = f"outputs of training and evaluation differ by {off:.2g}, without dropout" if off else ""
    for batch, tokens in (SHAPE, (1, 256), *[(1, PAST_LONG)] * (not subject.quick)):
        rows = torch.arange(batch)
        trials = [(FLOAT32_TRAIN, [rows]), (BFLOAT16_TRAIN, [rows])]
        if batch > 1:
            trials[0] = FLOAT32_TRAIN, [rows.repeat(17)]  # 68 sequences
            trials.append((BFLOAT16_TRAIN, [rows.repeat(5)]))
            trials.append((TRAIN, [*rows.split([1, batch - 1])]))
        of_exact = partial(
            _gradients, subject, TRAIN if off else EVAL, tokens, rows.split(2), adds=False
        )
        exact = of_exact()
        for mode, parts in trials:
            with subject.at(mode, len(parts[0]), tokens) as place:
                found = _gradients(subject, mode, tokens, parts)
            findings = [*_off(subject, mode, found, exact)]
            if not all(finding.within_limit for finding in findings):
                moved = of_exact(noise=torch.finfo(subject.dtype_in(mode)).eps)
                of_noise = [finding.deviation for finding in _off(subject, mode, moved, exact)]
                findings = [
                    finding._replace(limit=max(finding.limit, MOST_TIMES * deviation))
                    for finding, deviation in zip(findings, of_noise, strict=True)
                ]
            for finding in findings:
                yield finding._replace(place=place, note=note)


def _off(
    subject: Subject, mode: Mode, found: Mapping[str, Tensor], exact: Mapping[str, Tensor]
) -> Iterator[Finding]:
    """Compare gradients by their norms."""
    largest = max(float(gradient.norm()) for gradient in exact.values()) or 1.0
    eps = torch.finfo(subject.dtype_in(mode)).eps
    limit = OFF_IN_FLOAT32 if eps <= torch.finfo(torch.float32).eps else OFF_IN_BFLOAT16
    for name, gradient in exact.items():
        scale = max(float(gradient.norm()), eps**0.5 * largest)  # some cancel to roundings
        off = float((found[name] - gradient).norm()) / scale
        words = f"off by {off:.2g} of that of two sequences at a time in {subject.dtype}"
        yield Finding(f"of {name}", off, limit, words.replace("torch.", ""))


def _gradients(
    subject: Subject,
    mode: Mode,
    tokens: int,
    parts: Sequence[Tensor],
    *,
    adds: bool = True,
    noise: float = 0.0,
) -> dict[str, Tensor]:
    """Return the gradients of the input and of each parameter, in float64.

    `parts` are the rows of each batch, which may repeat: gradients are those of every row once.
    `adds` lets autograd add them to `.grad`, with its hooks, as training does. `noise` changes all
    numbers by up to this part of them, as roundings do.
    """
    mechanism, shape = subject.build(mode), (1 + max(int(rows.max()) for rows in parts), tokens)
    x_BTD = subject.tokens(*shape, mode).requires_grad_()
    tensors = {"the input": x_BTD, **dict(mechanism.named_parameters())}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
    with torch.no_grad(), seeded(0):
        for tensor in tensors.values() if noise else ():
            tensor.mul_(1 + noise * (2 * torch.rand_like(tensor) - 1))
    total = {name: torch.zeros_like(tensor).double() for name, tensor in tensors.items()}
    for rows in parts:
        y_BTD = subject.forward(mechanism, mode, x_BTD[rows])
        weighted = (y_BTD.double() * subject.tokens(*shape, seed=1)[rows].double()).sum()
        if adds:
            weighted.backward()
            found = [tensor.grad for tensor in tensors.values()]
        else:
            found = torch.autograd.grad(weighted, [*tensors.values()], allow_unused=True)
        for (name, tensor), gradient in zip(tensors.items(), found, strict=True):
            if gradient is not None:
                total[name] += gradient.double() * (shape[0] / sum(map(len, parts)))
            tensor.grad = None
    return total


class Course(NamedTuple):
    """A few training steps of a model with two layers."""

    losses: list[float]  # nats/token, one per step
    model: LanguageModel
    still: list[str]  # trainable parameters of mechanisms without a gradient in any step


def first_course(subject: Subject, *, autocast: bool = False) -> Course:
    """Return the course of seed 0, which several properties look at."""
    if autocast not in subject.memo:
        subject.memo[autocast] = course(subject, 0, autocast=autocast)
    return subject.memo[autocast]


@torch.enable_grad()
def course(
    subject: Subject,
    seed: int,
    steps: Sequence[int] = STEPS,
    *,
    autocast: bool = False,
    tokens: int | None = None,
) -> Course:
    """Train a model from its initial values for a few steps, as the trainer does.

    It has two layers of the mechanism, or those that it takes from and one.
    """
    autocast = autocast or not subject.serves_float32
    layers = subject.layers
    config = ModelConfig(mechanisms=layers, n_layers=len(layers), d_model=subject.d_model)
    with seeded(seed):
        model = config.build(VOCABULARY, seed).to(subject.device).train()
    optimizer = adamw(
        model.parameters(), weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8, device=subject.device
    )
    set_learning_rate(optimizer, torch.tensor(3e-3, device=subject.device))
    parameters = {
        f"layer {i}: {name}": parameter
        for i, mechanism in enumerate(model.mechanisms())
        for name, parameter in mechanism.named_parameters()
        if parameter.requires_grad
    }
    losses, still = list[float](), set(parameters)
    context = TRAIN._replace(autocast=autocast).autocast_on(subject.device)
    for step in steps:
        model.at_step(step)
        optimizer.zero_grad(set_to_none=True)
        tokens_BT1 = batch(subject, step, seed, tokens)
        with seeded(step):
            loss = forward_and_backward(model, tokens_BT1, context)
        gradients = {name: parameter.grad for name, parameter in parameters.items()}
        still -= {name for name, grad in gradients.items() if grad is not None and grad.any()}
        optimizer.step()
        losses.append(float(loss.language_model.detach() + loss.auxiliary.detach()))
    return Course(losses, model, sorted(still))


def batch(subject: Subject, step: int, seed: int, tokens: int | None = None) -> Tensor:
    """Return `tokens_BT1` of one step: random tokens, one long row or a few short ones."""
    generator = torch.Generator().manual_seed(100 * seed + step)
    shape = (4, min(subject.past, 37) + 1) if tokens is None else (1, tokens + 1)
    return torch.randint(VOCABULARY, shape, generator=generator).to(subject.device)


def _from_the_start(subject: Subject) -> Iterator[Finding]:
    for autocast in (False, True):
        name = "bfloat16" if autocast else "float32"
        where = f"two layers from the real start, {name}"
        try:
            made = first_course(subject, autocast=autocast)
        except Exception as error:
            error.add_note(where)
            raise
        wrong = [step for step, loss in zip(STEPS, made.losses, strict=True) if loss != loss]
        if wrong:
            yield Finding(where, math.inf, words=f"loss is not finite at step {wrong[0]}")
        still = made.still
        if still:
            long = course(subject, 0, autocast=autocast, tokens=LONG).still
            still = sorted({*still}.intersection(long))
        for parameter in still:
            words = "no gradient in any step: it stays at its initial value"
            yield Finding(f"{parameter}, {where}", math.inf, words=words)


def _with_effect(mechanism: Mechanism[Any], subject: Subject) -> tuple[set[str], set[str]]:
    """Return the parameters with a gradient that moves the output, and those with roundings."""
    effects = {
        name: float((parameter.grad.norm() * parameter.norm()).detach())
        for name, parameter in mechanism.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }
    limit = 1e3 * torch.finfo(subject.precision).eps * max(effects.values(), default=0.0)
    small = {
        name
        for name, effect in effects.items()
        if effect < limit and not name.endswith("bias") and subject.precision == torch.float64
    }
    return set(effects) - small, small


def _unregistered(mechanism: Mechanism[Any], y_BTD: Tensor) -> tuple[str, float, float, str]:
    """Return a finding's fields: leaves of the graph that are no parameters of the module."""
    known = {id(parameter) for parameter in mechanism.parameters()}
    seen, stack, shapes = set[Any](), [y_BTD.grad_fn], list[str]()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        stack.extend(next_node for next_node, _ in node.next_functions)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor) and leaf.is_leaf and id(leaf) not in known:
            shapes.append(str(tuple(leaf.shape)))
    words = "is no parameter of the module, so nothing trains or saves it" if shapes else ""
    where = f"a tensor of shape {shapes[0]} that requires a gradient" if shapes else ""
    return where, math.inf if shapes else 0.0, 0.0, words
