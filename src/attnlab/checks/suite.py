"""All properties of one mechanism, and what to do with the verdicts."""

from collections.abc import Generator
from contextlib import contextmanager

import torch

from attnlab.checks import batch_independence as rows
from attnlab.checks import causality, cost, decoding, numbers, repetition
from attnlab.checks.result import Property, Result
from attnlab.checks.small_configs import small
from attnlab.checks.subject import Subject
from attnlab.config import ConfigError, Problem
from attnlab.mechanism import MechanismConfig

PROPERTIES: tuple[Property, ...] = (
    numbers.shapes,
    causality.values,
    causality.gradients,
    causality.prefixes,
    decoding.steps,
    decoding.prompts,
    rows.independence,
    rows.decoding_independence,
    numbers.trained,
    numbers.finite,
    cost.params,
    cost.flops,
    cost.bytes_of_state,
    repetition.seeds,
    repetition.calls,
    repetition.evaluation,
    repetition.json_round_trip,
)

_WIDTHS = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096)


def judge(
    mechanism: MechanismConfig | type[MechanismConfig] | str,
    *,
    d_model: int | None = None,
    seed: int = 0,
    quick: bool = False,
) -> list[Result]:
    """Whether a mechanism keeps every promise of the contract; one result a property.

    `mechanism` is a config, taken as it stands, or a class, a kind (`"mla"`) or a place
    (`"my_mechanism.py:MyAttention"`), taken with its default settings and a window, top-k or
    chunk of at most 16. `d_model` is the smallest width that the settings fit, unless given;
    parameters and inputs are drawn from `seed`. `quick` looks at fewer shapes and modes: what
    `attnlab run` does before it trains.

    What the mechanism raises is a broken property with the message, and no exception. Raises
    ValueError for a kind that is not there, and ConfigError (a ValueError) for settings that fit
    no width, or not the one given.

    >>> results = judge("identity", quick=True)
    >>> all(result.holds for result in results)
    True
    """
    config = mechanism if isinstance(mechanism, MechanismConfig) else small(mechanism)
    width = fitting_width(config) if d_model is None else d_model
    problems = list(config.problems_at(width))
    if problems:
        raise ConfigError(problems)
    subject = Subject(config=config, d_model=width, seed=seed, quick=quick)
    with _one_thread():
        return [promised.judge(subject) for promised in PROPERTIES]


def assert_correct(
    mechanism: MechanismConfig | type[MechanismConfig] | str,
    *,
    d_model: int | None = None,
    quick: bool = False,
) -> None:
    """`judge` for a test: raises AssertionError that says what is broken, where and by how much."""
    broken = [r for r in judge(mechanism, d_model=d_model, quick=quick) if not r.holds]
    if broken:
        raise AssertionError("\n".join(describe(result) for result in broken))


def describe(result: Result) -> str:
    """One property in two lines of text."""
    where = f", {result.where}" if result.where else ""
    return (
        f"{result.verdict}: {result.name}: {result.how_much}{where}\n  usual cause: {result.cause}"
    )


def fitting_width(config: MechanismConfig) -> int:
    """The smallest of some usual model widths that the settings fit. Raises ConfigError if none."""
    problems = list[Problem]()
    for width in _WIDTHS:
        problems = list(config.problems_at(width))
        if not problems:
            return width
    listed = ", ".join(str(width) for width in _WIDTHS)
    none = Problem("", f"fits none of the model widths {listed}: give d_model")
    raise ConfigError([none, *problems])


@contextmanager
def _one_thread() -> Generator[None]:
    """Checks are many small operations, for which threads would only wait on each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
