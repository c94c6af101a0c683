"""Check mechanisms by name: kinds at small sizes, the variants of studies at their own."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from attnlab.checks.processes import results_in_copies
from attnlab.checks.result import Result
from attnlab.checks.small_configs import shortened, small
from attnlab.checks.subject import Subject
from attnlab.checks.suite import PROPERTIES, fitting_width, require_buildable
from attnlab.config import naming, override, settings, texts_in
from attnlab.config.problem import with_types
from attnlab.mechanism import MechanismConfig
from attnlab.model.handing import givers_alone, needed_by
from attnlab.study.study import Study
from attnlab.study.targets import Nameable, Named, NamedConfig, named

LONGEST = 1024  # window, top-k or chunk of a study's mechanism; a longer one takes minutes


class Target(NamedTuple):
    """One mechanism at one model width, and the name that it is reported under."""

    name: str
    config: MechanismConfig
    d_model: int
    batch_size: int | None = None  # sequences per batch in training; None: there is no study
    seq_len: int | None = None  # tokens per sequence in training
    varies: bool = False  # a kind by its name, whose settings may be varied
    before: tuple[MechanismConfig, ...] = ()  # the layers that it takes from

    def subject(self, *, quick: bool = False) -> Subject:
        """Return what is checked. Raises ValueError if the settings build no mechanism."""
        for config in (*self.before, self.config):
            require_buildable(config, self.d_model)
        return Subject(
            config=self.config,
            d_model=self.d_model,
            quick=quick,
            batch_size=self.batch_size,
            seq_len=self.seq_len,
            varies=self.varies,
            before=self.before,
        )


class Checked(NamedTuple):
    """A mechanism and one result per property."""

    target: Target
    results: list[Result]

    @property
    def holds(self) -> bool:
        """True if the mechanism has every property."""
        return all(result.holds for result in self.results)


@with_types
def check(
    *what: Nameable,
    overrides: Iterable[str] | str = (),
    quick: bool = False,
    watch: Callable[[Target], None] | None = None,
) -> list[Checked]:
    """Check mechanisms against every property of the contract: causality, decoding, cost, ...

    Args:
        what: `"all"`, a kind (`"mla"`), a class (`"my_file.py:Mine"`), a layer
            (`"fla:GatedLinearAttention"`), a study's name or path, the folder of a checkpoint
            of Llama, Mistral, Qwen2 or Qwen3 in the form of Hugging Face, each perhaps with
            settings of its own (`"mla:kv_lora_rank=8"`); or a mechanism's config, its class, or a
            study. Kinds and classes are checked at small sizes, configs and the variants of a study
            as given.
        overrides: dotted settings of every mechanism: `window=64`.
        quick: check fewer shapes and modes, as `attnlab.run` does before it trains.
        watch: called with each target before it is checked.

    Returns:
        One `Checked` per mechanism and model width. An exception of a mechanism is a violation
        of a property; it is not raised.

    Raises:
        ValueError: a name is unknown.
        ConfigError: settings are impossible.

    >>> [one] = check("sliding_window:window=5", quick=True)
    >>> one.holds, one.target.config.window
    (True, 5)
    """
    return check_targets(targets(what, overrides), quick=quick, watch=watch)


def check_targets(
    found: Sequence[Target],
    *,
    quick: bool = False,
    watch: Callable[[Target], None] | None = None,
) -> list[Checked]:
    """Return the results of each target, as many at a time as there are cores.

    `watch` is called with each target before it is checked. Raises ValueError if the settings of
    one build no mechanism.
    """
    subjects = [target.subject(quick=quick) for target in found]

    def begins(number: int) -> None:
        if watch is not None:
            watch(found[number])

    results = results_in_copies(PROPERTIES, subjects, begins)
    return [Checked(target, each) for target, each in zip(found, results, strict=True)]


def targets(what: Iterable[Nameable], overrides: Iterable[str] | str = ()) -> list[Target]:
    """Return the mechanisms that `check` checks when it is given the same arguments."""
    changes = texts_in(overrides, "overrides")
    return [target for one in named(what, changes) for target in _targets(one)]


def of_study(study: Study) -> list[Target]:
    """Return the distinct mechanisms of a study's variants: settings, model width, batch shape.

    One that takes tensors of earlier layers has those before it.
    """
    found = dict[tuple[tuple[MechanismConfig, ...], tuple[int, int, int]], list[str]]()
    for variant, run in study.variants.items():
        layers, d_model = run.model.per_layer(), run.model.d_model
        sizes = d_model, run.train.batch_size, run.train.seq_len
        for layer, config in enumerate(layers):
            judged = (*needed_by(layers, layer, d_model), config)
            found.setdefault((judged, sizes), []).append(variant)
    return [
        Target(
            ", ".join(dict.fromkeys(variants)),
            shortened(judged[-1], LONGEST),
            *sizes,
            before=tuple(shortened(each, LONGEST) for each in judged[:-1]),
        )
        for (judged, sizes), variants in found.items()
    ]


def _targets(one: Named) -> list[Target]:
    if isinstance(one, Study):
        return of_study(one)
    with naming(one.name):
        if isinstance(one, NamedConfig):
            config = override(one.config, one.assignments)
        else:
            config = small(one.kind, settings(one.assignments))
    varies = not isinstance(one, NamedConfig)
    width = fitting_width(config)
    return [Target(one.name, config, width, varies=varies, before=givers_alone(config, width))]
