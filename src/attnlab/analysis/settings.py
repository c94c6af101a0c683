"""The settings of a study: shared by all variants, or particular to one; and in words."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, cast

from attnlab.analysis.sentences import with_others
from attnlab.config import drop_unset
from attnlab.record import NO_INFLUENCE

Settings = Mapping[str, Any]
KERNEL = "kernel"
WINDOWED, PLAIN = "sliding_window", "grouped_query"
OF_ONE_RUN = ("variant", "seed", "identity")


def of_variant(config: Settings) -> dict[str, Any]:
    """Return a run's settings without those that differ between runs of a variant."""
    return {name: value for name, value in config.items() if name not in OF_ONE_RUN}


def same_settings(configs: Mapping[str, Settings]) -> tuple[tuple[str, ...], ...]:
    """Return the names in groups of equal settings, in order.

    Settings are equal if they give the same result: one that is absent equals one that is none.

    >>> same_settings({"a": {"seed": 0, "window": 2}, "b": {"window": 4}, "c": {"window": 2}})
    (('a', 'c'), ('b',))
    """
    groups: list[tuple[Settings, list[str]]] = []
    for name, config in configs.items():
        settings = drop_unset(of_variant(config))
        train = settings.get("train", {}).items()
        settings["train"] = {name: of for name, of in train if name not in NO_INFLUENCE}
        if "model" in settings:
            settings["model"] = layer_by_layer(settings["model"])
        same = next((names for other, names in groups if other == settings), None)
        if same is None:
            groups.append((settings, [name]))
        else:
            same.append(name)
    return tuple(tuple(names) for _, names in groups)


def shared_and_own(configs: Mapping[str, Settings]) -> tuple[Settings, Mapping[str, Settings]]:
    """Return `{dotted path: value}` shared by all variants, and the rest by variant.

    The mechanisms of the layers, and any other list, count as one value. A setting that is absent
    equals one that is none.
    """
    trees = {variant: flat(of_variant(config)) for variant, config in configs.items()}
    counted = [flat(drop_unset(of_variant(config))) for config in configs.values()]
    shared: dict[str, Any] = {}
    for path, value in (item for settings in trees.values() for item in settings.items()):
        values = [settings.get(path) for settings in counted]
        if all(value == values[0] for value in values):
            shared.setdefault(path, value)
    own = {
        variant: {path: value for path, value in settings.items() if path not in shared}
        for variant, settings in trees.items()
    }
    return shared, own


def describe(value: Any) -> str:
    """Return a setting in words, on one line.

    >>> describe([{"kind": "delta", "head_dim": 32}] * 3 + [{"kind": "mha"}])
    '3 x delta(head_dim=32), mha'
    >>> describe({"default": {"kind": "delta"}, "layers": {"5": {"kind": "mha"}}})
    'delta, mha in layer 5'
    """
    if isinstance(value, Mapping) and _by_layer(value):
        layers = {int(layer): describe(item) for layer, item in value["layers"].items()}
        return with_others(describe(value["default"]) if value["default"] else "", layers)
    if isinstance(value, Mapping):
        fields = dict(cast("Settings", value))
        kind = fields.pop("kind", "")
        given = {name: item for name, item in fields.items() if item is not None}
        inside = ", ".join(f"{name}={describe(item)}" for name, item in given.items())
        return f"{kind}({inside})" if inside else str(kind)
    if isinstance(value, list | tuple):
        runs = [(len(list(same)), text) for text, same in groupby(map(describe, value))]
        return ", ".join(text if count == 1 else f"{count} x {text}" for count, text in runs)
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def of_training(configs: Mapping[str, Settings]) -> str:
    """Return schedule and optimizer of each variant in words.

    >>> of_training({"a": {"train": {"schedule": {"kind": "warmup_stable_decay",
    ...     "decay_fraction": 0.2, "shape": "linear"}}}})
    'constant after the warm-up, with linear decay to zero in the last 20 % of the steps; AdamW'
    >>> of_training({"a": {}, "b": {}})
    'cosine decay after the warm-up; AdamW'
    """
    names = dict[str, list[str]]()
    for name, config in configs.items():
        names.setdefault(_training(config.get("train", {})), []).append(name)
    if len(names) == 1:
        return next(iter(names))
    return "; ".join(f"{words} in {', '.join(those)}" for words, those in names.items())


def _training(train: Settings) -> str:
    optimizer = train.get("optimizer")
    words = _schedule(train.get("schedule"))
    if optimizer is None:
        return f"{words}; AdamW"
    return f"{words}, with {describe(optimizer)} for the matrices of the blocks"


def _schedule(settings: Settings | None) -> str:
    if settings is None:
        return "cosine decay after the warm-up"
    if settings["kind"] != "warmup_stable_decay":
        return f"schedule {describe(settings)}"
    shape = {"linear": "linear decay", "sqrt": "decay as 1 - sqrt"}[settings["shape"]]
    last = f"{100 * settings['decay_fraction']:.3g} % of the steps"
    return f"constant after the warm-up, with {shape} to zero in the last {last}"


def without_kernels(settings: Any) -> Any:
    """Return the settings without every `kernel` in them, at any depth.

    >>> without_kernels({"mechanisms": [{"kind": "mha", "kernel": "flash"}], "d_model": 8})
    {'mechanisms': [{'kind': 'mha'}], 'd_model': 8}
    """
    if isinstance(settings, Mapping):
        items = cast("Mapping[str, Any]", settings).items()
        return {name: without_kernels(value) for name, value in items if name != KERNEL}
    if isinstance(settings, list | tuple):
        return [without_kernels(value) for value in cast("Sequence[Any]", settings)]
    return settings


def covering_windows(config: Settings) -> tuple[int, ...]:
    """Return the windows that cover the whole training sequence: plain attention in training.

    >>> covering_windows({"model": {"mechanisms": [{"window": 8}]}, "train": {"seq_len": 8}})
    (8,)
    """
    length = config.get("train", {}).get("seq_len")
    found = _windows(config.get("model", {}).get("mechanisms"))
    return tuple(window for window in dict.fromkeys(found) if length and window >= length)


def _windows(settings: Any) -> tuple[int, ...]:
    if isinstance(settings, Mapping):
        own = settings.get("window")
        inside = [of for value in cast("Settings", settings).values() for of in _windows(value)]
        return (*((own,) if isinstance(own, int) else ()), *inside)
    if isinstance(settings, list | tuple):
        return tuple(of for value in cast("Sequence[Any]", settings) for of in _windows(value))
    return ()


def as_computed(config: Settings) -> dict[str, Any]:
    """Return the settings without kernels, and windows that cover the sequence as plain attention.

    >>> as_computed({
    ...     "model": {"mechanisms": [{"kind": "sliding_window", "window": 8, "kernel": "flex"}]},
    ...     "train": {"seq_len": 8},
    ... })["model"]
    {'mechanisms': [{'kind': 'grouped_query'}]}
    """
    plain = covering_windows(config)

    def without(settings: Any) -> Any:
        if isinstance(settings, Mapping):
            of = {name: without(value) for name, value in cast("Settings", settings).items()}
            if of.get("kind") == WINDOWED and of.get("window") in plain:
                del of["window"]
                of["kind"] = PLAIN
            return of
        if isinstance(settings, list | tuple):
            return [without(value) for value in cast("Sequence[Any]", settings)]
        return settings

    return without(without_kernels(config))


def kernels_in(settings: Any) -> tuple[str, ...]:
    """Return every `kernel` in the settings, in order.

    >>> kernels_in({"mechanisms": [{"kernel": "flash"}, {"kernel": "math"}], "d_model": 8})
    ('flash', 'math')
    """
    if isinstance(settings, Mapping):
        items = cast("Mapping[str, Any]", settings).items()
        found = [(str(v),) if name == KERNEL else kernels_in(v) for name, v in items]
    elif isinstance(settings, list | tuple):
        found = [kernels_in(value) for value in cast("Sequence[Any]", settings)]
    else:
        return ()
    return tuple(kernel for inside in found for kernel in inside)


def flat(settings: Settings, prefix: str = "") -> dict[str, Any]:
    """Return nested settings as `{dotted path: value}`; lists and layer patterns are one value."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and not _by_layer(value):
            found |= flat(cast("Settings", value), f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def layer_by_layer(model: Settings) -> Settings:
    """Return the model settings with one mechanism per layer, in order.

    >>> layer_by_layer({"n_layers": 3, "mechanisms": {"default": "a", "layers": {"1": "b"}}})
    {'n_layers': 3, 'mechanisms': ['a', 'b', 'a']}
    """
    mechanisms, layers = model.get("mechanisms"), range(model.get("n_layers", 0))
    if isinstance(mechanisms, Mapping):
        named = cast("Settings", mechanisms)
        default = named.get("default")
        in_order = [named["layers"].get(str(layer), default) for layer in layers]
    elif mechanisms:
        in_order = [mechanisms[layer % len(mechanisms)] for layer in layers]
    else:
        return model
    return {**model, "mechanisms": in_order or mechanisms}


def _by_layer(value: Settings) -> bool:
    """True if these are mechanisms given by layer (`attnlab.model.layer_pattern`)."""
    return set(value) == {"default", "layers"}
