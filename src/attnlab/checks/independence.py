"""Independence of the length, of the other sequences of a batch, and of the layers of a model.

Shapes: B batch, T tokens, D model width.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attnlab.checks.causality import beside_others, half_changed
from attnlab.checks.modes import (
    BFLOAT16_TRAIN,
    EVAL,
    FIRST_STEP,
    FLOAT32_EVAL,
    FLOAT32_TRAIN,
    LATE,
    TRAIN,
    NotJudgedError,
    Place,
    seeded,
)
from attnlab.checks.result import Finding, by_position, mechanism_property, relative, same_bits
from attnlab.checks.small_configs import CHEAP, LONG
from attnlab.checks.subject import Subject
from attnlab.checks.training import batch as tokens_of
from attnlab.checks.training import first_course
from attnlab.mechanism import Handed, HandingMechanism, Mechanism
from attnlab.model.initialization import constructed

MOST_EQUAL = 64  # last outputs of different sequences, which may be skipped tokens
EVEN = 64  # tokens, of sequences that a wrong reshape could cut into equal parts


@mechanism_property(
    "a prefix alone gives the same outputs",
    cause="something that depends on the length of the whole sequence: a scale, a position "
    "counted from the end, padding that is not masked",
)
@torch.no_grad()
def prefixes(subject: Subject) -> Iterator[Finding]:
    """Compare a prefix alone with the same tokens of a longer sequence, up to `exact_length`."""
    alone = subject.quick or subject.is_noisy
    modes = [EVAL] if alone else subject.apart(EVAL, FIRST_STEP, TRAIN)
    trials = [
        (mode, batch, tokens, subject.cuts(tokens))
        for mode in modes
        for batch, tokens in (subject.shapes if mode == EVAL else subject.shapes[-2:])
    ]
    if subject.quick:
        trials.append((FLOAT32_EVAL, 1, CHEAP, [64, 65, 128]))
    else:
        longest = max(LONG, subject.past)
        last = longest - 1 if longest > LONG else 1024
        cuts = [256, 512, 513, last]
        trials.append((FLOAT32_EVAL, 1, longest, cuts))
    if subject.of_study is not None and not subject.is_noisy:
        trials.append((FLOAT32_TRAIN, *subject.of_study, [subject.of_study[1] - 1]))
    for mode, batch, tokens, cuts in trials:
        mechanism, limit = subject.built(mode), subject.limit_in(mode)
        tokens, note = subject.exact(tokens)
        x_BTD = subject.tokens(batch, tokens, mode)
        with subject.at(mode, batch, tokens):
            y_BTD = subject.output(mode, batch, tokens)
        yield Finding("", 0.0, note=note)
        for cut in (cut for cut in cuts if cut < tokens):
            with subject.at(mode, batch, cut, f" of {tokens}") as place:
                alone_BTD = subject.forward(mechanism, mode, x_BTD[:, :cut])
                # relative to the whole: the output of the first token alone may rightly be 0
                joined_BTD = torch.cat([alone_BTD, y_BTD[:, cut:]], 1)
                deviation, first = by_position(relative(joined_BTD, y_BTD), limit)
                yield Finding(f"position {first} differs", deviation, limit, place=place)


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
    trials += [(BFLOAT16_TRAIN, 3, CHEAP)]
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
    "outputs depend on the tokens",
    cause="a constant, a table of positions that ends, or a gate that is always closed",
)
def dependence(subject: Subject) -> Iterator[Finding]:
    """Compare long sequences of a batch: the last outputs are not those of other tokens."""
    mode, batch, tokens = FLOAT32_TRAIN, 4, max(LONG, subject.past)
    with subject.at(mode, batch, tokens) as place:
        y_BTD = subject.output(mode, batch, tokens)
        differs_T = (y_BTD[1:] != y_BTD[:1]).any(-1).any(0)
    last = int(differs_T.nonzero().max()) if differs_T.any() else -1
    words = f"the same for all sequences from position {last + 1} on"
    is_wrong = tokens - 1 - last > MOST_EQUAL
    yield Finding("", math.inf if is_wrong else 0.0, words=words * is_wrong, place=place)


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


@mechanism_property(
    "layers share only what they declare",
    cause="a tensor, list or counter in a class or a global, which every module of it reads and "
    "writes, a setting drawn or counted up in the constructor, or something handed to later "
    "layers that `gives` and `takes` do not name",
)
@torch.no_grad()
def layers(subject: Subject) -> Iterator[Finding]:
    """Run a model, and each of its layers' inputs in a module of its own."""
    model, calls = first_course(subject).model.eval(), list[_LayerCall]()

    def begins(_: Any, args: tuple[Any, ...]) -> None:
        taken = {name: _copy(value) for name, value in dict(*args[1:]).items()}
        calls.append(_LayerCall(args[0], taken, list[Tensor]()))

    def ends(_: Any, args: tuple[Any, ...], y_BTD: Tensor) -> None:
        del args
        calls[-1].outputs.append(y_BTD)

    hooks = [mechanism.register_forward_pre_hook(begins) for mechanism in model.mechanisms()]
    hooks += [mechanism.register_forward_hook(ends) for mechanism in model.mechanisms()]
    autocast = subject.autocast_in(FLOAT32_EVAL)
    more = f", {len(subject.layers)} layers"
    with subject.at(FLOAT32_EVAL, 4, 37, more.replace("2", "two")) as place, autocast:
        model.features(tokens_of(subject, 0, 0)[:, :-1])
        for hook in hooks:
            hook.remove()
        parameters = [id(p) for m in model.mechanisms() for p in m.parameters()]
        words = "layers have one and the same parameter"
        is_one = len(parameters) > len(set(parameters))
        yield Finding("", math.inf if is_one else 0.0, words=words * is_one, place=place)
        for i, (mechanism, call) in enumerate(zip(model.mechanisms(), calls, strict=True)):
            prefix, config = f"blocks.{i}.mix.", subject.layers[i]
            alone = constructed(lambda config=config: config.build(subject.d_model), prefix, seed=0)
            alone.load_state_dict(mechanism.state_dict())
            alone = alone.to(subject.device).eval()
            alone.at_step(LATE)
            hands = bool(subject.before) and isinstance(alone, HandingMechanism)
            found = _again(alone, call.x_BTD, call.taken if hands else None)
            where = f"layer {i} differs from a module of its own"
            yield same_bits(where, found, call.outputs[0], place)
            if hands:
                yield from _handing(subject, alone, call, f"layer {i}", place)
        if subject.decodes and not subject.before:
            x_BTD = calls[0].x_BTD[:, :5]
            one, two = model.mechanisms()
            alone_BTD = subject.decode(one, x_BTD, mode=FLOAT32_EVAL)
            state, other = (mechanism.init_state(len(x_BTD), 5) for mechanism in (one, two))
            outputs = list[Tensor]()
            for x_BD in x_BTD.unbind(1):
                y_BD, state = one.step(x_BD, state)
                _, other = two.step(y_BD, other)
                outputs.append(y_BD)
            found_BTD = torch.stack(outputs, 1)
            yield same_bits("decoding beside another layer", found_BTD, alone_BTD, place)


class _LayerCall(NamedTuple):
    """One call of a layer's mechanism in a model."""

    x_BTD: Tensor
    taken: Handed
    outputs: list[Tensor]  # one: filled when the call ends


def _again(mechanism: Mechanism[Any], x_BTD: Tensor, taken: Handed | None) -> Tensor:
    """Return `y_BTD` of a call outside of its model. `taken` is not changed."""
    with seeded(0):
        if taken is None:
            return mechanism(x_BTD)
        return mechanism(x_BTD, {name: _copy(value) for name, value in taken.items()})


def _handing(
    subject: Subject, mechanism: Mechanism[Any], call: _LayerCall, layer: str, place: Place
) -> Iterator[Finding]:
    """Compare what a layer puts in and reads with what its settings declare."""
    number = int(layer.split()[-1])
    declared = subject.layers[number].gives(subject.d_model)
    handed = {name: _copy(value) for name, value in call.taken.items()}
    with seeded(0):
        mechanism(call.x_BTD, handed)
    for name in sorted(handed.keys() | set(declared)):
        words = ""
        if name in call.taken:
            same = _equal(handed.get(name), call.taken[name])
            words = "" if same else "it changes what it has taken"
        elif name not in declared:
            words = "it puts in what `gives` does not name"
        elif name not in handed:
            words = "`gives` names it, and it is not put in"
        yield Finding(f"{layer}, {name}", math.inf if words else 0.0, words=words, place=place)
    for name in call.taken:
        other = {**call.taken, name: _other(call.taken[name])}
        is_read = not torch.equal(_again(mechanism, call.x_BTD, other), call.outputs[0])
        words = "" if is_read else "`takes` names it, and the output does not depend on it"
        yield Finding(f"{layer}, {name}", math.inf if words else 0.0, words=words, place=place)


def _copy(handed: Any) -> Any:
    """Return the same numbers, which nothing else writes."""
    return _each(handed, torch.clone)


def _other(handed: Any) -> Any:
    """Return other numbers of the same shapes."""
    return _each(handed, lambda x: 1 - 2 * x)


def _each(handed: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return what was handed with each of its tensors changed; other values stay."""
    if isinstance(handed, Tensor):
        return change(handed)
    is_sequence = type(handed) in (tuple, list)
    return type(handed)(_each(part, change) for part in handed) if is_sequence else handed


def _equal(handed: Any, other: Any) -> bool:
    """True if all numbers are the same."""
    if isinstance(handed, Tensor):
        return torch.equal(handed.nan_to_num(), other.nan_to_num())
    if type(handed) in (tuple, list):
        return len(handed) == len(other) and all(map(_equal, handed, other))
    return handed == other
