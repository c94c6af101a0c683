"""What a command line asks to have measured: the variants of a study, kinds, files of one's own.

A study's variants have the study's sizes. A kind is put into a model of the sizes that are named:
its `n_heads`, and `n_kv_heads` where it has such, are the model's, and the widths of its heads are
`d_model / n_heads`. All else is as the kind has it, or as it is asked for: `mla:kv_lora_rank=128`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

from attnlab.config import Config, ConfigError, Problem, is_own, override, settings, suggestion
from attnlab.mechanism import MechanismConfig
from attnlab.model.feedforward import Dense
from attnlab.model.language_model import ModelConfig
from attnlab.study.study import Study, load_study, shipped
from attnlab.training.config import TrainConfig

_HEAD_WIDTHS = ("head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")


@dataclass(frozen=True, kw_only=True)
class Setup(Config):
    """A model, and how it is trained."""

    model: ModelConfig
    vocab_size: int
    train: TrainConfig


_SECTIONS = [field.name for field in fields(Setup)]


class Target(NamedTuple):
    name: str
    setup: Setup


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of the model that a kind is put into; the feed-forward layer is four times as wide."""

    d_model: int = 768
    n_layers: int = 12
    n_heads: int = 12
    vocab_size: int = 50_257


def targets(words: Iterable[str], assignments: Sequence[str], sizes: Sizes) -> list[Target]:
    """`all`, a kind, `file.py:Class`, a study or its path, each perhaps with `:key=value,...`.

    `assignments` hold for every target: those of a section (`model.n_layers=2`) for its setup,
    the others (`window=64`, `rope_scaling.factor=4`) for the settings of kinds. Raises ValueError
    for a name that is nothing of these or comes twice, and ConfigError for impossible settings.
    """
    found = [target for word in words for target in _named(word, assignments, sizes)]
    if not found:
        raise ValueError("name what to measure: a study, a kind, all or file.py:Class")
    names = [target.name for target in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two targets are called {twice!r}: measure them one at a time")
    return found


def study_of(words: Sequence[str]) -> Study | None:
    """The study, where the command line names one and nothing else."""
    name = _parted(words[0])[0] if len(words) == 1 else ""
    return load_study(name) if _is_study(name) else None


def _named(word: str, assignments: Sequence[str], sizes: Sizes) -> Iterator[Target]:
    name, own = _parted(word)
    changes = [*assignments, *own]
    if name == "all":
        for kind, cls in sorted(MechanismConfig.kinds.items()):
            if not is_own(cls):
                yield Target(kind, _setup(kind, changes, sizes))
    elif _is_study(name):
        for variant, run in load_study(name).override(changes).variants.items():
            vocab_size = run.data.tokenizer.vocab_size
            yield Target(variant, Setup(model=run.model, vocab_size=vocab_size, train=run.train))
    elif name in MechanismConfig.kinds or ":" in name:
        yield Target(word, _setup(name, changes, sizes))
    else:
        known = ["all", *MechanismConfig.kinds, *shipped()]
        raise ValueError(
            f"nothing to measure is called {name!r}{suggestion(name, known)}; "
            "a class (my_file.py:MyMechanism) or a path to a study works too"
        )


def _setup(kind: str, changes: Sequence[str], sizes: Sizes) -> Setup:
    """A model of these sizes with this kind in every layer."""
    if sizes.d_model % sizes.n_heads:
        problem = f"{sizes.n_heads} heads do not divide d_model {sizes.d_model}"
        raise ConfigError([Problem("n_heads", problem)])
    of_setup, of_kind = list[str](), list[str]()
    for change in changes:
        section, dot, _ = change.partition("=")[0].partition(".")
        (of_setup if dot and section in _SECTIONS else of_kind).append(change)
    fitting = _fitting(MechanismConfig.of_kind(kind), sizes)
    mechanism = MechanismConfig.from_dict({"kind": kind, **fitting, **settings(of_kind)})
    model = ModelConfig(
        mechanisms=(mechanism,),
        n_layers=sizes.n_layers,
        d_model=sizes.d_model,
        feedforward=Dense(d_ff=4 * sizes.d_model),
    )
    return override(Setup(model=model, vocab_size=sizes.vocab_size, train=TrainConfig()), of_setup)


def _fitting(kind: type[MechanismConfig], sizes: Sizes) -> dict[str, int]:
    """The settings of a kind that follow from the sizes of the model."""
    wanted = dict.fromkeys(("n_heads", "n_kv_heads"), sizes.n_heads)
    wanted |= dict.fromkeys(_HEAD_WIDTHS, sizes.d_model // sizes.n_heads)
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in wanted.items() if name in names}


def _is_study(name: str) -> bool:
    return name.endswith(".py") or name in shipped()


def _parted(word: str) -> tuple[str, list[str]]:
    """A target's name, and the settings after its last colon."""
    name, colon, settings = word.rpartition(":")
    return (name, settings.split(",")) if colon and "=" in settings else (word, [])
