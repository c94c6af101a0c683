"""What a command line asks to have checked: kinds, files of one's own, the variants of a study."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from attnlab.check.result import Result
from attnlab.check.small import shortened, small
from attnlab.check.suite import check, fitting_width
from attnlab.config import suggestion
from attnlab.config.own_code import is_own
from attnlab.config.tree import Typed
from attnlab.mechanism import MechanismConfig
from attnlab.study import Study, load_study, shipped

LONGEST = 1024  # window, top-k or chunk of a study's: more is no matter of seconds


class Target(NamedTuple):
    """One mechanism at one model width, and who asks for it."""

    name: str
    config: MechanismConfig
    d_model: int

    def check(self, *, quick: bool = False) -> "Checked":
        return Checked(self, check(self.config, d_model=self.d_model, quick=quick))


class Checked(NamedTuple):
    target: Target
    results: list[Result]

    @property
    def holds(self) -> bool:
        return all(result.holds for result in self.results)


def targets(names: Iterable[str], assignments: Iterable[str] = ()) -> list[Target]:
    """`all`, a kind, `file.py:Class`, a study or its path; settings replaced in every one.

    Raises ValueError for a name that is nothing of these, and ConfigError for impossible settings.
    """
    changes = list(assignments)
    return [target for name in names for target in _named(name, changes)]


def of_study(study: Study) -> list[Target]:
    """The distinct mechanisms of a study's variants, at their own settings and model width."""
    found = list[tuple[MechanismConfig, int, list[str]]]()
    for variant, run in study.variants.items():
        for config in run.model.mechanisms:
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


def _named(name: str, changes: list[str]) -> Iterator[Target]:
    if name == "all":
        for kind, cls in sorted(MechanismConfig.kinds.items()):
            if not is_own(cls):
                yield from _named(kind, changes)
    elif name in MechanismConfig.kinds or ":" in name:
        config = small(name, {key: Typed(value) for key, value in _parted(changes)})
        yield Target(name, config, fitting_width(config))
    elif name.endswith(".py") or name in shipped():
        yield from of_study(load_study(name).override(changes))
    else:
        known = ["all", *MechanismConfig.kinds, *shipped()]
        raise ValueError(
            f"nothing to check is called {name!r}{suggestion(name, known)}; "
            "a class (my_file.py:MyMechanism), a layer (fla:GatedLinearAttention) or a path to a "
            "study works too"
        )


def _parted(changes: list[str]) -> Iterator[tuple[str, str]]:
    for change in changes:
        key, _, value = change.partition("=")
        yield key.strip(), value.strip()
