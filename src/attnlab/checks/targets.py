"""What is checked, by its name: kinds, files of one's own, the variants of a study."""

from collections.abc import Iterable
from typing import NamedTuple

from attnlab.checks.result import Result
from attnlab.checks.small_configs import shortened, small
from attnlab.checks.suite import fitting_width, judge
from attnlab.config import is_own, override, settings, suggestion
from attnlab.mechanism import MechanismConfig
from attnlab.study.study import Study, load_study, shipped

LONGEST = 1024  # window, top-k or chunk of a study's: more is no matter of seconds


class Target(NamedTuple):
    """One mechanism at one model width, and who asks for it."""

    name: str
    config: MechanismConfig
    d_model: int

    def check(self, *, quick: bool = False) -> "Checked":
        return Checked(self, judge(self.config, d_model=self.d_model, quick=quick))


class Checked(NamedTuple):
    target: Target
    results: list[Result]

    @property
    def holds(self) -> bool:
        return all(result.holds for result in self.results)


def check(
    *what: str | MechanismConfig | type[MechanismConfig] | Study,
    overrides: Iterable[str] = (),
    quick: bool = False,
) -> list[Checked]:
    """Hold mechanisms against every promise of the contract: causality, decoding, cost, ...

    Args:
        what: `"all"`, a kind (`"mla"`), a place (`"my_file.py:Mine"`), a mechanism's settings or
            their class, a study, or its name or path. A kind or class is checked at small sizes,
            settings and the variants of a study as they stand.
        overrides: dotted settings that are replaced in every one: `window=64`.
        quick: look at fewer shapes and modes: what is done before a study is trained.

    Returns one `Checked` a mechanism and model width: its `target`, `results`, one a promise, and
    whether it `holds`. What a mechanism raises is a broken promise and no exception. Raises
    ValueError for a name that is nothing of these, and ConfigError for impossible settings.

    >>> [one] = check("sliding_window", overrides=["window=5"], quick=True)
    >>> one.holds, one.target.config.window
    (True, 5)
    """
    return [target.check(quick=quick) for target in targets(what, overrides)]


def targets(
    what: Iterable[str | MechanismConfig | type[MechanismConfig] | Study],
    overrides: Iterable[str] = (),
) -> list[Target]:
    """What `check` checks, of the same arguments."""
    changes = list(overrides)
    return [target for one in what for target in _targets(one, changes)]


def of_study(study: Study) -> list[Target]:
    """The distinct mechanisms of a study's variants, at their own settings and model width."""
    found = list[tuple[MechanismConfig, int, list[str]]]()
    for variant, run in study.variants.items():
        for config in run.model.per_layer():
            for known, d_model, variants in found:
                if known == config and d_model == run.model.d_model:
                    variants.append(variant)
                    break
            else:
                found.append((config, run.model.d_model, [variant]))
    return [
        Target(", ".join(dict.fromkeys(variants)), shortened(config, LONGEST), d_model)
        for config, d_model, variants in found
    ]


def _targets(
    what: str | MechanismConfig | type[MechanismConfig] | Study, changes: list[str]
) -> list[Target]:
    if isinstance(what, str):
        return _named(what, changes)
    if isinstance(what, Study):
        return of_study(what.override(changes))
    if isinstance(what, MechanismConfig):
        config = override(what, changes)
    else:
        config = small(what, settings(changes))
    return [Target(config.kind(), config, fitting_width(config))]


def _named(name: str, changes: list[str]) -> list[Target]:
    if name == "all":
        kinds = sorted(kind for kind, cls in MechanismConfig.kinds.items() if not is_own(cls))
        return [target for kind in kinds for target in _named(kind, changes)]
    if name in MechanismConfig.kinds or ":" in name:
        config = small(name, settings(changes))
        return [Target(name, config, fitting_width(config))]
    if name.endswith(".py") or name in shipped():
        return of_study(load_study(name).override(changes))
    known = ["all", *MechanismConfig.kinds, *shipped()]
    raise ValueError(
        f"nothing to check is called {name!r}{suggestion(name, known)}; "
        "a class (my_file.py:MyMechanism), a layer (fla:GatedLinearAttention) or a path to a "
        "study works too"
    )
