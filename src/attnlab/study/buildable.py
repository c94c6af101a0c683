"""The user's own mechanisms of a study, built once before anything is checked or trained."""

import traceback
from collections.abc import Callable
from typing import Any

import torch

from attnlab.config import OwnCodeError, is_own, own_error
from attnlab.mechanism import Cost, Mechanism, MechanismConfig
from attnlab.study.study import Study


def require_buildable(study: Study) -> None:
    """Raise OwnCodeError if a mechanism of the user's cannot be built, or states no valid cost.

    The message is one line with file, line and exception.
    """
    done = set[tuple[MechanismConfig, int, float]]()
    for run in study.variants.values():
        for mechanism in run.model.per_layer():
            key = mechanism, run.model.d_model, run.model.dropout
            if is_own(type(mechanism)) and key not in done:
                done.add(key)
                _require(*key)


def _require(mechanism: MechanismConfig, d_model: int, dropout: float) -> None:
    def build() -> object:
        try:
            with torch.device("meta"):  # without memory
                return mechanism.build(d_model, dropout)
        except (NotImplementedError, RuntimeError):  # it computes with values
            return mechanism.build(d_model, dropout)

    _returned(mechanism.build, build, Mechanism)
    if mechanism.states_cost:
        _returned(mechanism.cost, lambda: mechanism.cost(d_model, 4, 2), Cost)
        _returned(mechanism.forward_flops, lambda: mechanism.forward_flops(d_model, 4), int)


def _returned(method: Callable[..., Any], call: Callable[[], object], expected: type) -> None:
    """Raise OwnCodeError if the call fails or returns another type, with the method's place."""
    code = getattr(method, "__code__", None)
    place = f"{code.co_filename}:{code.co_firstlineno}: {method.__qualname__}" if code else "?"
    try:
        found = call()
    except (Exception, SystemExit) as error:
        line = "".join(traceback.format_exception_only(error)).strip().splitlines()[0]
        raise OwnCodeError(own_error(error) or f"{place}: {line}") from error
    if not isinstance(found, expected):
        kind = type(found).__name__
        raise OwnCodeError(f"{place}: returns {kind}, not {expected.__name__}")
