"""Settings at dotted paths: assigned, read, and compared in two trees.

    train.steps=100 model.mechanisms.0.window=64

Trees are JSON values, as from `Config.to_dict`. Unset settings do not count as a difference: a
record that was written before a setting existed equals one in which that setting is none or false.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

from attnlab.config.problem import ConfigError, Problem, join, nearest, suggestion
from attnlab.config.tree import Config
from attnlab.config.values import Typed, whole_number

C = TypeVar("C", bound=Config)


def override(config: C, assignments: Iterable[str]) -> C:
    """Return a copy of `config` with the assigned fields replaced, in order.

    A value is converted to the type of its field. The value of a choice is a kind (`data=stdlib`)
    or a JSON object. Raises `ConfigError` with every problem of the assignments.
    """
    tree, found = config.to_dict(), list[Problem]()
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if equals and (elsewhere := _elsewhere(tree, path.strip())):
            found.append(Problem("", f"no field {path.strip()!r}; did you mean {elsewhere!r}?"))
        elif equals:
            _assign(tree, path.strip().split("."), Typed(text.strip()), found)
        else:
            found.append(Problem(path, "no value is given; write section.key=value"))
    try:
        changed = type(config).from_dict(tree)
    except ConfigError as error:
        raise ConfigError([*found, *error.problems]) from None
    if found:
        raise ConfigError(found)
    return changed


def require_once(assignments: Iterable[str]) -> None:
    """Raise ConfigError, naming all, for settings that are given several values.

    >>> require_once(["train.steps=1k", "train.steps=1024"])
    >>> require_once(["train.steps=10", "train.steps=20"])
    Traceback (most recent call last):
    attnlab.config.problem.ConfigError: train.steps: is given twice, as 10 and 20; give it once
    """
    texts = dict[str, dict[object, str]]()
    for path, equals, text in (assignment.partition("=") for assignment in assignments):
        if equals:
            texts.setdefault(path.strip(), {}).setdefault(_value(text.strip()), text.strip())
    problems = [
        Problem(path, f"is given twice, as {' and '.join(given.values())}; give it once")
        for path, given in texts.items()
        if len(given) > 1
    ]
    if problems:
        raise ConfigError(problems)


def _value(text: str) -> object:
    """Return the number that a text states, or the text."""
    whole = whole_number(text)
    try:
        return float(text) if whole is None else whole
    except ValueError:
        return text


def settings(assignments: Iterable[str]) -> dict[str, Any]:
    """Return dotted assignments as a tree, for `from_dict` of a kind without default settings.

    >>> settings(["window=64", "rope_scaling.kind=yarn", "rope_scaling.factor=4"])
    {'window': '64', 'rope_scaling': {'kind': 'yarn', 'factor': '4'}}
    """
    tree, found = _UnknownFields(), list[Problem]()
    for assignment in assignments:
        path, _, text = assignment.partition("=")
        _assign(tree, path.strip().split("."), Typed(text.strip()), found)
    if found:
        raise ConfigError(found)
    return tree


class _UnknownFields(dict[str, Any]):
    """Settings of a kind that was chosen on the command line, whose fields are not known here."""


def _assign(tree: Any, path: list[str], text: Typed, found: list[Problem]) -> None:
    """Set one leaf of a tree of JSON values; add a path that does not exist to `found`."""
    for depth, part in enumerate(path[:-1]):
        below = _item(tree, part)
        if isinstance(below, Typed):  # a kind that an earlier assignment set
            below = _UnknownFields(kind=str(below))
            tree[part if isinstance(tree, dict) else int(part)] = below
        elif below is None and isinstance(tree, _UnknownFields):
            below = tree[part] = _UnknownFields()
        if not isinstance(below, dict | list):
            known = list(tree) if isinstance(tree, dict) else list(map(str, range(len(tree))))
            where, deeper = join(*path[: depth + 1]), ".".join(path[depth + 1 :])
            if part in known and below is None:
                message = f"has no field {deeper!r} while it is none; set {where}=KIND before it"
                found.append(Problem(where, message))
            elif part in known:
                found.append(Problem(where, f"is one value; it has no field {deeper!r}"))
            elif isinstance(tree, list):
                found.append(_no_item(path[:depth], part, known))
            else:
                message = f"no field {part!r}{suggestion(part, known)}"
                found.append(Problem(join(*path[:depth]), message))
            return
        tree = below
    leaf = path[-1]
    if isinstance(tree, dict):
        tree[leaf] = text
    elif _item(tree, leaf) is not None:
        tree[int(leaf)] = text
    else:
        found.append(_no_item(path[:-1], leaf, tree))


def _no_item(path: list[str], part: str, items: Sequence[object]) -> Problem:
    known = "0" if len(items) == 1 else f"0 to {len(items) - 1}"
    return Problem(join(*path), f"no item {part!r}; known: {known}")


def _elsewhere(tree: Mapping[str, Any], path: str) -> str:
    """Return the path of the tree that ends like `path`, if no section of it begins so."""
    first, last = path.partition(".")[0], path.rpartition(".")[2]
    if first in tree or nearest(first, tree):
        return ""
    every = list(_paths(tree))
    ends = [found for found in every if f".{found}".endswith(f".{path}")]
    if not ends and first == last:
        near = nearest(last, {found.rpartition(".")[2] for found in every})
        ends = [found for found in every if near and found.rpartition(".")[2] == near]
    return min(ends, key=len, default="")


def _paths(tree: Any, path: str = "") -> Iterator[str]:
    """Yield the dotted paths of all leaves and branches."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, below in items:
        yield join(path, str(key))
        if isinstance(below, dict | list):
            yield from _paths(below, join(path, str(key)))


def setting_at(tree: Any, path: str, absent: Any = None) -> Any:
    """Return what stands at a dotted path of a tree of JSON values; `absent` if there is no path.

    >>> setting_at({"model": {"mechanisms": [{"window": 128}]}}, "model.mechanisms.0.window")
    128
    """
    for part in path.split("."):
        if not isinstance(tree, dict | list):
            return absent
        tree = _item(tree, part, absent)
    return tree


def _item(tree: Any, part: str, absent: Any = None) -> Any:
    if isinstance(tree, dict):
        return tree.get(part, absent)
    return tree[int(part)] if part in map(str, range(len(tree))) else absent


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
