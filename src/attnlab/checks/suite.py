"""The suite: all properties of one mechanism, as results or as an assertion."""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import torch

from attnlab.checks import (
    causality,
    cost,
    decoding,
    independence,
    numbers,
    purity,
    repetition,
    training,
)
from attnlab.checks.modes import EVAL, seeded
from attnlab.checks.processes import END, restored, results_in_copies, results_of, torch_settings
from attnlab.checks.result import Finding, Property, Result, line_of, mechanism_property, raised
from attnlab.checks.small_configs import other_values, others_stated, small
from attnlab.checks.subject import Subject
from attnlab.config import ConfigError, Problem, is_interrupt
from attnlab.config.problem import with_types
from attnlab.kernels import flash_linear_attention as fla
from attnlab.mechanism import Mechanism, MechanismConfig
from attnlab.model.handing import givers_alone

_WIDTHS = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096)


def check_properties(  # noqa: PLR0913  one parameter per option
    mechanism: MechanismConfig | type[MechanismConfig] | str,
    *,
    d_model: int | None = None,
    seed: int = 0,
    quick: bool = False,
    batch_size: int | None = None,
    seq_len: int | None = None,
    isolated: bool = False,
    varies: bool | None = None,
) -> list[Result]:
    """Return one result per property of the contract.

    Args:
        mechanism: a config, which is checked as it is; or a class, a kind (`"mla"`) or a place
            (`"my_mechanism.py:MyAttention"`), which is checked with its default settings and a
            window, top-k or chunk of at most 16.
        d_model: the model width; the smallest width that the settings allow by default.
        seed: the seed of parameters and inputs.
        quick: True for fewer shapes and modes, as `attnlab run` does before training.
        batch_size: sequences per batch of training, to be tried, too, with `seq_len`.
        seq_len: tokens per sequence of training.
        isolated: True to check in a copy of this process, which a crash ends alone.
        varies: True to try other settings, too, such as odd windows; by default for kinds.

    If a repeated call differs or changes something else, that is the only result: nothing else can
    be judged. An exception that the mechanism raises violates the property, which then has its
    message.

    Raises:
        ValueError: an unknown kind.
        ValueError: the settings build no mechanism; the message names the line.
        ConfigError: settings that allow no width, or not the given one; or it takes tensors of an
            earlier layer, and has no `giver`. It is a ValueError.

    >>> results = check_properties("identity", quick=True)
    >>> all(result.holds for result in results)
    True
    """
    config = mechanism if isinstance(mechanism, MechanismConfig) else small(mechanism)
    width = fitting_width(config) if d_model is None else d_model
    require_buildable(config, width)
    before = givers_alone(config, width)
    subject = Subject(
        config=config,
        d_model=width,
        seed=seed,
        quick=quick,
        batch_size=batch_size,
        seq_len=seq_len,
        varies=not isinstance(mechanism, MechanismConfig) if varies is None else varies,
        before=before,
    )
    return (
        results_in_copies(PROPERTIES, [subject])[0]
        if isolated
        else [*results_of(PROPERTIES, subject)]
    )


def require_buildable(config: MechanismConfig, d_model: int) -> None:
    """Raise ValueError, with the line of the user's file, if the settings build no mechanism."""
    problems = list(config.problems_at(d_model))
    if problems:
        raise ConfigError(problems)
    build, name = type(config).build, type(config).__name__
    before = torch_settings()
    try:
        with seeded(0):
            built: Any = config.build(d_model, 0.0)
    except ConfigError:
        raise
    except BaseException as error:
        if is_interrupt(error):
            raise
        said = raised(error)
        where = "" if " (at " in said else f" (at {line_of(build)})"
        advice = "it takes (self, d_model, dropout=0.0) and returns an attnlab.Mechanism"
        raise ValueError(f"{name}.build {said}{where}; {advice}") from None
    finally:
        restored(before)  # so that the check finds the constructor change them
    if not isinstance(built, Mechanism):
        raise ValueError(
            f"{name}.build returned {type(built).__name__}, which is no attnlab.Mechanism "
            f"(at {line_of(build)}): derive it from attnlab.Mechanism"
        )


@mechanism_property(
    "it holds at other settings, too",
    cause="a width that is divided by the wrong number, a window, top-k or chunk that is taken "
    "for even, or a setting that only some of `forward`, `step` and `cost` read; settings that are "
    "impossible belong into `problems`",
)
def other_settings(subject: Subject) -> Iterator[Finding]:
    """Judge a few properties at other settings of a kind that is checked by its name."""
    for label, other in _with_other_settings(subject):
        for each in _AT_OTHER_SETTINGS:
            if each.name in subject.violated:
                continue  # it is reported at the settings that were given
            if each is independence.prefixes and subject.decodes:
                continue  # steps see no length
            result = each.check(other)
            words = "" if result.holds else f"{each.name}: {result.how_much}"
            where = f"{label}, {result.where}" if result.where else label
            yield Finding(where, 0.0 if result.holds else math.inf, words=words)


def _with_other_settings(subject: Subject) -> Iterator[tuple[str, Subject]]:
    """Yield the subject at each group of `other_values`, as far as the settings allow it."""
    uncertain = others_stated(subject.config)
    for wanted in other_values(subject.config) if subject.varies and not subject.quick else ():
        found = {False: ("", subject), True: ("", subject)}  # without, and with uncertain ones
        for change in filter(None, wanted):
            label, tried = found[True]
            try:
                config = replace(tried.config, **change)
                require_buildable(config, width := fitting_width(config))
            except ValueError:
                continue  # it says that it does not support them
            if config.takes(width) and not subject.before:
                continue  # a layer before it would be judged, too
            words = ", ".join(f"{name}={value}" for name, value in change.items())
            before = givers_alone(config, width)
            changed = {"config": config, "d_model": width, "quick": True, "before": before}
            new = f"{label}, {words}" if label else words, replace(subject, **changed)
            found |= {True: new} if change in uncertain else {False: new, True: new}
        label, other = found[found[True] == found[False] or _runs(found[True][1])]
        if label:
            yield label, other


def _runs(subject: Subject) -> bool:
    """Return whether a forward pass of many tokens ends without an error."""
    with suppress(Exception), torch.no_grad():
        subject.forward(subject.build(), EVAL, subject.tokens(1, cost.CONTEXT))
        return True
    return False


_AT_OTHER_SETTINGS = (
    numbers.shapes,
    independence.prefixes,
    decoding.steps,
    cost.params,
    cost.flops,
    cost.bytes_of_state,
)


PROPERTIES: tuple[Property, ...] = (
    purity.repeated,  # if it is violated, nothing else is judged
    numbers.shapes,
    repetition.calls,  # before tables of all modules have grown
    causality.values,
    causality.gradients,
    independence.prefixes,
    decoding.shapes,
    decoding.steps,
    decoding.prompts,
    decoding.in_turns,
    decoding.in_narrower_dtypes,
    independence.independence,
    independence.decoding_independence,
    independence.dependence,
    training.trained,
    numbers.derivatives,
    training.in_training,
    numbers.finite,
    numbers.dtypes_inside,
    numbers.roundings,
    cost.params,
    cost.flops,
    cost.forward_flops,
    cost.bytes_of_state,
    repetition.seeds,
    independence.layers,
    repetition.evaluation,
    cost.memory,
    repetition.weights_round_trip,
    repetition.json_round_trip,
    other_settings,
)


def send_results(pipe: Connection) -> None:
    """Send the results of a mechanism that comes by the pipe, in a process of its own."""
    fla_path, names, settings = pipe.recv()
    if fla_path is not None:
        fla.use_fla(fla_path)
    settings["config"] = MechanismConfig.from_dict(settings["config"])
    settings["before"] = tuple(map(MechanismConfig.from_dict, settings["before"]))
    properties = [each for each in PROPERTIES if each.name in names]
    for result in results_of(properties, Subject(**settings)):
        pipe.send(result)
    pipe.send(END)


@with_types
def assert_correct(
    mechanism: MechanismConfig | type[MechanismConfig] | str,
    *,
    d_model: int | None = None,
    quick: bool = False,
    batch_size: int | None = None,
    seq_len: int | None = None,
) -> None:
    """Raise AssertionError if a property is violated: which one, where and by how much.

    The arguments are those of `check_properties`.
    """
    results = check_properties(
        mechanism,
        d_model=d_model,
        quick=quick,
        batch_size=batch_size,
        seq_len=seq_len,
        isolated=True,
    )
    violated = [result for result in results if not result.holds]
    if violated:
        raise AssertionError("\n".join(describe(result) for result in violated))


def describe(result: Result) -> str:
    """Return a few lines of text on one property."""
    where = f", {result.where}" if result.where else ""
    holds = f"\n  {result.holds_at}" if result.holds_at else ""
    cause = f"\n  usual cause: {result.cause}" if result.cause else ""
    return f"{result.verdict}: {result.name}: {result.how_much}{where}{holds}{cause}"


def fitting_width(config: MechanismConfig) -> int:
    """Return the smallest usual model width that the settings allow.

    Raises ConfigError if they allow none.
    """
    problems = list[Problem]()
    for width in _WIDTHS:
        problems = list(config.problems_at(width))
        if not problems:
            return width
    listed = ", ".join(str(width) for width in _WIDTHS)
    none = Problem("", f"allows none of the model widths {listed}: give d_model")
    raise ConfigError([none, *problems])
