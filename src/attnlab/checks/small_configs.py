"""Settings made small enough to be checked in seconds, where nothing else is asked for."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import attnlab.mechanisms  # noqa: F401  # pyright: ignore[reportUnusedImport]  the zoo of kinds
from attnlab.checks.subject import bounds
from attnlab.config import ConfigError
from attnlab.mechanism import MechanismConfig

SMALL = 16  # window, top-k or chunk of a kind that is checked by its name


def small(
    kind: type[MechanismConfig] | str, settings: Mapping[str, Any] | None = None
) -> MechanismConfig:
    """A kind with these settings and its defaults, but a window, top-k or chunk of at most 16.

    Raises ValueError for a kind that is not there, and ConfigError for impossible settings.

    >>> small("sliding_window").window, small("sliding_window", {"window": 40}).window
    (16, 40)
    """
    cls = MechanismConfig.of_kind(kind) if isinstance(kind, str) else kind
    given = settings or {}
    return shortened(cls.from_dict({"kind": cls.kind(), **given}), SMALL, keep=given)


def shortened(config: MechanismConfig, limit: int, keep: Collection[str] = ()) -> MechanismConfig:
    """The same with a window, top-k or chunk of at most `limit`, where the settings allow it.

    What `keep` names stays as it is.
    """
    long = {name for name, value in bounds(config).items() if value > limit}
    changes = dict.fromkeys(long.difference(keep), limit)
    try:
        return replace(config, **changes)
    except ConfigError:
        return config
