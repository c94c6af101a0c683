"""The suite: all properties of one mechanism, as results or as an assertion."""

from collections.abc import Generator
from contextlib import contextmanager

import torch

from attnlab.checks import (
    batch_independence,
    causality,
    cost,
    decoding,
    numbers,
    purity,
    repetition,
    training,
)
from attnlab.checks.result import Property, Result
from attnlab.checks.small_configs import small
from attnlab.checks.subject import Subject
from attnlab.config import ConfigError, Problem
from attnlab.mechanism import MechanismConfig

PROPERTIES: tuple[Property, ...] = (
    purity.repeated,  # if it is violated, nothing else is judged
    numbers.shapes,
    causality.values,
    causality.gradients,
    causality.prefixes,
    decoding.steps,
    decoding.prompts,
    decoding.in_turns,
    decoding.in_bfloat16,
    batch_independence.independence,
    batch_independence.decoding_independence,
    training.trained,
    numbers.derivatives,
    numbers.finite,
    cost.params,
    cost.flops,
    cost.forward_flops,
    cost.bytes_of_state,
    repetition.seeds,
    repetition.layers,
    repetition.calls,
    repetition.evaluation,
    purity.memory,
    repetition.json_round_trip,
)

_WIDTHS = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096)


def check_properties(
    mechanism: MechanismConfig | type[MechanismConfig] | str,
    *,
    d_model: int | None = None,
    seed: int = 0,
    quick: bool = False,
    batch_size: int | None = None,
    seq_len: int | None = None,
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

    If a repeated call differs or changes something else, that is the only result: nothing else can
    be judged. An exception that the mechanism raises violates the property, which then has its
    message.

    Raises:
        ValueError: an unknown kind.
        ConfigError: settings that allow no width, or not the given one. It is a ValueError.

    >>> results = check_properties("identity", quick=True)
    >>> all(result.holds for result in results)
    True
    """
    config = mechanism if isinstance(mechanism, MechanismConfig) else small(mechanism)
    width = fitting_width(config) if d_model is None else d_model
    problems = list(config.problems_at(width))
    if problems:
        raise ConfigError(problems)
    subject = Subject(
        config=config,
        d_model=width,
        seed=seed,
        quick=quick,
        batch_size=batch_size,
        seq_len=seq_len,
    )
    with _one_thread():
        first = PROPERTIES[0].check(subject)
        if not first.holds:
            return [first]
        return [first, *(each.check(subject) for each in PROPERTIES[1:])]


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
        mechanism, d_model=d_model, quick=quick, batch_size=batch_size, seq_len=seq_len
    )
    violated = [result for result in results if not result.holds]
    if violated:
        raise AssertionError("\n".join(describe(result) for result in violated))


def describe(result: Result) -> str:
    """Return a few lines of text on one property."""
    where = f", {result.where}" if result.where else ""
    holds = f"\n  {result.holds_at}" if result.holds_at else ""
    return (
        f"{result.verdict}: {result.name}: {result.how_much}{where}{holds}\n"
        f"  usual cause: {result.cause}"
    )


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


@contextmanager
def _one_thread() -> Generator[None]:
    """Use one thread: checks are many small operations, which several threads would slow down."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
