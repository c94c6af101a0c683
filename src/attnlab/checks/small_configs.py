"""Settings that are small enough for a check to take seconds."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import attnlab.mechanisms  # noqa: F401  # pyright: ignore[reportUnusedImport]  registers the kinds
from attnlab.checks.subject import bounds
from attnlab.config import ConfigError
from attnlab.mechanism import MechanismConfig

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
