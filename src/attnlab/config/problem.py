"""What is wrong with settings: all of it at once, each with its place and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import NamedTuple


class Problem(NamedTuple):
    """One thing wrong with the settings: the dotted path of a field, and what to do about it."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message

    def under(self, prefix: str) -> "Problem":
        """The same problem, seen from the settings that hold these under `prefix`."""
        return Problem(join(prefix, self.path), self.message)


class ConfigError(ValueError):
    """Everything that is wrong with the settings, at once."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        super().__init__("\n".join(str(problem) for problem in self.problems))


def suggestion(name: str, known: Iterable[str]) -> str:
    """What to append to "no such name": the nearest that there is, or all of them.

    >>> suggestion("stpes", ["steps", "seed"]), suggestion("x", ["steps", "seed"])
    ("; did you mean 'steps'?", '; known: seed, steps')
    """
    names = sorted(known)
    if not names:
        return "; there are none"
    close = get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names)}"


def join(*parts: str) -> str:
    """A dotted path of the parts that are not empty."""
    return ".".join(part for part in parts if part)
