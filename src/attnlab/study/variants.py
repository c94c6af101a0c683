"""The variants of a study: described in words, their data read, and built before any training."""

import dataclasses
import traceback
from collections.abc import Callable, Iterator, Mapping
from inspect import signature
from typing import Any

from attnlab.analysis.settings import of_training
from attnlab.config import (
    ConfigError,
    OwnCodeError,
    differences,
    is_interrupt,
    is_own,
    own_error,
)
from attnlab.data import Corpus, DataConfig, Places
from attnlab.data.batches import window_problems
from attnlab.mechanism import Cost, Mechanism, MechanismConfig, without_memory
from attnlab.study.study import Study
from attnlab.training.run import RunConfig


def describe_variants(study: Study) -> dict[str, str]:
    """Return the mechanisms of each variant and its other differences from the baseline.

    >>> from attnlab.study.targets import load_study
    >>> described = describe_variants(load_study("quickstart"))
    >>> described["sliding_64"]
    'sliding_window(window=64)'
    """
    assert study.baseline is not None
    baseline = _without_mechanisms(study.variants[study.baseline])
    described = dict[str, str]()
    for name, config in study.variants.items():
        others = differences(baseline, _without_mechanisms(config))
        changed = [f"{path}={value}" for path, (_, value) in others.items()]
        described[name] = "; ".join([_mechanisms(config), *changed])
    return described


def _mechanisms(config: RunConfig) -> str:
    """Return each distinct mechanism, with its layers if there are several."""
    layers = dict[MechanismConfig, list[str]]()
    for layer, mechanism in enumerate(config.model.per_layer()):
        layers.setdefault(mechanism, []).append(str(layer))
    if len(layers) == 1:
        return _mechanism(next(iter(layers)))
    return ", ".join(
        f"{_mechanism(mechanism)} in {'layer' if len(at) == 1 else 'layers'} {' '.join(at)}"
        for mechanism, at in layers.items()
    )


def _mechanism(mechanism: MechanismConfig) -> str:
    """Return kind and settings that differ from the defaults."""
    values = mechanism.to_dict()
    changed = [
        f"{field.name}={values[field.name]}"
        for field in dataclasses.fields(mechanism)
        if getattr(mechanism, field.name) != field.default
    ]
    return f"{mechanism.kind()}({', '.join(changed)})" if changed else mechanism.kind()


def _without_mechanisms(config: RunConfig) -> dict[str, object]:
    tree = config.to_dict()
    return {**tree, "model": {**tree["model"], "mechanisms": None}}


def require_buildable(study: Study) -> tuple[str, ...]:
    """Return a sentence for each optional method that a mechanism of the user's lacks.

    Raises OwnCodeError if one cannot be built, or states no valid cost. The message is one line
    with file, line and exception.
    """
    done, notes = set[tuple[MechanismConfig, int, float]](), list[str]()
    for run in study.variants.values():
        for mechanism in run.model.per_layer():
            key = mechanism, run.model.d_model, run.model.dropout
            if is_own(type(mechanism)) and key not in done:
                done.add(key)
                notes.extend(_lacks(mechanism, _built(*key)))
    return tuple(dict.fromkeys(notes))


def _lacks(config: MechanismConfig, mechanism: Mechanism[Any]) -> Iterator[str]:
    if not config.states_cost:
        yield (
            f"{type(config).__name__} has no `cost`: its FLOPs and decode state are not checked, "
            "and tables do not have them"
        )
    if not mechanism.decodes:
        yield (
            f"{type(mechanism).__name__} has no `init_state` and `step`: decoding is not checked, "
            "and attnlab generate reads the whole text for each token"
        )


def _built(mechanism: MechanismConfig, d_model: int, dropout: float) -> Mechanism[Any]:
    def build() -> object:
        return without_memory(lambda: mechanism.build(d_model, dropout))

    built = _returned(mechanism.build, build, Mechanism)
    if mechanism.states_cost:
        _returned(mechanism.cost, lambda: mechanism.cost(d_model, 4, 2), Cost)
        _returned(mechanism.forward_flops, lambda: mechanism.forward_flops(d_model, 4), int)
    return built


def _returned(method: Callable[..., Any], call: Callable[[], object], expected: type) -> Any:
    """Return the call's result; raise OwnCodeError if it fails or has another type."""
    code = getattr(method, "__code__", None)
    place = f"{code.co_filename}:{code.co_firstlineno}: {method.__qualname__}" if code else "?"
    try:
        found = call()
    except BaseException as error:
        if is_interrupt(error):
            raise
        line = "".join(traceback.format_exception_only(error)).strip().splitlines()[0]
        meant, declared = "", getattr(MechanismConfig, getattr(method, "__name__", ""), None)
        if isinstance(error, TypeError) and declared is not None:
            meant = f"; its arguments are {', '.join(signature(declared).parameters)}"
        raise OwnCodeError(own_error(error) or f"{place}: {line}{meant}") from error
    if not isinstance(found, expected):
        kind = type(found).__name__
        raise OwnCodeError(f"{place}: returns {kind}, not {expected.__name__}")
    return found


def notes_on_training(study: Study) -> Iterator[str]:
    """Yield schedule and optimizer, unless all variants have the default."""
    settings = {name: config.to_dict() for name, config in study.variants.items()}
    if (words := of_training(settings)) != of_training({"": {}}):
        yield f"learning rate: {words}"


def read_data(study: Study, places: Places) -> dict[str, Corpus]:
    """Return each variant's data; it is read, tokenized and cached before any worker needs it.

    Raises:
        DataError: data is missing or unfit.
        ConfigError: the training split is shorter than one window, or the validation split than
            one of `eval.lengths`.
    """
    found = dict[DataConfig, Corpus]()
    for config in study.variants.values():
        if config.data not in found:
            found[config.data] = config.data.load(places)
    by_variant = {name: found[config.data] for name, config in study.variants.items()}
    problems = dict.fromkeys(
        problem
        for name, config in study.variants.items()
        for problem in window_problems(
            by_variant[name], config.train.seq_len, config.eval.lengths or ()
        )
    )
    if problems:
        raise ConfigError(problems)
    return by_variant


def notes_on_data(study: Study, read: Mapping[str, Corpus]) -> list[str]:
    """Return what the user should know of the data before training, a sentence each."""
    notes = list[str]()
    for corpus in {id(corpus): corpus for corpus in read.values()}.values():
        notes += [*corpus.notes, *corpus.overlaps()]
    for name, corpus in read.items():
        length = study.variants[name].train.seq_len
        notes += [
            f"the {split} split has {len(tokens)} tokens, less than one window of train.seq_len="
            f"{length}: its loss is that of one shorter window"
            for split, tokens in corpus.splits().items()
            if len(tokens) <= length
        ]
    return list(dict.fromkeys(notes))
