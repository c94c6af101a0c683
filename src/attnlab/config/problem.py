"""Errors in settings: all of them at once, each with the path of its field and a remedy."""

import re
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from difflib import get_close_matches
from typing import NamedTuple, Self


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

    Initials are near, too:

    >>> suggestion("lr", ["steps", "learning_rate", "seed"])
    "; did you mean 'learning_rate'?"
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
    close = (initials if len(name) > 1 else []) or get_close_matches(name, names, n=1)
    return close[0] if close else None


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
