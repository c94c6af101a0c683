"""A sweep read back: the difference to the baseline against each setting that was swept.

    d(v) = mean loss at value v - mean loss of the baseline        nats/token

with the published interval of a difference to the baseline, of seeds and tuning, simultaneous over
all variants. Where several settings were swept, each line holds the others fixed. A variant whose
settings have no such path, such as full attention beside windows, has no place along it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attnlab.analysis.settings import describe
from attnlab.analysis.statistics.comparisons import Comparison
from attnlab.analysis.table import Variant
from attnlab.analysis.verdict import Verdict
from attnlab.config import setting_at

_ABSENT = object()


@dataclass(frozen=True, kw_only=True)
class SweptPoint:
    """One variant of a sweep."""

    variant: str
    value: Any  # of the setting
    difference: Comparison | None  # to the baseline, nats/token; None for the baseline itself


@dataclass(frozen=True, kw_only=True)
class SweptSetting:
    """The variants of a sweep in lines along one setting."""

    path: str
    values: tuple[Any, ...]  # ascending if they are numbers, else in the order of the study
    lines: Mapping[str, tuple[SweptPoint, ...]]  # by what each line holds fixed; "" if nothing

    @property
    def numeric(self) -> bool:
        """True if all values are numbers above 0, which have a place on a log axis."""
        return all(
            isinstance(value, int | float) and not isinstance(value, bool) and value > 0
            for value in self.values
        )


def swept_settings(verdict: Verdict) -> tuple[SweptSetting, ...]:
    """Return the sweep along each of its settings; empty for a study that is no sweep."""
    paths = verdict.table.study.swept
    variants = [
        variant
        for variant in verdict.table.variants
        if variant.name in verdict.means and variant.config
    ]
    if not paths or verdict.baseline is None:
        return ()
    found = (_along(path, paths, variants, verdict) for path in paths)
    # a setting of the data, which swept texts, has one value on each
    return tuple(setting for setting in found if len(setting.values) > 1)


def _along(
    path: str, paths: Sequence[str], variants: Sequence[Variant], verdict: Verdict
) -> SweptSetting:
    whose = {name: family for family, of in verdict.table.study.families.items() for name in of}
    lines = dict[str, list[SweptPoint]]()
    for variant in variants:
        value = setting_at(variant.config, path, _ABSENT)
        if value is _ABSENT:
            continue
        others = [
            f"{other.rpartition('.')[2]} {setting_at(variant.config, other)}"
            for other in paths
            if other != path
        ]
        fixed = ", ".join([*([whose[variant.name]] if variant.name in whose else []), *others])
        point = SweptPoint(
            variant=variant.name,
            value=value if isinstance(value, str | int | float) else describe(value),
            difference=verdict.to_baseline.get(variant.name),
        )
        lines.setdefault(fixed, []).append(point)
    values = list(dict.fromkeys(point.value for line in lines.values() for point in line))
    if all(isinstance(value, int | float) for value in values):
        values.sort()
    return SweptSetting(
        path=path,
        values=tuple(values),
        lines={
            fixed: tuple(sorted(line, key=lambda point: values.index(point.value)))
            for fixed, line in lines.items()
        },
    )
