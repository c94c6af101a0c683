"""Settings without those that are absent.

A setting that is none or false says that something is absent, as it was before there was such a
setting, and so does a section in which nothing else is said: two records of which one does not have
it say the same.
"""

from typing import Any, cast


def present(settings: Any) -> Any:
    """A tree of JSON values, as from `to_dict`, without what is none or false, at every depth.

    >>> present({"window": 64, "bias": False, "norm": {"eps": None, "gain": 0}})
    {'window': 64, 'norm': {'gain': 0}}
    >>> present({"seed": 0, "eval": {"lengths": None}})
    {'seed': 0}
    """
    if isinstance(settings, dict):
        items = cast("dict[str, Any]", settings).items()
        said = {
            name: present(item) for name, item in items if item is not None and item is not False
        }
        return {name: item for name, item in said.items() if item != {}}
    if isinstance(settings, list):
        return [present(value) for value in cast("list[Any]", settings)]
    return settings
