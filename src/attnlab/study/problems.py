"""Problems of a study's definition: names that cannot be folders, groups, seeds, a ladder."""

import ast
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any
from unicodedata import normalize

from attnlab.config import Problem, setting_at, suggestion
from attnlab.record import TUNING_SEED, Rung, folder_name

MOST_BYTES = 100  # of a name, in UTF-8; file systems allow 255 for the name of a folder
MOST_IN_FOLDER = 200  # of the name of the folder, where some characters take three bytes
_DEVICES = re.compile(
    r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE
)  # Windows refuses them
_OF_ATTNLAB = re.compile(r"seed-\d+(\.partial)?|tensorboard|wandb", re.IGNORECASE)


def name_problems(study: str, variants: Collection[str]) -> Iterator[Problem]:
    """Yield the names that are impossible: those of variants, and that of the study, if any."""
    if not variants:
        yield Problem("variants", "give at least one")
    if study and (reason := _reason(study)):
        yield Problem("name", f"{reason}; rename the study, or its file")
    seen = dict[str, str]()
    for variant in variants:
        reason = _reason(variant)
        if reason is None and _OF_ATTNLAB.fullmatch(variant):
            reason = f"{variant!r} is the name of a folder that attnlab writes"
        if reason is None and (twin := seen.setdefault(_same(variant), variant)) != variant:
            reason = f"{variant!r} and {twin!r} are one folder on some systems"
        if reason is not None:
            yield Problem("variants", f"{reason}; rename the variant")


def group_problems(
    families: Mapping[str, Iterable[str]],
    variants: Collection[str],
    labels: Iterable[str],
    labelled: Collection[str],
) -> Iterator[Problem]:
    """Yield unknown variants of families and labels, and those in several families.

    Args:
        families: the variants of each family.
        variants: those that a family may have.
        labels: the variants that have a label.
        labelled: those that may have one.
    """
    for name in labels:
        if name not in labelled:
            yield Problem(f"labels.{name}", f"no variant {name!r}{suggestion(name, labelled)}")
    seen = dict[str, str]()
    for family, names in families.items():
        for name in names:
            if name not in variants:
                message = f"no variant {name!r}{suggestion(name, variants)}"
                yield Problem(f"families.{family}", message)
            elif name in seen:
                yield Problem(f"families.{family}", f"{name} is also in {seen[name]}")
            seen[name] = family


def seeds_problems(seeds: int, most: int | None) -> Iterator[Problem]:
    """Yield why a study cannot have these numbers of seeds, at first and at most."""
    if not 1 <= seeds <= TUNING_SEED:
        yield Problem("seeds", f"must be at least 1, and at most {TUNING_SEED}; got {seeds}")
    if most is not None and seeds < 2:
        yield Problem("seeds", f"an open verdict needs 2 seeds or more at the start, got {seeds}")
    if most is not None and not seeds <= most <= TUNING_SEED:
        message = f"must be at least the {seeds} seeds at the start, and at most {TUNING_SEED}"
        yield Problem("most_seeds", f"{message}; got {most}")


def number_problems(**values: float | None) -> Iterator[Problem]:
    """Yield the losses that are negative or infinite, by name."""
    for name, value in values.items():
        if not 0 <= (value or 0) < math.inf:
            yield Problem(name, f"must not be negative or infinite, got {value}")


def ladder_problems(
    ladder: Mapping[str, Rung], searched: Iterable[str], variants: Collection[str]
) -> Iterator[Problem]:
    """Yield unknown variants of a ladder and of its searches, and two at one place."""
    for at, names in (("ladder", ladder), ("tuning.only", searched)):
        for name in names:
            if name not in variants:
                yield Problem(at, f"no variant {name!r}{suggestion(name, variants)}")
    places = dict[Rung, str]()
    for name, rung in ladder.items():
        if (other := places.setdefault(rung, name)) != name:
            yield Problem(f"ladder.{name}", f"{other} has the same family, size and budget")


def swept_problems(paths: Iterable[str], settings: Collection[Any]) -> Iterator[Problem]:
    """Yield the paths of swept settings that none of the variants has, given as JSON values."""
    nothing = object()
    for path in paths:
        if all(setting_at(tree, path, nothing) is nothing for tree in settings):
            yield Problem("swept", f"no variant has a setting {path!r}")


def repeated_keys(file: str, source: bytes) -> Iterator[Problem]:
    """Yield the keys, such as names of variants, that a dict in a study's file has twice."""
    for node in ast.walk(ast.parse(source)):
        seen = set[str]()
        for key in node.keys if isinstance(node, ast.Dict) else ():
            if isinstance(key, ast.Constant):
                shown = repr(key.value)
                if shown in seen:
                    message = (
                        f"{shown} is a key twice in one dict, which keeps the last; rename one"
                    )
                    yield Problem(f"{file}:{key.lineno}", message)
                seen.add(shown)


def _same(name: str) -> str:
    """Return one form of the names that are one folder where case, or the coding, is nothing."""
    return normalize("NFC", name.casefold())


def _reason(name: object) -> str | None:
    """Return why a name is impossible, or None."""
    if not isinstance(name, str) or not name.strip():
        return f"a name is text, and not empty; got {name!r}"
    shown = repr(name if len(name) <= 40 else f"{name[:40]}...")
    if not name.isprintable():
        return f"{shown} has a character that cannot be shown"
    if name != name.strip():
        return f"{shown} begins or ends with a space"
    if "/" in name or "\\" in name:
        return f"{shown} has a slash"
    if name.startswith("."):
        return f"{shown} begins with a dot"
    if _DEVICES.fullmatch(name):
        return f"{shown} is reserved on some systems"
    if (size := len(name.encode())) > MOST_BYTES or len(folder_name(name)) > MOST_IN_FOLDER:
        return f"{shown} has {size} bytes; at most {MOST_BYTES}, fewer with special characters"
    return None
