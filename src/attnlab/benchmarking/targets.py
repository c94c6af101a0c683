"""Models to measure: the variants of a study at its sizes, mechanisms in a model of given sizes.

A kind takes from the sizes of the model: its `n_heads`, and its `n_kv_heads` if it has that
setting, are the model's, and the widths of its heads are `d_model / n_heads`. Its other settings
are its defaults, or those that are given: `mla:kv_lora_rank=128`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

from attnlab.config import (
    Config,
    ConfigError,
    Problem,
    names_in,
    naming,
    override,
    require_once,
    settings,
    suggestion,
)
from attnlab.mechanism import MechanismConfig
from attnlab.mechanisms.identity import Identity
from attnlab.model.feedforward import Dense
from attnlab.model.handing import in_every_layer
from attnlab.model.language_model import ModelConfig
from attnlab.study.study import Study
from attnlab.study.targets import Named, NamedConfig, NamedKind
from attnlab.training.config import TrainConfig

_HEAD_WIDTHS = ("head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")


@dataclass(frozen=True, kw_only=True)
class Setup(Config):
    """A model, and how it is trained."""

    model: ModelConfig
    vocab_size: int
    train: TrainConfig


_SECTIONS = [field.name for field in fields(Setup)]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the model that a mechanism is put into; the feed-forward layer has width 4 d_model.

    Raises ConfigError for a size below 1, and for heads that do not divide the model width.
    """

    d_model: int = 768
    n_layers: int = 12
    n_heads: int = 12
    vocab_size: int = 50_257

    def __post_init__(self) -> None:
        sizes = {field.name: getattr(self, field.name) for field in fields(self)}
        if small := [name for name, size in sizes.items() if size < 1]:
            raise ConfigError(Problem(n, f"must be at least 1, got {sizes[n]}") for n in small)
        if self.d_model % self.n_heads:
            problem = f"{self.n_heads} heads do not divide d_model {self.d_model}; give both"
            raise ConfigError([Problem("n_heads", problem)])


def given_sizes(
    default: Sizes,
    given: Mapping[str, int | None],
    what: Sequence[Named],
    assignments: Iterable[str],
) -> Sizes:
    """Return the default sizes with those that are given; None is not given.

    Raises:
        ConfigError: an assignment gives a size another value, or heads do not divide the width.
        ValueError: sizes are given for studies alone, which have their own.

    >>> given_sizes(Sizes(), {"n_heads": 4, "d_model": None}, [], ["window=32"]).n_heads
    4
    >>> given_sizes(Sizes(), {"n_heads": 4}, [], ["n_heads=2"])
    Traceback (most recent call last):
    attnlab.config.problem.ConfigError: n_heads: is given twice, as 4 and 2; give it once
    """
    sizes = {name: size for name, size in given.items() if size is not None}
    paths = {"d_model": "model.d_model", "n_layers": "model.n_layers"}
    require_once([*(f"{paths.get(name, name)}={n}" for name, n in sizes.items()), *assignments])
    if sizes and what and all(isinstance(one, Study) for one in what):
        raise ValueError(f"a study has its own sizes: {', '.join(sizes)} is only for mechanisms")
    return replace(default, **sizes)


def split_sections(assignments: Iterable[str]) -> tuple[list[str], list[str]]:
    """Split assignments into those of a section of `Setup` and those of a mechanism.

    >>> split_sections(["train.seq_len=64", "window=32", "rope_scaling.factor=4"])
    (['train.seq_len=64'], ['window=32', 'rope_scaling.factor=4'])
    """
    of_setup, of_mechanism = list[str](), list[str]()
    for assignment in assignments:
        section, dot, _ = assignment.partition("=")[0].partition(".")
        (of_setup if dot and section in _SECTIONS else of_mechanism).append(assignment)
    return of_setup, of_mechanism


def setups_of(what: Iterable[Named], sizes: Sizes) -> dict[str, Setup]:
    """Return the models to measure, by name.

    Assignments to a section of `Setup` (`train.precision=float32`) change the setup of a mechanism,
    the others the mechanism. `sizes` are not used for the variants of a study.

    Raises:
        ValueError: two models have one name.
        ConfigError: settings are impossible.
    """
    found = [pair for one in what for pair in _setups(one, sizes)]
    names = [name for name, _ in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two models are called {twice!r}: measure them in separate benches")
    return dict(found)


def only_named(found: dict[str, Setup], names: Iterable[str] | str | None) -> dict[str, Setup]:
    """Return the setups with these names; all of them for None.

    Raises ConfigError for an unknown name.
    """
    if names is None:
        return found
    asked = names_in(names)
    unknown = [name for name in asked if name not in found]
    if unknown:
        raise ConfigError(
            Problem("only", f"no variant {name!r}{suggestion(name, found)}") for name in unknown
        )
    return {name: setup for name, setup in found.items() if name in asked}


def _setups(one: Named, sizes: Sizes) -> Iterator[tuple[str, Setup]]:
    if isinstance(one, Study):
        for variant, run in one.variants.items():
            vocab_size = run.data.tokenizer.vocab_size
            yield variant, Setup(model=run.model, vocab_size=vocab_size, train=run.train)
        return
    with naming(one.name):
        yield one.name, _setup(one, sizes)


def _setup(one: NamedKind | NamedConfig, sizes: Sizes) -> Setup:
    of_setup, of_mechanism = split_sections(one.assignments)
    sizes = _of_model(of_setup, sizes)
    if isinstance(one, NamedConfig):
        mechanism = override(one.config, of_mechanism)
    else:
        given = {**_fitting(one.kind, sizes), **settings(of_mechanism)}
        mechanism = one.kind.from_dict({"kind": one.kind.kind(), **given})
    return override(_around(mechanism, sizes), of_setup)


def _of_model(assignments: Iterable[str], sizes: Sizes) -> Sizes:
    """Return the sizes with those that settings of the model give, `model.d_model=64`.

    Raises ConfigError for impossible values, and for heads that do not divide the width.
    """
    names = ("d_model", "n_layers")
    given = [one for one in assignments if one.partition("=")[0] in {f"model.{n}" for n in names}]
    model = override(_around(Identity(), sizes), given).model
    return replace(sizes, **{name: getattr(model, name) for name in names})


def _around(mechanism: MechanismConfig, sizes: Sizes) -> Setup:
    """Return a model of these sizes with the mechanism in every layer.

    The first layer of one that takes tensors of earlier layers is its giver.
    """
    model = ModelConfig(
        mechanisms=in_every_layer(mechanism, sizes.n_layers, sizes.d_model),
        n_layers=sizes.n_layers,
        d_model=sizes.d_model,
        feedforward=Dense(d_ff=4 * sizes.d_model),
    )
    return Setup(model=model, vocab_size=sizes.vocab_size, train=TrainConfig())


def _fitting(kind: type[MechanismConfig], sizes: Sizes) -> dict[str, int]:
    """Return the settings of a kind that follow from the sizes of the model."""
    wanted = dict.fromkeys(("n_heads", "n_kv_heads"), sizes.n_heads)
    wanted |= dict.fromkeys(_HEAD_WIDTHS, sizes.d_model // sizes.n_heads)
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in wanted.items() if name in names}
