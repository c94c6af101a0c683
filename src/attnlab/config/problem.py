"""Errors in settings and arguments: all at once, each with the path of its field and a remedy.

`type_problems` and `with_types` check the types of a caller's values. A function that is `taking` a
class has the arguments of its constructor.
"""

import functools
import inspect
import numbers
import re
import types
import typing
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from operator import attrgetter
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, ParamSpec, Self, TypeVar, cast

_Arguments = ParamSpec("_Arguments")
_Request = TypeVar("_Request")
_Result = TypeVar("_Result")


class Problem(NamedTuple):
    """One error in settings: the dotted path of a field and a message that states the remedy."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message

    def under(self, prefix: str) -> "Problem":
        """Return the same problem with `prefix` before its path."""
        return Problem(join(prefix, self.path), self.message)


class ConfigError(ValueError):
    """All errors in settings, at once. `problems` has each of them."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type[Self], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)  # it crosses processes


@contextmanager
def naming(what: str) -> Generator[None]:
    """Name what the settings are of in the problems that are raised inside."""
    try:
        yield
    except ConfigError as error:
        named = (one._replace(message=f"{one.message} (in {what})") for one in error.problems)
        raise ConfigError(named) from None


_ABBREVIATIONS = {  # of kinds, as the field has them, where initials do not tell
    "grouped_query": ("mha", "mqa", "gqa"),
    "sliding_window": ("swa",),
    "deepseek_sparse": ("dsa",),
}


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the nearest known name, or all of them.

    >>> suggestion("stpes", ["steps", "seed"]), suggestion("x", ["steps", "seed"])
    ("; did you mean 'steps'?", '; known: seed, steps')

    Initials, and words of one name alone, are near, too:

    >>> suggestion("lr", ["steps", "learning_rate", "seed"])
    "; did you mean 'learning_rate'?"
    >>> suggestion("tokens", ["max_new_tokens", "top_k"])
    "; did you mean 'max_new_tokens'?"
    >>> suggestion("mqa", ["grouped_query", "mqar"])
    "; did you mean 'grouped_query'?"
    """
    names = sorted(known)
    if not names:
        return "; none are known"
    near = nearest(name, names)
    return f"; known: {', '.join(names)}" if near is None else f"; did you mean {near!r}?"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that an unknown one is meant to be; None if none is near."""
    names = sorted(known)
    if usual := [kind for kind in names if name in _ABBREVIATIONS.get(kind, ())]:
        return usual[0]
    initials = [known for known in names if "".join(w[:1] for w in known.split("_")) == name]
    longer = [known for known in names if _words(name) <= _words(known)] if _words(name) else []
    close = (initials if len(name) > 1 else []) or (longer if len(longer) == 1 else [])
    close = close or get_close_matches(name, names, n=1)
    return close[0] if close else None


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", name.lower()))


def unknown_kind(kind: str, known: Iterable[str]) -> str:
    """Return the message about a kind that does not exist.

    >>> unknown_kind("mon", ["adamw", "muon"])
    "unknown kind 'mon'; did you mean 'muon'?"
    >>> unknown_kind("muon:momentum=0.9", ["adamw", "muon"])
    "unknown kind 'muon:momentum=0.9'; write SETTING=muon SETTING.momentum=0.9"
    >>> unknown_kind("mla:n_heads=2:q_lora_rank=8", ["mla"]).partition("; ")[2]
    'write SETTING=mla SETTING.n_heads=2 SETTING.q_lora_rank=8'
    """
    name, *own = re.split(r"[:;,\s]+(?=[A-Za-z_][\w.]*=)", kind)
    if not own:
        return f"unknown kind {kind!r}{suggestion(kind, known)}"
    apart = " ".join(f"SETTING.{each}" for each in own)
    return f"unknown kind {kind!r}; write SETTING={name} {apart}"


_REFUSED = re.compile(
    r"(?P<callable>[\w.]+)\(\) (got an unexpected keyword argument '(?P<keyword>\w+)'|takes \d+ "
    r"positional arguments? but)"
)


def meant_argument(error: BaseException, names: Mapping[str, Any]) -> str:
    """Return the end of a message on arguments that a callable refuses: what it takes, or nothing.

    Args:
        error: what the call raised.
        names: what the calling code can name.
    """
    refused = _REFUSED.match(str(error)) if isinstance(error, TypeError) else None
    if refused is None:
        return ""
    first, *rest = refused["callable"].split(".")
    modules = (value for value in names.values() if isinstance(value, types.ModuleType))
    owners = (names.get(first), *(getattr(module, first, None) for module in modules))
    try:
        called = attrgetter(".".join(rest) or "__call__")(next(filter(None, owners), None))
        takes = inspect.signature(called).parameters
    except (AttributeError, TypeError, ValueError):
        return ""
    if refused["keyword"]:
        return suggestion(refused["keyword"], takes.keys() - {"self"})
    named = [f"{name}=..." for name, of in takes.items() if of.kind is of.KEYWORD_ONLY]
    return f"; name its arguments: {', '.join(named)}" if named else ""


def no_kind(given: object, known: Iterable[str]) -> str:
    """Return the message about what stands in the place of a kind: nothing, or no text.

    >>> no_kind(None, ["adamw", "muon"]), no_kind(["muon"], ["adamw", "muon"])[:50]
    ('no kind is given; known: adamw, muon', "expected a kind or its settings, got ['muon']; kno")
    """
    if given is None:
        return f"no kind is given{suggestion('', known)}"
    return f"expected a kind or its settings, got {shortened(given)}{suggestion('', known)}"


def shortened(value: object) -> str:
    """Return the representation of a value, of which a long one is cut off."""
    return text if len(text := repr(value)) <= 60 else f"{text[:60]}..."


def visible(text: str) -> str:
    r"""Return text in which characters that command the reader's terminal are seen, not obeyed.

    These are control characters but tabs and ends of lines, and characters that change the
    direction of what follows.

    >>> print(visible("a\x1b[31mb\u202ec"))
    a\x1b[31mb\u202ec
    """
    return _COMMANDS.sub(lambda match: repr(match[0])[1:-1], text)


_COMMANDS = re.compile(r"[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]|\r(?!\n)")


def join(*parts: str) -> str:
    """Return a dotted path of the parts that are not empty."""
    return ".".join(part for part in parts if part)


def type_problems(of: object) -> Iterator[Problem]:
    """Yield the values of a dataclass that have not the type of their field.

    Items of a mapping and of a tuple have types, too; a list may stand for a tuple. Those of an
    iterable, which may be read once only, are not looked at. A number may be that of another
    library.
    """
    for name, hint in typing.get_type_hints(type(of)).items():
        yield from _of_another_type(hint, getattr(of, name), name)


def with_types(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Return a function that names its arguments of another type than their annotation.

    It raises ConfigError for all of them at once, before the function is called, and TypeError for
    an argument that is unknown. What is said of `type_problems` holds here, too; a choice of words
    is left to the function.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        _require_known(kwargs, signature)
        given, hints = signature.bind(*args, **kwargs), typing.get_type_hints(function)
        if problems := [
            problem
            for name, value in given.arguments.items()
            for one in (value if signature.parameters[name].kind is _ANY_NUMBER else [value])
            for problem in _of_another_type(hints[name], one, name)
        ]:
            raise ConfigError(problems)
        return function(*args, **kwargs)

    return call


def _require_known(names: Iterable[str], signature: inspect.Signature) -> None:
    for name in names:
        if name not in signature.parameters:
            raise TypeError(f"no argument {name!r}{suggestion(name, signature.parameters)}")


def _of_another_type(hint: Any, value: Any, path: str) -> Iterator[Problem]:
    if typing.get_origin(hint) is typing.Literal:
        return
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    options = typing.get_args(hint) if is_union else (hint,)
    kinds = {typing.get_origin(option) or option: typing.get_args(option) for option in options}
    fits = [kind for kind in kinds if isinstance(value, _CLASSES.get(kind, kind))]
    if not fits or (isinstance(value, bool) and bool not in kinds):
        words = (_WORDS.get(each, f"a {each.__name__}") for each in kinds if each is not NoneType)
        yield Problem(path, f"expected {' or '.join(words)}, got {shortened(value)}")
    elif Path in kinds and "\0" in str(value):
        yield Problem(path, f"a path has no zero byte, got {shortened(value)}")
    elif fits[0] is Mapping:
        for key, item in cast("Mapping[object, object]", value).items():
            yield from _of_another_type(kinds[Mapping][0], key, f"a name in {path}")
            yield from _of_another_type(kinds[Mapping][1], item, f"{path}.{key}")
    elif fits[0] is tuple:
        for place, item in enumerate(cast("Sequence[object]", value)):
            yield from _of_another_type(kinds[tuple][0], item, f"{path}.{place}")


_ANY_NUMBER = inspect.Parameter.VAR_POSITIONAL
_CLASSES: Mapping[Any, Any] = {int: numbers.Integral, float: numbers.Real, tuple: (tuple, list)}
_WORDS = {
    **{int: "a whole number", float: "a number", bool: "True or False", str: "text"},
    **{Path: "a path", tuple: "a tuple", Iterable: "a list", Mapping: "a dict", type: "a class"},
}


def taking(
    kind: Callable[_Arguments, _Request],
) -> Callable[[Callable[[_Request], _Result]], Callable[_Arguments, _Result]]:
    """Return a decorator of a function of one object: it takes the arguments that make the object.

    The function raises TypeError for an argument that is unknown, with a suggestion.
    """
    signature = inspect.signature(kind)

    def decorated(function: Callable[[_Request], _Result]) -> Callable[_Arguments, _Result]:
        @functools.wraps(function)
        def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
            _require_known(kwargs, signature)
            return function(kind(*args, **kwargs))

        returned = inspect.signature(function).return_annotation
        cast("Any", call).__signature__ = signature.replace(return_annotation=returned)
        return call

    return decorated
