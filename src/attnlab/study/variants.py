"""The variants of a study in words: the mechanisms of each, and what else differs."""

import dataclasses

from attnlab.config import differences
from attnlab.mechanism import MechanismConfig
from attnlab.study.study import Study
from attnlab.training.run import RunConfig


def describe_variants(study: Study) -> dict[str, str]:
    """Return the mechanisms of each variant and its other differences from the baseline.

    >>> from attnlab.study.load import load_study
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
