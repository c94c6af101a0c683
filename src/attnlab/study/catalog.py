"""The catalog: every study, mechanism and setting that attnlab ships, read from the source files.

Nothing is imported, because a mechanism's file imports torch, which takes seconds. The fields of a
dataclass, its base classes and its defaults are read from the syntax tree instead.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from attnlab.config import kind_name, suggestion

_PACKAGE = Path(__file__).parents[1]
REQUIRED = "required"  # in place of a default


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of a family, such as the mechanism `mla`."""

    name: str
    summary: str  # the first sentence of its file, or of its class
    settings: Mapping[str, Any]  # defaults as JSON values; "required" for a setting without one


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """Everything that a command line or a study file can name."""

    studies: Mapping[str, str]  # name: its question in a line
    families: Mapping[str, tuple[Kind, ...]]  # name, such as "mechanisms": its kinds
    settings: Mapping[str, Mapping[str, Any]]  # section of a run, such as "train": its defaults

    def kinds(self, name: str) -> dict[str, Kind]:
        """Return the kinds that have this name, by family. Raises ValueError if there is none."""
        found = {
            family: kind
            for family, kinds in self.families.items()
            for kind in kinds
            if kind.name in (name, name.replace("-", "_"))
        }
        if not found:
            names = [kind.name for kinds in self.families.values() for kind in kinds]
            known = {*self.studies, *self.families, *self.settings, *names}
            raise ValueError(f"nothing is called {name!r}{suggestion(name, known)}")
        return found


class _Family(NamedTuple):
    base: str  # MODULE:CLASS
    folder: str  # whose files define the kinds


_FAMILIES = {
    "mechanisms": _Family("attnlab.mechanism:MechanismConfig", "mechanisms"),
    "data": _Family("attnlab.data.source:DataConfig", "data"),
    "tokenizers": _Family("attnlab.data.tokenizer:Tokenizer", "data"),
    "feedforward": _Family("attnlab.model.feedforward:FeedForward", "model"),
    "optimizers": _Family("attnlab.training.optimizer:Optimizer", "training"),
    "schedules": _Family("attnlab.training.learning_rate:Schedule", "training"),
    "rope_scalings": _Family("attnlab.modules.rope_scaling:RopeScaling", "modules"),
}
_RUN = "attnlab.training.run:RunConfig"  # its fields that are no kinds are the sections


def catalog() -> Catalog:
    """Return every study, mechanism, data source, tokenizer, feed-forward layer, optimizer,
    schedule of the rate, RoPE scaling and setting that attnlab ships, without importing torch.

    >>> next(kind.settings for kind in catalog().families["mechanisms"] if kind.name == "identity")
    {}
    """
    return Catalog(
        studies={
            path.stem: " ".join(_docstring(_parse(path)).split("\n\n")[0].split())
            for path in sorted((_PACKAGE / "study" / "shipped").glob("[!_]*.py"))
        },
        families={
            name: tuple(sorted(_kinds(family), key=lambda kind: kind.name))
            for name, family in _FAMILIES.items()
        },
        settings=dict(_sections()),
    )


class _Class(NamedTuple):
    """A class, and the module that defines it."""

    module: str
    node: ast.ClassDef

    @property
    def is_dataclass(self) -> bool:
        return any("dataclass" in ast.unparse(each) for each in self.node.decorator_list)

    @property
    def is_abstract(self) -> bool:
        """True if the class is no kind itself: `ABC` is one of its bases."""
        return any(ast.unparse(base) == "ABC" for base in self.node.bases)

    def bases(self) -> Iterator["_Class"]:
        """Yield the base classes that attnlab defines."""
        for base in self.node.bases:
            if isinstance(base, ast.Name) and isinstance(
                found := _find(self.module, base.id), _Class
            ):
                yield found

    def lineage(self) -> Iterator["_Class"]:
        """Yield the class and its base classes, the class first."""
        yield self
        for base in self.bases():
            yield from base.lineage()


def _kinds(family: _Family) -> Iterator[Kind]:
    base = _class_at(family.base)
    for path in sorted((_PACKAGE / family.folder).glob("*.py")):
        module = _module_name(path)
        for node in _parse(path).body:
            if isinstance(node, ast.ClassDef):
                found = _Class(module, node)
                below = base in list(found.lineage())[1:] and not found.is_abstract
                if below and (name := _kind_name(found)):
                    yield _kind(name, found)
            elif registered := _by_prefix(node, base.node.name):
                prefix, function = registered
                finder = _find(module, function)
                assert isinstance(finder, ast.FunctionDef)
                summary = _first_sentence(ast.get_docstring(finder) or "").partition(":")[0]
                yield Kind(name=f"{prefix}:NAME", summary=summary, settings={})


def _kind(name: str, found: _Class) -> Kind:
    own_file = found.module.rpartition(".")[2] == name
    text = _docstring(_parse(_path(found.module))) if own_file else _docstring(found.node)
    return Kind(name=name, summary=_first_sentence(text), settings=_settings(found))


def _kind_name(found: _Class) -> str | None:
    """Return what the class method `name` returns; None for a class that is found by a prefix."""
    for each in found.lineage():
        for node in each.node.body:
            if isinstance(node, ast.FunctionDef) and node.name == "name":
                match node.body[-1]:
                    case ast.Return(value=ast.Constant(value=str(name))):
                        return name
                    case ast.Return(value=ast.Call(func=ast.Name(id="kind_name"))):
                        return kind_name(found.node.name)
                    case _:
                        return None
    return None


def _by_prefix(node: ast.stmt, base: str) -> tuple[str, str] | None:
    """Return prefix and function of a statement `BASE.elsewhere["PREFIX"] = FUNCTION`."""
    match node:
        case ast.Assign(
            targets=[ast.Subscript(value=place, slice=ast.Constant(value=str(prefix)))],
            value=ast.Name(id=function),
        ) if ast.unparse(place) == f"{base}.elsewhere":
            return prefix, function
        case _:
            return None


def _sections() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the sections of a run's settings: the fields that are settings but not kinds."""
    families = [_class_at(family.base) for family in _FAMILIES.values()]
    run = _class_at(_RUN)
    for name, annotation, _ in _fields(run):
        found = _find(run.module, annotation)
        if isinstance(found, _Class) and found not in families:
            yield name, _settings(found)


def _settings(found: _Class) -> dict[str, Any]:
    """Return the fields of a dataclass, those of its base classes first, with their defaults."""
    settings = dict[str, Any]()
    for base in reversed(list(found.bases())):
        settings |= _settings(base)
    if found.is_dataclass:
        settings |= {name: _default(found.module, value) for name, _, value in _fields(found)}
    return settings


def _fields(found: _Class) -> Iterator[tuple[str, str, ast.expr | None]]:
    """Yield name, annotation and default of the fields in the class's own body."""
    for node in found.node.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            annotation = ast.unparse(node.annotation)
            if not annotation.startswith("ClassVar"):
                yield node.target.id, annotation, node.value


def _default(module: str, value: ast.expr | None) -> Any:
    if value is None:
        return REQUIRED
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "field":
        (keyword,) = value.keywords
        factory = keyword.value if keyword.arg == "default_factory" else None
        if factory is None:
            return _value(module, keyword.value)
        made = factory.body if isinstance(factory, ast.Lambda) else ast.Call(factory, [], [])
        return _value(module, made)
    return _value(module, value)


def _value(module: str, node: ast.expr) -> Any:
    """Evaluate a constant, the name of one, or the construction of a config; as JSON values."""
    if isinstance(node, ast.Name):
        found = _find(module, node.id)
        assert isinstance(found, ast.expr)
        return _value(module, found)
    if isinstance(node, ast.Call):
        found = _find(module, ast.unparse(node.func))
        assert isinstance(found, _Class)
        given = {word.arg: _value(module, word.value) for word in node.keywords if word.arg}
        return {"kind": _kind_name(found), **_settings(found), **given}
    value = ast.literal_eval(node)
    return list(value) if isinstance(value, tuple) else value


def _find(module: str, name: str) -> "_Class | ast.FunctionDef | ast.expr | None":
    """Return what a name stands for in a module, following imports inside attnlab."""
    path = _path(module)
    if not path.is_file():
        return None
    for node in _parse(path).body:
        match node:
            case ast.ClassDef(name=defined) if defined == name:
                return _Class(module, node)
            case ast.FunctionDef(name=defined) if defined == name:
                return node
            case ast.Assign(targets=[ast.Name(id=defined)], value=value) if defined == name:
                return value
            case ast.ImportFrom(module=str(source)) if source.startswith("attnlab"):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return _find(source, alias.name)
            case _:
                pass
    return None


def _class_at(place: str) -> _Class:
    module, _, name = place.partition(":")
    found = _find(module, name)
    assert isinstance(found, _Class)
    return found


def _path(module: str) -> Path:
    path = _PACKAGE.parent.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _module_name(path: Path) -> str:
    return ".".join(path.relative_to(_PACKAGE.parent).with_suffix("").parts)


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _docstring(node: ast.Module | ast.ClassDef) -> str:
    return ast.get_docstring(node) or ""


def _first_sentence(text: str) -> str:
    first = " ".join(text.split("\n\n")[0].split())
    end = re.search(r"(?<!\bet al)[.?] ", first)
    return (first[: end.start() + 1] if end else first).rstrip(".:")
