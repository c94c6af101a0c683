"""`attnlab list`: name what can be asked for."""

import dataclasses
import json
import sys
from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table as Grid

from attnlab.cli.app import JsonOption, app, console
from attnlab.config import Choice, Config
from attnlab.data import DataConfig
from attnlab.data.tokenizer import Tokenizer
from attnlab.mechanism import MechanismConfig
from attnlab.model.feedforward import FeedForward
from attnlab.model.language_model import ModelConfig
from attnlab.modules.rope_scaling import RopeScaling
from attnlab.study.load import shipped
from attnlab.training.config import EvalConfig, TrainConfig


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """Name what can be asked for: studies, mechanisms, data, and every setting with its default."""
    families: dict[str, type[Choice]] = {
        "mechanisms": MechanismConfig,
        "data": DataConfig,
        "tokenizers": Tokenizer,
        "feed-forward": FeedForward,
        "rope scalings": RopeScaling,
    }
    sections = {"model": ModelConfig, "train": TrainConfig, "eval": EvalConfig}
    studies = shipped()
    if as_json:
        kinds = {
            name: {kind: _fields(cls) for kind, cls in family.kinds.items()}
            for name, family in families.items()
        }
        described = {
            name: {"question": study.question.strip(), "variants": list(study.variants)}
            for name, study in studies.items()
        }
        settings = {name: _fields(cls) for name, cls in sections.items()}
        listed = {"studies": described, **kinds, "settings": settings}
        sys.stdout.write(json.dumps(listed, indent=2) + "\n")
        return
    grid = Grid(
        "study", "question", "variants", title="Studies: attnlab run NAME", title_justify="left"
    )
    for name, study in studies.items():
        grid.add_row(name, study.question.strip().splitlines()[0], ", ".join(study.variants))
    console.print(grid)
    for name, family in families.items():
        grid = Grid("kind", "what", "settings", title=name.capitalize(), title_justify="left")
        for kind, cls in family.kinds.items():
            grid.add_row(kind, _summary(cls), _said(cls))
        for prefix, find in family.elsewhere.items():
            grid.add_row(f"{prefix}:NAME", (find.__doc__ or "").partition(":")[0], "its own")
        console.print(grid)
    grid = Grid(
        "section", "settings", title="Of every run: section.key=value", title_justify="left"
    )
    for name, cls in sections.items():
        grid.add_row(name, _said(cls))
    console.print(grid)


def _said(cls: type[Config]) -> str:
    return escape(", ".join(f"{key}={value}" for key, value in _fields(cls).items()))


def _fields(cls: type[Config]) -> Mapping[str, Any]:
    """Settings and their defaults; "required" where there is none."""

    def default(field: "dataclasses.Field[Any]") -> Any:
        if field.default is not dataclasses.MISSING:
            return field.default
        if field.default_factory is not dataclasses.MISSING:
            made = field.default_factory()
            return made.to_dict() if isinstance(made, Config) else made
        return "required"

    return {field.name: default(field) for field in dataclasses.fields(cls)}


def _summary(cls: type[Choice]) -> str:
    """The first sentence of the file that a kind has to itself, or of its class."""
    module = sys.modules[cls.__module__]
    own_file = module.__name__.rpartition(".")[2] == cls.name()
    text = (module.__doc__ if own_file else cls.__doc__) or ""
    return " ".join(text.split("\n\n")[0].split()).split(". ")[0].rstrip(".:")
