"""Loading a study: one that attnlab ships, by its name, or one of your own, by its path."""

import dataclasses
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from attnlab.config import classes_of, forget_names, load_file, suggestion
from attnlab.mechanism import MechanismConfig
from attnlab.study.study import Study

_SHIPPED = Path(__file__).parent / "shipped"


def load_study(name: str) -> Study:
    """Return a shipped study by its name, or the `study` of a Python file by its path.

    The file may import modules and packages beside it. Relative paths of data in it are those of
    its own folder, if they exist there.

    Raises:
        ValueError: there is no such study or file, or the file fails or defines no `study`.
        ConfigError: the study in the file cannot be run.
    """
    forget_names()
    if name.endswith(".py"):
        study = _study_of(load_file(Path(name)), Path(name).stem)
        return study.in_folder(Path(name).expanduser().resolve().parent)
    known = shipped_names()
    if name not in known:
        _refuse_mechanism(name)
        if Path(f"{name}.py").is_file():
            raise ValueError(f"no study {name!r}; did you mean the file {name}.py?")
        if name and Path(name).exists():
            raise ValueError(
                f"{name} is no study: a study is a Python file, whose name ends in .py, or "
                "one that attnlab list shows. attnlab report shows a folder of results"
            )
        raise ValueError(
            f"no study {name!r}{suggestion(name, known)}; the path of a Python file works, too"
        )
    return _study_of(import_module(f"attnlab.study.shipped.{name}"), name)


def _refuse_mechanism(name: str) -> None:
    """Raise ValueError if the name is that of a mechanism, with the commands that take one."""
    import attnlab.mechanisms  # noqa: F401  # pyright: ignore[reportUnusedImport]  loads every kind

    own, colon, settings = name.partition(":")
    kind = name if own.endswith(".py") else own
    if own in MechanismConfig.kinds or (own.endswith(".py") and colon):
        changes = [f"model.mechanisms.0={kind}"]
        changes += [f"model.mechanisms.0.{one}" for one in settings.split(",") if "=" in one]
        raise ValueError(
            f"{name} is a mechanism, not a study. attnlab check {name} checks it, attnlab bench "
            f"{name} measures it; attnlab run quickstart --only mha {' '.join(changes)} trains it "
            "in place of attention, with --out for a folder of its own"
        )


def shipped() -> dict[str, Study]:
    """Return the studies that attnlab ships, by name."""
    return {name: load_study(name) for name in shipped_names()}


def shipped_names() -> list[str]:
    """Return the names of the studies that attnlab ships, without importing them."""
    return [module.name for module in iter_modules([str(_SHIPPED)])]


def _study_of(module: ModuleType, name: str) -> Study:
    study: Any = getattr(module, "study", None)
    if not isinstance(study, Study):
        there = "" if study is None else f" (its `study` is a {type(study).__name__})"
        kinds = [f"{module.__file__}:{each}" for each in classes_of(module, MechanismConfig)]
        meant = f"; as a mechanism, name {' or '.join(kinds[:3])}" if kinds else ""
        raise ValueError(f"{module.__file__} defines no `study = Study(...)`{there}{meant}")
    return study if study.name else dataclasses.replace(study, name=name)
