"""Compare two trees of settings, given as JSON values as from `Config.to_dict`.

Unset settings do not count: a record that was written before a setting existed equals one in which
that setting is none or false.
"""

from typing import Any, cast

from attnlab.config.problem import join


def differences(first: Any, second: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Return `{dotted path: (first value, second value)}` where two trees differ.

    >>> differences({"train": {"steps": 1}, "seed": 0}, {"train": {"steps": 2}, "seed": 0})
    {'train.steps': (1, 2)}
    """
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        first, second = dict(enumerate(first)), dict(enumerate(second))
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return {} if first == second else {path: (first, second)}
    found: dict[str, tuple[Any, Any]] = {}
    for key in dict.fromkeys([*first, *second]):
        found |= differences(first.get(key), second.get(key), join(path, str(key)))
    return found


def drop_unset(settings: Any) -> Any:
    """Return a tree without the fields that are none or false, and without empty sections.

    >>> drop_unset({"window": 64, "bias": False, "norm": {"eps": None, "gain": 0}})
    {'window': 64, 'norm': {'gain': 0}}
    >>> drop_unset({"seed": 0, "eval": {"lengths": None}})
    {'seed': 0}
    """
    if isinstance(settings, dict):
        items = cast("dict[str, Any]", settings).items()
        kept = {
            name: drop_unset(item) for name, item in items if item is not None and item is not False
        }
        return {name: item for name, item in kept.items() if item != {}}
    if isinstance(settings, list):
        return [drop_unset(value) for value in cast("list[Any]", settings)]
    return settings
