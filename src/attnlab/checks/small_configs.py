"""Settings that are small enough for a check to take seconds."""

import inspect
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from typing import Any

import attnlab.mechanisms  # noqa: F401  # pyright: ignore[reportUnusedImport]  registers the kinds
from attnlab.config import ConfigError
from attnlab.mechanism import MechanismConfig

REACH_WORDS = ("window", "top_k", "chunk", "block")  # in names of fields that bound the reach
SMALL = 16  # tokens: window, top-k or chunk of a kind that is checked by its name


def small(
    kind: type[MechanismConfig] | str, settings: Mapping[str, Any] | None = None
) -> MechanismConfig:
    """Return a kind with its default settings, but a window, top-k or chunk of at most 16.

    `settings` replace the defaults and stay as they are. Raises ValueError for an unknown kind,
    and ConfigError for impossible settings.

    >>> small("sliding_window").window, small("sliding_window", {"window": 40}).window
    (16, 40)
    """
    cls = MechanismConfig.of_kind(kind) if isinstance(kind, str) else kind
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    if missing:
        path, line = inspect.getsourcefile(cls), inspect.getsourcelines(cls)[1]
        raise ValueError(f"{path}:{line}: {cls.__name__} has no {', '.join(missing)}: define it")
    given = settings or {}
    return shortened(cls.from_dict({"kind": cls.kind(), **given}), SMALL, keep=given)


def shortened(config: MechanismConfig, limit: int, keep: Collection[str] = ()) -> MechanismConfig:
    """Return the settings with a window, top-k or chunk of at most `limit`, if they allow it.

    Fields in `keep` stay as they are.
    """
    long = {name for name, value in bounds(config).items() if value > limit}
    changes = dict.fromkeys(long.difference(keep), limit)
    try:
        return replace(config, **changes)
    except ConfigError:
        return config


def bounds(config: MechanismConfig) -> dict[str, int]:
    """Return the settings that bound how many tokens a token sees at once, by name.

    >>> from attnlab.mechanisms.sliding_window import SlidingWindow
    >>> bounds(SlidingWindow(window=64))
    {'window': 64}
    """
    named = {
        field.name: getattr(config, field.name)
        for field in fields(config)
        if any(word in field.name for word in REACH_WORDS)
    }
    return {name: value for name, value in named.items() if type(value) is int}
