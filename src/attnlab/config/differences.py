"""Where two trees of settings differ."""

from typing import Any

from attnlab.config.problem import join


def differences(first: Any, second: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Of two trees of JSON values, as from `to_dict`: `{dotted path: (first, second)}`.

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
