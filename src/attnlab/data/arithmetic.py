"""Arithmetic: problems with their answers, one per line, made by a seeded generator.

    addition   684+97=781         two numbers of 1 to `digits` digits
    modular    45*13%97=3         +, - or * of two numbers below a modulus of 2 to 99
    sorting    71 4 12=4 12 71    2 to `terms` numbers below 100, ascending
    brackets   ([]{=})            1 to `brackets` brackets of three kinds, and those that close them

It needs no files. The same settings give the same text on every machine and version of Python: all
choices are made by `random.Random.random`, whose sequence Python guarantees. No two problems are
equal, nor equal but for the order of operands that may be exchanged, so that no held-out problem is
also for training. The operands are random: no model predicts them, and the loss has a floor.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

from attnlab.config import Problem
from attnlab.data.places import SPLITS, DataError, Places
from attnlab.data.source import DataConfig, Texts
from attnlab.data.tokenizer import Bytes, Tokenizer

HELD_OUT = 0.1  # probability of a problem, half for validation and half for test
MODULI = range(2, 100)
BELOW = 100  # the numbers that are sorted
PAIRS = ("()", "[]", "{}")
MOST_BYTES = 50_000_000
IN_VAIN = 1_000  # draws in a row that repeat a problem, after which its kind is exhausted

Draw = Callable[[int], int]  # a whole number below the argument
Drawn = tuple[str, str, object]  # question, answer, and what no other problem has


@dataclass(frozen=True, kw_only=True)
class Arithmetic(DataConfig):
    """Problems of one or several tasks, each task with the same probability."""

    tasks: tuple[str, ...] = ("addition", "modular", "sorting", "brackets")
    digits: int = 8  # of a number that is added, at most
    terms: int = 8  # numbers to sort, at most
    brackets: int = 24  # to be closed, at most
    max_bytes: int = 5_000_000
    seed: int = 0
    tokenizer: Tokenizer = field(default_factory=Bytes)

    def problems(self) -> Iterator[Problem]:
        for task in self.tasks:
            if task not in TASKS:
                yield Problem("tasks", f"no task {task!r}; known: {', '.join(TASKS)}")
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            yield Problem("tasks", "name at least one, each once")
        for name, least, most in (
            ("digits", 1, 100),
            ("terms", 2, 100),
            ("brackets", 1, 1_000),
            ("max_bytes", 1_000, MOST_BYTES),
        ):
            if not least <= (got := getattr(self, name)) <= most:
                yield Problem(name, f"must lie between {least} and {most}, got {got}")

    def texts(self, places: Places) -> Texts:
        del places
        splits = {split: list[str]() for split in SPLITS}
        random, left = Random(self.seed).random, self.max_bytes

        def draw(below: int) -> int:
            return int(random() * below)

        seen = {task: set[object]() for task in self.tasks}
        while True:
            task = self.tasks[draw(len(self.tasks))]
            line = self._new(task, draw, seen[task])
            if len(line) > left:
                break
            left -= len(line)
            held_out = random() / HELD_OUT
            splits["train" if held_out >= 1 else "valid" if held_out < 0.5 else "test"].append(line)
        if not all(splits.values()):
            raise DataError(
                f"data.max_bytes={self.max_bytes} holds too few problems to split: give more"
            )
        train, valid, test = (splits[split] for split in SPLITS)
        origin = f"{', '.join(self.tasks)}: {sum(map(len, splits.values()))} problems"
        return Texts(train=train, valid=valid, test=test, origin=origin)

    def _new(self, task: str, draw: Draw, seen: set[object]) -> str:
        """Return a problem that was not seen. Raises DataError if there seem to be none left."""
        for _ in range(IN_VAIN):
            question, answer, own = TASKS[task](self, draw)
            if own not in seen:
                seen.add(own)
                return f"{question}={answer}\n"
        raise DataError(
            f"there are only about {len(seen)} different problems of the task {task} with these "
            "settings: lower data.max_bytes, or allow larger problems"
        )


def _addition(settings: Arithmetic, draw: Draw) -> Drawn:
    a, b = (draw(10 ** (1 + draw(settings.digits))) for _ in range(2))
    return f"{a}+{b}", str(a + b), (min(a, b), max(a, b))


def _modular(settings: Arithmetic, draw: Draw) -> Drawn:
    del settings
    modulus = MODULI[draw(len(MODULI))]
    a, b = draw(modulus), draw(modulus)
    sign, result = (("+", a + b), ("-", a - b), ("*", a * b))[draw(3)]
    own = (a, b) if sign == "-" else (min(a, b), max(a, b))
    return f"{a}{sign}{b}%{modulus}", str(result % modulus), (sign, modulus, own)


def _sorting(settings: Arithmetic, draw: Draw) -> Drawn:
    numbers = [draw(BELOW) for _ in range(2 + draw(settings.terms - 1))]
    ascending = sorted(numbers)
    return " ".join(map(str, numbers)), " ".join(map(str, ascending)), tuple(ascending)


def _brackets(settings: Arithmetic, draw: Draw) -> Drawn:
    text, closing = "", list[str]()
    for _ in range(1 + draw(settings.brackets)):
        if closing and draw(2):
            text += closing.pop()
        else:
            opened, closed = PAIRS[draw(len(PAIRS))]
            text += opened
            closing.append(closed)
    return text, "".join(reversed(closing)), text


TASKS: dict[str, Callable[[Arithmetic, Draw], Drawn]] = {
    "addition": _addition,
    "modular": _modular,
    "sorting": _sorting,
    "brackets": _brackets,
}
