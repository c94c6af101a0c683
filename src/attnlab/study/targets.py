"""Studies and mechanisms by name: the names that `run`, `check` and `bench` accept.

    all                        every mechanism that attnlab ships
    mla                        a kind
    my_file.py:MyMechanism     a class of your own
    fla:GatedLinearAttention   a layer of flash-linear-attention
    quickstart, my_study.py    a study, shipped or your own: its variants
    models/Qwen3-0.6B          a folder with a checkpoint of Llama or Qwen: a study of one variant

Each name may carry settings of its own, `mla:kv_lora_rank=8,n_heads=2`. Assignments that stand
alone, `n_heads=2`, hold for every name.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, NamedTuple

import attnlab.mechanisms  # noqa: F401  # pyright: ignore[reportUnusedImport]  loads every kind
from attnlab.config import (
    ConfigError,
    classes_of,
    forget_names,
    is_own,
    load_file,
    require_once,
    settings,
    suggestion,
)
from attnlab.config.problem import with_types
from attnlab.mechanism import MechanismConfig
from attnlab.model.llama_checkpoint import Checkpoint, find_checkpoint
from attnlab.record.json_text import read_foreign_object
from attnlab.study.problems import repeated_keys
from attnlab.study.study import Study
from attnlab.training.run import RunConfig

_SHIPPED = Path(__file__).parent / "shipped"
_KEY = r"[A-Za-z_][\w.]*="
_FORM = "KIND:KEY=VALUE,KEY=VALUE, with one colon, and commas without spaces"
_JOINED = re.compile(rf"(?<=[^,])[:;\s]+,?\s*({_KEY})|,\s+({_KEY})")  # no form of ours
_OWN_SETTINGS = re.compile(rf"(?P<name>.+?):(?P<settings>{_KEY}.*)", re.DOTALL)


class NamedKind(NamedTuple):
    """A kind whose settings are its defaults, except for the assignments."""

    name: str
    kind: type[MechanismConfig]
    assignments: list[str]


class NamedConfig(NamedTuple):
    """The settings of one mechanism, as given, except for the assignments."""

    name: str
    config: MechanismConfig
    assignments: list[str]


Named = NamedKind | NamedConfig | Study
Nameable = str | MechanismConfig | type[MechanismConfig] | Study


def named(what: Iterable[Nameable], assignments: Iterable[str] = ()) -> list[Named]:
    """Return what each name stands for, in order. A study already has the assignments.

    Args:
        what: names as in the module's table, a mechanism's config or its class, or a study.
        assignments: `key=value` settings of everything that is named.

    Raises:
        ValueError: nothing is named, or a name is unknown.
        ConfigError: the settings of a study are impossible, or a setting is given two values.

    >>> [kind] = named(["mla:kv_lora_rank=8,n_heads=2"], ["n_heads=4"])
    >>> kind.kind.__name__, kind.assignments
    ('MLA', ['n_heads=4', 'kv_lora_rank=8', 'n_heads=2'])
    """
    changes = list(assignments)
    require_once(changes)
    found = [target for one in what for target in _named(one, changes)]
    if not found:
        got = f"; got only settings, {', '.join(changes)}" if changes else ""
        raise ValueError(
            "name at least one mechanism or study: all, a kind (mla), a class (my_file.py:Mine), "
            f"a layer (fla:GatedLinearAttention) or a study (quickstart){got}"
        )
    return found


def addition(text: str) -> tuple[str, MechanismConfig]:
    """Return name and mechanism of a variant that is added to a study, `name=KIND[:settings]`.

    The kind is one that `check` accepts; without a name it is that of the class.

    Raises:
        ValueError: the kind is unknown.
        ConfigError: its settings are impossible.

    >>> addition("narrow=sliding_window:window=8")[0], addition("identity")[0]
    ('narrow', 'identity')
    """
    match = re.fullmatch(r"(?P<name>[^=:]+)=(?P<what>.+)", text, re.DOTALL)
    name, colon, what = text.partition(":")
    if re.fullmatch(r"=.*|[^=:]*=\s*|\s*", text, re.DOTALL):
        raise ValueError(f"{text!r} names no variant with a mechanism: write --add NAME=KIND")
    if colon and what.replace("-", "_") in MechanismConfig.kinds:
        raise ValueError(f"{text!r}: write --add {name}={what}")
    found = named([match["what"] if match else text])
    if len(found) != 1 or isinstance(found[0], Study):
        raise ValueError(f"{text!r} is no single mechanism: write --add NAME=file.py:Class")
    target = found[0]
    if isinstance(target, NamedConfig):
        return match["name"].strip() if match else target.config.name(), target.config
    config = target.kind.from_dict({"kind": target.kind.kind(), **settings(target.assignments)})
    return match["name"].strip() if match else target.kind.name(), config


def split_assignments(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the words of a command line into names and `key=value` assignments.

    >>> split_assignments(["mla:kv_lora_rank=8", "train.seq_len=512"])
    (['mla:kv_lora_rank=8'], ['train.seq_len=512'])
    """
    assignments = [word for word in words if re.match(_KEY, word)]
    return [word for word in words if word not in assignments], assignments


def _named(what: object, changes: list[str]) -> Iterator[Named]:
    if isinstance(what, str):
        yield from _by_name(what, changes)
    elif isinstance(what, Study):
        yield what.override(changes)
    elif isinstance(what, MechanismConfig):
        yield NamedConfig(what.kind(), what, changes)
    elif isinstance(what, type) and issubclass(what, MechanismConfig):
        yield NamedKind(what.kind(), what, changes)
    else:
        raise ValueError(
            f"expected the name of a mechanism or study, its class, or it; got {what!r}"
        )


def _by_name(word: str, changes: list[str]) -> Iterator[Named]:
    _require_form(word)
    match = _OWN_SETTINGS.fullmatch(word)
    name = match["name"] if match else word
    # a comma inside a value, as in betas=0.9,0.95, is followed by no key
    own = re.split(rf",(?={_KEY})", match["settings"]) if match else []
    require_once(own)
    if name == "all":
        for kind, cls in sorted(MechanismConfig.kinds.items()):
            if not is_own(cls):
                yield NamedKind(kind, MechanismConfig.of_kind(kind), [*changes, *own])
    elif name.endswith(".py") or name in shipped_names():
        yield load_study(name).override([*changes, *own])
    elif name.replace("-", "_") in MechanismConfig.kinds or ":" in name:
        yield NamedKind(word, MechanismConfig.of_kind(name), [*changes, *own])
    elif settings := find_checkpoint(Path(name)):
        yield _of_checkpoint(Path(name), settings).override([*changes, *own])
    else:
        _refuse_name(name)


def _refuse_name(name: str) -> None:
    """Raise ValueError with what is at this path or, if nothing is, with the nearest name."""
    config = Path(name) / "config.json"
    if name and config.is_file():
        read_foreign_object(config)  # which raises ValueError if it is damaged
        raise ValueError(f"{name} is a run of attnlab, no checkpoint: name its study or mechanism")
    if name and Path(name).exists():
        neither = "a study (a file .py) nor a folder with the config.json of a checkpoint"
        raise ValueError(f"{name} is neither {neither}")
    known = ["all", *MechanismConfig.kinds, *shipped_names()]
    near = suggestion(name, known)
    if near.startswith("; known"):
        near = f"{suggestion(name, MechanismConfig.kinds)} and studies (attnlab list)"
    raise ValueError(
        f"no mechanism or study {name!r}{near}; a class (my_file.py:MyMechanism), a layer "
        "(fla:GatedLinearAttention) or the path of a study or of a checkpoint's folder works too"
    )


def _require_form(word: str) -> None:
    """Raise ValueError if the word is a name and settings, put together in another way than ours.

    The message has the word in the right form. What may be a value is left alone.
    """
    shipped = (*MechanismConfig.kinds, *shipped_names(), "all")
    start = re.match(r"(?:[^:;,=\s()]*\.py:|fla:)?[\w-]+", word)
    name = start[0] if start else ""
    known = ":" in name or name.replace("-", "_") in shipped
    rest = word[len(name) :]
    pairs = re.findall(rf"{_KEY}[^:;,=\s()]*(?:,[^:;,=\s()]+(?=$|[:;,\s)]))*", rest)
    if not known or not rest or (rest.startswith((".", "/")) and not pairs):
        return
    others = [other for other in re.split(r"[:;,\s]+", rest) if other]
    if _OWN_SETTINGS.fullmatch(word):
        joined = _JOINED.search(rest) if "{" not in rest else None
        fields = _fields_of(name)
        key = (joined[1] or joined[2]).partition("=")[0].partition(".")[0] if joined else ""
        if joined is None and not re.search(r"[,;]\s*$|,,", rest):
            return
        if joined and key not in fields:
            if name in shipped_names():  # a value, such as a path
                return
            raise ValueError(f"{word!r}: write {_FORM}")
    elif not pairs and others and all(each.replace("-", "_") in shipped for each in others):
        raise ValueError(
            f"{word!r}: write names with spaces between them, {name} {' '.join(others)}"
        )
    elif not pairs:
        raise ValueError(f"{word!r}: settings are written {_FORM.replace('KIND', name)}")
    form = f"{name}:{','.join(pairs)}"
    raise ValueError(f"{word!r}: write {form!r}; commas without spaces separate settings")


def _fields_of(name: str) -> tuple[str, ...]:
    """Return the first names of the settings of a kind or, for any other name, of a run."""
    if name in shipped_names() or name == "all":
        return tuple(RunConfig.__dataclass_fields__)
    return tuple(MechanismConfig.of_kind(name).__dataclass_fields__)


def _of_checkpoint(folder: Path, settings: Checkpoint) -> Study:
    name = folder.resolve().name
    question = f"What does {name} compute, and what does it cost?"
    config = RunConfig.of_checkpoint(folder, settings)
    return Study(question=question, name=name, variants={name: config})


@with_types
def load_study(name: Path | str) -> Study:
    """Return a shipped study by its name, or the `study` of a Python file by its path.

    The file may import modules and packages beside it. Relative paths of data in it are those of
    its own folder, if they exist there.

    Raises:
        ValueError: there is no such study or file, or the file fails or defines no `study`.
        ConfigError: the study in the file cannot be run.
    """
    forget_names()
    if (name := str(name)).endswith(".py"):
        module = load_file(Path(name))
        if repeated := list(repeated_keys(name, Path(name).expanduser().read_bytes())):
            raise ConfigError(repeated)
        study = _study_of(module, Path(name).stem)
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
        if named := [name for name, it in vars(module).items() if isinstance(it, Study)]:
            there = f" (rename its `{named[0]}` to `study`)"
        kinds = [f"{module.__file__}:{each}" for each in classes_of(module, MechanismConfig)]
        meant = f"; as a mechanism, name {' or '.join(kinds[:3])}" if kinds else ""
        raise ValueError(f"{module.__file__} defines no `study = Study(...)`{there}{meant}")
    return study if study.name else dataclasses.replace(study, name=name)
