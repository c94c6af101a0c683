"""Differences to the baseline along a setting: those of a sweep, and the lengths of training.

    d(v) = mean loss at value v - mean loss of the baseline        nats/token

with the published interval of a difference to the baseline, of seeds and tuning, simultaneous over
all variants. Where several settings were swept, each line holds the others fixed. A variant whose
settings have no such path, such as full attention beside windows, has no place along it.

Each training length of a study is a study of its own in a folder of its own: `attnlab run STUDY
--length LENGTH` writes `STUDY_LENGTH` beside `STUDY`. The report of each shows all that have begun,
packed or not. Variants are compared within one length only, by the rules and at the error rate of
that study; a difference between lengths is the subject of a hypothesis
(`hypotheses.across_studies`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attnlab.analysis.parts import AgainstBaseline, against_baseline
from attnlab.analysis.scaling import cells_of_table
from attnlab.analysis.settings import describe
from attnlab.analysis.statistics.comparisons import Comparison
from attnlab.analysis.table import Table, Variant, read_table
from attnlab.analysis.texts import by_text
from attnlab.analysis.verdict import Verdict, verdict_of
from attnlab.config import setting_at
from attnlab.record import StudyRecord

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


WINDOW, TOKENS = "tokens/sequence", "training tokens"


@dataclass(frozen=True, kw_only=True)
class OfLength:
    """One training length of a study."""

    study: str  # its name, and that of its folder
    verdict: Verdict
    parts: Mapping[str, AgainstBaseline]  # of the loss; empty if not recorded
    window: int  # tokens/sequence of the baseline, or of the first variant
    tokens: int  # in training, of the same

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The variants with a loss that is compared, in the study's order."""
        return tuple(v for v in self.verdict.table.variants if v.name in self.verdict.means)


@dataclass(frozen=True, kw_only=True)
class TrainingLengths:
    """The training lengths of a study that are in folders beside one another."""

    found: tuple[OfLength, ...]  # two or more, the shortest window first
    missing: Mapping[str, str]  # study: the value of --length that makes it; empty: none
    damaged: Mapping[str, str]  # study: the reason why it cannot be read

    def along(self, pair_of: Callable[[OfLength, str], Comparison | None]) -> SweptSetting:
        """Return differences to the baseline along the lengths, with a line per variant."""
        each = {
            WINDOW: [of.window for of in self.found],
            TOKENS: [of.tokens for of in self.found],
            "study": [of.study for of in self.found],
        }
        path, values = next(it for it in each.items() if len(set(it[1])) == len(self.found))
        lines = dict[str, list[SweptPoint]]()
        for of, at in zip(self.found, values, strict=True):
            for variant in of.variants:
                if (pair := pair_of(of, variant.name)) is not None:
                    point = SweptPoint(variant=variant.name, value=at, difference=pair)
                    lines.setdefault(variant.name, []).append(point)
        of_line = {name: tuple(points) for name, points in lines.items()}
        return SweptSetting(path=path, values=tuple(values), lines=of_line)

    def along_part(self, part: str) -> SweptSetting:
        """Return the differences of the loss on "all" tokens, on "recall" or on "other" tokens."""

        def pair(of: OfLength, name: str) -> Comparison | None:
            if part == "all":
                return of.verdict.to_baseline.get(name)
            return getattr(of.parts.get(name), part, None)

        return self.along(pair)


def training_lengths(
    verdict: Verdict, parts: Mapping[str, AgainstBaseline]
) -> TrainingLengths | None:
    """Return the lengths of a study; None unless two are compared in folders beside one another.

    One at which recipes were searched is not read beside one at which they were not.

    Args:
        verdict: of this study.
        parts: its losses minus those of the baseline, by variant.
    """
    study, home = verdict.table.study, verdict.table.path.resolve().parent
    missing, damaged, found = dict[str, str](), dict[str, str](), list[OfLength]()
    for name, length in study.lengths.items():
        if name == study.name:
            found += filter(None, [_of_length(name, verdict, parts)])
            continue
        try:
            table = read_table(home / name) if StudyRecord.find(home / name) else None
        except (ValueError, OSError) as error:
            damaged[name] = str(error)
            continue
        # between searched recipes and others, variants differ by more than length
        alike = table is not None and (table.study.tuning is None) == (study.tuning is None)
        other = _read_length(name, table) if table is not None and alike else None
        if other is None:
            missing[name] = length
        else:
            found.append(other)
    if len(found) < 2:
        return None
    found.sort(key=lambda of: (of.window, of.tokens))
    return TrainingLengths(found=tuple(found), missing=missing, damaged=damaged)


def _read_length(name: str, table: Table) -> OfLength | None:
    verdict = verdict_of(next(iter(by_text(next(iter(cells_of_table(table).values()))).values())))
    return _of_length(name, verdict, against_baseline(verdict))


def _of_length(
    name: str, verdict: Verdict, parts: Mapping[str, AgainstBaseline]
) -> OfLength | None:
    """Return a length; None if no variant of it is compared yet."""
    compared = [v for v in verdict.table.variants if v.name in verdict.means and v.config]
    if not compared:
        return None
    first = next((v for v in compared if v.name == verdict.baseline), compared[0])
    train = first.config.get("train", {})
    window, batch, steps = (train.get(key) or 0 for key in ("seq_len", "batch_size", "steps"))
    return OfLength(
        study=name, verdict=verdict, parts=parts, window=window, tokens=window * batch * steps
    )
