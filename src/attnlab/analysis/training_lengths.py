"""The training lengths of a study, each of which is a study of its own in a folder of its own.

`attnlab run STUDY --length LENGTH` writes `STUDY_LENGTH` beside `STUDY`. The report of each shows
all that have begun, packed or not. Variants are compared within one length only, by the rules and
at the error rate of that study; a difference between lengths is the subject of a hypothesis
(`hypotheses.across_studies`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from attnlab.analysis.parts import AgainstBaseline, against_baseline
from attnlab.analysis.scaling import cells_of_table
from attnlab.analysis.statistics.comparisons import Comparison
from attnlab.analysis.sweeps import SweptPoint, SweptSetting
from attnlab.analysis.table import Table, Variant, read_table
from attnlab.analysis.texts import by_text
from attnlab.analysis.verdict import Verdict, verdict_of
from attnlab.record import StudyRecord

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

    Args:
        verdict: of this study.
        parts: its losses minus those of the baseline, by variant.
    """
    study, home = verdict.table.study, verdict.table.path.resolve().parent
    missing, damaged, found = dict[str, str](), dict[str, str](), list[OfLength]()
    for name, length in study.lengths.items():
        if name == study.name:
            found += filter(None, [_of(name, verdict, parts)])
            continue
        try:
            table = read_table(home / name) if StudyRecord.find(home / name) else None
        except (ValueError, OSError) as error:
            damaged[name] = str(error)
            continue
        other = None if table is None else _read(name, table)
        if other is None:
            missing[name] = length
        else:
            found.append(other)
    if len(found) < 2:
        return None
    found.sort(key=lambda of: (of.window, of.tokens))
    return TrainingLengths(found=tuple(found), missing=missing, damaged=damaged)


def _read(name: str, table: Table) -> OfLength | None:
    verdict = verdict_of(next(iter(by_text(next(iter(cells_of_table(table).values()))).values())))
    return _of(name, verdict, against_baseline(verdict))


def _of(name: str, verdict: Verdict, parts: Mapping[str, AgainstBaseline]) -> OfLength | None:
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
