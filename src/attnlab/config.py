"""Frozen settings to JSON and back: strict, tagged by kind, and hashable into a run's identity.

A `Config` is a frozen dataclass. A `Choice` is a config that is one of several kinds; defining a
subclass adds it to its family. Whatever is wrong with a tree of settings (unknown fields, wrong
types, impossible values) is collected, and raised once as a `ConfigError` with dotted paths.
"""

import dataclasses
import difflib
import functools
import hashlib
import importlib.util
import inspect
import json
import math
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self, cast


class Problem(NamedTuple):
    """One thing wrong with the settings: the dotted path of a field, and what to do about it."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message

    def under(self, prefix: str) -> "Problem":
        return Problem(".".join(part for part in (prefix, self.path) if part), self.message)


class ConfigError(ValueError):
    """Everything that is wrong with the settings, at once."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        super().__init__("\n".join(str(problem) for problem in self.problems))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings with no behaviour of their own. Types and values are checked when it is made.

    >>> @dataclasses.dataclass(frozen=True, kw_only=True)
    ... class Steps(Config):
    ...     steps: int = 100
    >>> Steps.from_dict({"stpes": 5})
    Traceback (most recent call last):
    attnlab.config.ConfigError: no field 'stpes'; did you mean 'steps'?
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
        """Impossible values, each with its field. Called once the types are known to be right."""
        yield from ()

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values: what `from_dict` takes back."""
        return {f.name: _encode(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a config. Raises `ConfigError` with every problem in the tree."""
        found: list[Problem] = []
        config = _build(cls, data, "", found)
        if config is None or found:
            raise ConfigError(found)
        return cast("Self", config)

    def digest(self) -> str:
        """Twelve hexadecimal digits that name exactly these settings."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]


class Choice(Config):
    """A config that is one of several kinds. Defining a subclass adds it to the family.

    >>> class Shape(Choice): ...
    >>> @dataclasses.dataclass(frozen=True, kw_only=True)
    ... class UnitSquare(Shape): ...
    >>> Shape.kinds
    {'unit_square': <class 'attnlab.config.UnitSquare'>}

    Wherever a kind is named in JSON or on the command line, a class of one's own can be named by its
    file: `my_mechanism.py:MyAttention`.
    """

    kinds: ClassVar[dict[str, type["Choice"]]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if Choice in cls.__bases__:
            cls.kinds = {}
            return
        known = cls.kinds.get(cls.name(), cls)
        if known.__module__ == cls.__module__ or _is_own(known):
            cls.kinds[cls.name()] = cls
        elif not _is_own(cls):
            raise TypeError(f"two configs are called {cls.name()!r}: {known} and {cls}")

    @classmethod
    def name(cls) -> str:
        """The class name in lower case with underscores: `GatedDeltaNet` is `gated_delta_net`."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__).lower()

    @classmethod
    def kind(cls) -> str:
        """What names this class in a record: its `name`, or `file.py:Class` for a user's own."""
        if not _is_own(cls) or cls.__module__ == "__main__":
            return cls.name()
        return f"{_shortest(inspect.getfile(cls))}:{cls.__name__}"

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind(), **super().to_dict()}

    @classmethod
    def of_kind(cls, kind: str) -> type[Self]:
        """The class that a kind, or `file.py:Class`, names.

        Raises:
            ValueError: no such kind, file or class; says which are known.
        """
        path, _, class_name = kind.rpartition(":")
        if not path.endswith(".py"):
            if kind in cls.kinds:
                return cast("type[Self]", cls.kinds[kind])
            raise ValueError(f"unknown kind {kind!r}{_suggest(kind, cls.kinds)}")
        found = getattr(load_file(Path(path)), class_name, None)
        if not (isinstance(found, type) and issubclass(found, cls)):
            raise ValueError(f"{path} has no {cls.__name__} called {class_name!r}")
        return found


def override(config: Config, assignments: Iterable[str]) -> Config:
    """A copy with dotted fields replaced: `["train.steps=100", "model.mechanisms.0.window=64"]`.

    Values are read by the field's type. A choice takes a kind (`data=stdlib`) or a JSON object.
    Raises `ConfigError` with every problem in the assignments.
    """
    tree, found = config.to_dict(), list[Problem]()
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            found.append(Problem(path, "say it as section.key=value"))
            continue
        *parents, leaf = path.strip().split(".")
        _assign(tree, parents, leaf, _Text(text.strip()), found)
    try:
        changed = type(config).from_dict(tree)
    except ConfigError as error:
        raise ConfigError([*found, *error.problems]) from None
    if found:
        raise ConfigError(found)
    return changed


def load_file(path: Path) -> types.ModuleType:
    """Import a Python file by its path, once. Raises ValueError where there is none."""
    resolved = path.expanduser().resolve()
    if not resolved.is_file():
        raise ValueError(f"no file {path} (looked for {resolved})")
    name = f"attnlab_file_{resolved.stem}_{hashlib.sha256(str(resolved).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, resolved)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def own_sources(config: Config) -> dict[str, str]:
    """SHA-256 of every user's file whose classes occur in the settings, by kind.

    Part of a run's identity: an edited mechanism is another mechanism.
    """
    found: dict[str, str] = {}
    for node in _walk(config):
        if isinstance(node, Choice) and _is_own(type(node)):
            source = Path(inspect.getfile(type(node))).read_bytes()
            found[node.kind()] = hashlib.sha256(source).hexdigest()
    return found


def differences(first: Any, second: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Where two trees of settings (from `to_dict`) differ: `{dotted path: (first, second)}`.

    >>> differences({"train": {"steps": 1}, "seed": 0}, {"train": {"steps": 2}, "seed": 0})
    {'train.steps': (1, 2)}
    """
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        first, second = dict(enumerate(first)), dict(enumerate(second))
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return {} if first == second else {path: (first, second)}
    found: dict[str, tuple[Any, Any]] = {}
    for key in dict.fromkeys([*first, *second]):
        below = f"{path}.{key}" if path else str(key)
        found |= differences(first.get(key), second.get(key), below)
    return found


class _Text(str):
    """A value as typed on a command line, still to be read by the type of its field."""


def _build(cls: type[Config], data: Any, path: str, found: list[Problem]) -> Config | None:
    """A config of `cls` from JSON values, or None with the reasons added to `found`."""
    if issubclass(cls, Choice):
        if isinstance(data, str):
            data = {"kind": str(data)}
        if not isinstance(data, Mapping):
            found.append(Problem(path, f"expected a kind or an object, got {data!r}"))
            return None
        fields = dict(data)
        kind = fields.pop("kind", None)
        try:
            cls = cls.of_kind(str(kind))
        except ValueError as error:
            found.append(Problem(path, str(error)))
            return None
        data = fields
    if not isinstance(data, Mapping):
        found.append(Problem(path, f"expected an object of settings, got {data!r}"))
        return None

    hints, before, arguments = _hints(cls), len(found), dict[str, Any]()
    for name, value in data.items():
        if name in hints:
            arguments[name] = _decode(hints[name], value, _join(path, name), found)
        else:
            suggestion = _suggest(str(name), hints)
            found.append(Problem(path, f"no field {str(name)!r}{suggestion}"))
    for field in dataclasses.fields(cls):
        missing = field.default is field.default_factory is dataclasses.MISSING
        if missing and field.name not in data:
            found.append(Problem(_join(path, field.name), "required, and not given"))
    if len(found) > before:
        return None
    try:
        return cls(**arguments)
    except ConfigError as error:
        found.extend(problem.under(path) for problem in error.problems)
        return None


def _decode(hint: Any, value: Any, path: str, found: list[Problem]) -> Any:
    """`value` as the type `hint`; a mismatch is added to `found`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if (value is None or (isinstance(value, _Text) and value == "none")) and (
            type(None) in arguments
        ):
            return None
        attempts = [(option, list[Problem]()) for option in arguments if option is not type(None)]
        for option, problems in attempts:
            decoded = _decode(option, value, path, problems)
            if not problems:
                return decoded
        found.extend(attempts[-1][1])
        return value
    if isinstance(hint, type) and issubclass(hint, Config):
        if isinstance(value, hint):
            return value
        if isinstance(value, _Text) and value.startswith("{"):
            value = _json(value, path, found)
        return _build(hint, value, path, found)
    if isinstance(value, _Text) and (origin is tuple or hint is dict):
        listed = value if value.startswith("[") else f"[{value}]"
        value = (
            _json(listed, path, found) if value[:1] in "[{0123456789-" else list(value.split(","))
        )
    if origin is tuple and isinstance(value, list | tuple):
        inner = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        if len(inner) != len(value):
            found.append(Problem(path, f"expected {len(inner)} values, got {len(value)}"))
            return value
        return tuple(
            _decode(inner[i], item, _join(path, str(i)), found) for i, item in enumerate(value)
        )
    if origin is Literal:
        matching = [option for option in arguments if value == option or value == str(option)]
        if matching and not isinstance(value, bool):
            return matching[0]
        options = ", ".join(str(option) for option in arguments)
        found.append(Problem(path, f"expected one of {options}, got {value!r}"))
        return value
    return _scalar(hint, value, path, found)


def _scalar(hint: Any, value: Any, path: str, found: list[Problem]) -> Any:
    if isinstance(value, _Text):
        try:
            if hint is bool:
                return {"true": True, "false": False}[value.lower()]
            if hint in (int, float, str):
                value = hint(value)
        except (ValueError, KeyError):
            pass
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    right = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    if not right:
        name = {"bool": "true or false", "int": "a whole number", "float": "a number"}
        wanted = name.get(hint.__name__, f"a {hint.__name__}")
        found.append(Problem(path, f"expected {wanted}, got {value!r}"))
    elif isinstance(value, float) and not math.isfinite(value):
        found.append(Problem(path, f"expected a finite number, got {value!r}"))
    return value


def _json(text: str, path: str, found: list[Problem]) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        found.append(Problem(path, f"not JSON: {error}"))
        return None


def _assign(tree: Any, parents: list[str], leaf: str, text: _Text, found: list[Problem]) -> None:
    """Set one leaf of a tree of JSON values; a path that leads nowhere is added to `found`."""
    walked: list[str] = []
    for part in parents:
        entry = _entry(tree, part)
        if isinstance(entry, str):  # a kind given earlier on the same command line
            entry = {"kind": str(entry)}
            tree[part] = entry
        if not isinstance(entry, dict | list):
            known = tree if isinstance(tree, dict) else {}
            missing = f"no field {part!r}{_suggest(part, known)}"
            found.append(Problem(".".join(walked), missing))
            return
        tree = entry
        walked.append(part)
    if isinstance(tree, dict):
        tree[leaf] = text
    elif _entry(tree, leaf) is not None:
        tree[int(leaf)] = text
    else:
        found.append(Problem(".".join(walked), f"no entry {leaf!r}: it has 0 to {len(tree) - 1}"))


def _entry(tree: Any, part: str) -> Any:
    if isinstance(tree, dict):
        return tree.get(part)
    return tree[int(part)] if part.isdigit() and int(part) < len(tree) else None


def _encode(value: object) -> object:
    if isinstance(value, Config):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_encode(item) for item in cast("tuple[object, ...]", value)]
    return value


def _walk(node: object) -> Iterator[Config]:
    if isinstance(node, Config):
        yield node
        for field in dataclasses.fields(node):
            yield from _walk(getattr(node, field.name))
    elif isinstance(node, tuple):
        for item in cast("tuple[object, ...]", node):
            yield from _walk(item)


@functools.cache
def _hints(cls: type[Config]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _suggest(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names)}"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _is_own(cls: type) -> bool:
    return not cls.__module__.startswith("attnlab.")


def _shortest(file: str) -> str:
    path = Path(file).resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
