"""Convert frozen dataclasses to JSON and back: strict, and tagged by kind.

A `Config` is a frozen dataclass. A `Choice` is a config that is one of several kinds; defining a
subclass adds it to its family. All errors in a tree of settings (unknown fields, wrong types,
impossible values) are collected and raised together as one `ConfigError` with dotted paths.
"""

import dataclasses
import functools
import types
import typing
from abc import ABC
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

from attnlab.config.own_code import is_own, load_file
from attnlab.config.own_kinds import OwnKind, classes_of, file_of, find_file, kind_name, own_kind
from attnlab.config.problem import ConfigError, Problem, join, no_kind, suggestion, unknown_kind
from attnlab.config.values import FrozenMap, Typed, one_of, parsed, scalar


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings as a frozen dataclass. Types and values are checked when an object is made.

    >>> @dataclasses.dataclass(frozen=True, kw_only=True)
    ... class Steps(Config):
    ...     steps: int = 100
    >>> Steps.from_dict({"stpes": 5})
    Traceback (most recent call last):
    attnlab.config.problem.ConfigError: no field 'stpes'; did you mean 'steps'?
    """

    def __post_init__(self) -> None:
        found: list[Problem] = []
        for name, hint in _hints(type(self)).items():
            value = _decode(hint, getattr(self, name), name, found)
            object.__setattr__(self, name, value)
        if not found:
            found.extend(self.problems())
        if found:
            raise ConfigError(found)

    def problems(self) -> Iterator[Problem]:
        """Yield impossible values, each with its field. Called after all types are checked."""
        yield from ()

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values, the inverse of `from_dict`."""
        return {f.name: _encode(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build a config from JSON values. Raises `ConfigError` with every problem in the tree."""
        found: list[Problem] = []
        if (config := _build(cls, data, "", found)) is None or found:
            raise ConfigError(found)
        return cast("Self", config)


class Choice(Config):
    """A config that is one of several kinds. Defining a subclass adds it to the family.

    >>> class Shape(Choice): ...
    >>> @dataclasses.dataclass(frozen=True, kw_only=True)
    ... class UnitSquare(Shape): ...
    >>> Shape.kinds
    {'unit_square': <class 'attnlab.config.tree.UnitSquare'>}

    JSON and the command line can also name a class of the user's by its file, as in
    `my_mechanism.py:MyAttention`. A family can include classes of another package by a prefix, as
    in `fla:GatedLinearAttention`.
    """

    defined_in: ClassVar[Path | None] = None  # the file of a class of the user's
    kinds: ClassVar[dict[str, type["Choice"]]]
    elsewhere: ClassVar[dict[str, Callable[[str], type["Choice"]]]]
    # ^ by prefix, a function from a class name to its class; it raises ValueError for unknown names

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if Choice in cls.__bases__:
            cls.kinds, cls.elsewhere = {}, {}
            return
        if is_own(cls):
            cls.defined_in = file_of(cls)
        if ABC in cls.__bases__ or ":" in cls.name():  # no kind itself, or found by its prefix
            return
        known = cls.kinds.get(cls.name(), cls)
        if known.__module__ == cls.__module__ or is_own(known):
            cls.kinds[cls.name()] = cls
        elif not is_own(cls):
            raise TypeError(f"two configs are called {cls.name()!r}: {known} and {cls}")

    @classmethod
    def name(cls) -> str:
        """Return the class name in snake case: `GatedDeltaNet` is `gated_delta_net`."""
        return kind_name(cls.__name__)

    @classmethod
    def kind(cls) -> str:
        """Return the name of this class in records: `name()`, or `file.py:Class` for user code."""
        return (own_kind(cls) if is_own(cls) else None) or cls.name()

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind(), **super().to_dict()}

    @classmethod
    def of_kind(cls, kind: object) -> type[Self]:
        """Return the class with this kind, given as `kind`, `file.py:Class` or `prefix:Class`.

        Raises:
            ValueError: there is no such kind, file or class; the message lists the known kinds.
        """
        if not isinstance(kind, str):
            raise ValueError(no_kind(kind, cls.kinds))
        if is_own(cls) and kind == cls.kind():  # its file may have been imported by another name
            return cls
        if isinstance(kind, OwnKind) and kind.cls is not None and issubclass(kind.cls, cls):
            return kind.cls
        path, _, class_name = kind.rpartition(":")
        if path in cls.elsewhere:
            return cast("type[Self]", cls.elsewhere[path](class_name))
        if not path.endswith(".py"):
            if (known := kind.replace("-", "_")) in cls.kinds:
                return cast("type[Self]", cls.kinds[known])
            raise ValueError(unknown_kind(kind, cls.kinds))
        found = getattr(module := load_file(find_file(kind, path)), class_name, None)
        if not (isinstance(found, type) and issubclass(found, cls)):
            near = suggestion(class_name, classes_of(module, cls))
            raise ValueError(f"{path} has no {cls.__name__} called {class_name!r}{near}")
        return found


def own_classes(config: Config) -> list[type[Choice]]:
    """Return the classes of the user's own that occur in the settings, each once, in order."""
    nodes = (type(node) for node in _walk(config) if isinstance(node, Choice))
    return [cls for cls in dict.fromkeys(nodes) if is_own(cls)]


def _build(cls: type[Config], data: Any, path: str, found: list[Problem]) -> Config | None:
    """Return a config of `cls` from JSON values, or None with the reasons added to `found`."""
    if data is None and any(problem.path == path for problem in found):  # it is no JSON
        return None
    if isinstance(data, type):
        found.append(Problem(path, f"got a class; write {data.__name__}(...), with its settings"))
        return None
    if issubclass(cls, Choice):
        fields = dict(data) if isinstance(data, Mapping) else {"kind": data}
        try:
            cls, data = cls.of_kind(fields.pop("kind", None)), fields
        except ValueError as error:
            found.append(Problem(path, str(error)))
            return None
    if not isinstance(data, Mapping):
        found.append(Problem(path, f"expected an object of settings, got {data!r}"))
        return None

    hints, before = _hints(cls), len(found)
    for name in (name for name in data if name not in hints):
        found.append(Problem(path, f"no field {str(name)!r}{suggestion(str(name), hints)}"))
    for name in (name for name in _required(cls) if name not in data):
        found.append(Problem(join(path, name), "required, but not given"))
    arguments = {
        name: _decode(hint, _whole(cls, name, hint, data[name]), join(path, name), found)
        for name, hint in hints.items()
        if name in data
    }
    if len(found) > before:
        return None
    try:
        return cls(**arguments)
    except ConfigError as error:
        found.extend(problem.under(path) for problem in error.problems)
        return None


def _whole(cls: type[Config], name: str, hint: Any, value: Any) -> Any:
    """Merge settings of a choice without a kind into those of the field's default."""
    if not (isinstance(hint, type) and issubclass(hint, Choice)):
        return value
    if not isinstance(value, Mapping) or "kind" in value:
        return value
    field = cls.__dataclass_fields__[name]
    factory = field.default_factory
    default = field.default if factory is dataclasses.MISSING else factory()
    return {**default.to_dict(), **value} if isinstance(default, Choice) else value


def _decode(hint: Any, value: Any, path: str, found: list[Problem]) -> Any:
    """Return `value` as the type `hint`; add a mismatch to `found`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _union(arguments, value, path, found)
    if origin is Literal:
        return one_of(arguments, value, path, found)
    if origin is tuple:
        return _sequence(arguments, value, path, found)
    if origin is Mapping:
        decode = _named if arguments[0] is str else _numbered
        return decode(arguments[1], value, path, found)
    if isinstance(hint, type) and issubclass(hint, Config):
        if isinstance(value, hint):
            return value
        if isinstance(value, Typed) and value.startswith("{"):
            value = parsed(value, path, found)
        return _build(hint, value, path, found)
    return scalar(hint, value, path, found)


def _union(options: tuple[Any, ...], value: Any, path: str, found: list[Problem]) -> Any:
    """Decode `X | None`, or a tuple or a config: settings without a kind are the config's."""
    if type(None) in options:
        (hint,) = (option for option in options if option is not type(None))
        if value is None or (isinstance(value, Typed) and value.lower() == "none"):
            return None
        return _decode(hint, value, path, found)
    sequence, config = sorted(options, key=lambda option: isinstance(option, type))
    if isinstance(value, Typed) and value.startswith("{"):
        value = parsed(value, path, found)
    settings = isinstance(value, Mapping) and "kind" not in value
    hint = config if settings or isinstance(value, config) else sequence
    return _decode(hint, value, path, found)


def _sequence(hints: tuple[Any, ...], value: Any, path: str, found: list[Problem]) -> Any:
    """Decode a tuple of fixed length, or `tuple[X, ...]`."""
    if isinstance(value, Typed):
        items = parsed(value, path, found) if value.startswith("[") else value.split(",")
        value = [Typed(item) if isinstance(item, str) else item for item in items or ()]
    if isinstance(value, Config | Mapping):
        value = [value]  # a single item
    if not isinstance(value, list | tuple):
        found.append(Problem(path, f"expected a list, got {value!r}"))
        return value
    inner = hints[:1] * len(value) if hints[1:] == (...,) else hints
    if len(inner) != len(value):
        found.append(Problem(path, f"expected {len(inner)} values, got {len(value)}"))
        return value
    pairs = enumerate(zip(inner, value, strict=True))
    return tuple(_decode(hint, item, join(path, str(i)), found) for i, (hint, item) in pairs)


def _named(hint: Any, value: Any, path: str, found: list[Problem]) -> Any:
    """Decode a mapping from names; return it in the order given."""
    if not isinstance(value, Mapping):
        found.append(Problem(path, f"expected an object, got {value!r}"))
        return value
    items = {str(key): item for key, item in cast("Mapping[Any, Any]", value).items()}
    return FrozenMap({key: _decode(hint, it, join(path, key), found) for key, it in items.items()})


def _numbered(hint: Any, value: Any, path: str, found: list[Problem]) -> Any:
    """Decode a mapping from whole numbers, which are texts in JSON; return it in their order."""
    if not isinstance(value, Mapping):
        message = f"expected an object with whole numbers as names, got {value!r}"
        found.append(Problem(path, message))
        return value
    items: dict[int, Any] = {}
    for key, item in cast("Mapping[Any, Any]", value).items():
        n = scalar(int, Typed(key) if isinstance(key, str) else key, join(path, str(key)), found)
        if n in items:
            found.append(Problem(join(path, str(key)), f"{n} is given twice"))
        elif isinstance(n, int):
            items[n] = _decode(hint, item, join(path, str(key)), found)
    return FrozenMap(dict(sorted(items.items())))


def _encode(value: object) -> object:
    if isinstance(value, Config):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_encode(item) for item in cast("tuple[object, ...]", value)]
    if isinstance(value, FrozenMap):
        items = cast("FrozenMap[int | str, object]", value).items()
        return {str(key): _encode(item) for key, item in items}
    return value


def _walk(node: object) -> Iterator[Config]:
    if isinstance(node, Config):
        yield node
        for field in dataclasses.fields(node):
            yield from _walk(getattr(node, field.name))
    elif isinstance(node, tuple | FrozenMap):
        items = node.values() if isinstance(node, FrozenMap) else node
        for item in cast("Iterable[object]", items):
            yield from _walk(item)


@functools.cache
def _hints(cls: type[Config]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _required(cls: type[Config]) -> list[str]:
    fields = dataclasses.fields(cls)
    return [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
