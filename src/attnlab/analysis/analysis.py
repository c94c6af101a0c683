"""The analysis of a study as one object, from which every page, table and figure is made.

`analyse` reads the run folders of a study. Nothing here imports torch.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from importlib import import_module
from pathlib import Path

from attnlab.analysis.controls import Control, controls_of
from attnlab.analysis.costs import Serving, costs_of
from attnlab.analysis.efficiency import Efficiency, efficiency_of
from attnlab.analysis.eligibility import FEWEST, eligible
from attnlab.analysis.fairness import n_texts
from attnlab.analysis.families import (
    Families,
    SizeAndLoss,
    Spread,
    families_of,
    sizes_of,
    spreads_of,
)
from attnlab.analysis.headline import at_recipe, beside, continued, headline, on_each_text
from attnlab.analysis.hypotheses import Judgement, judge_all
from attnlab.analysis.lengths import AtLengths, at_lengths
from attnlab.analysis.numbers import ends
from attnlab.analysis.parts import AgainstBaseline, against_baseline, on_text
from attnlab.analysis.picks import Front, Pick, front_of, picks_of
from attnlab.analysis.profile import read_by
from attnlab.analysis.rates import RateCurve, rate_curves
from attnlab.analysis.scaling import Scaling, cells_of_table, scaling_of
from attnlab.analysis.sentences import listed
from attnlab.analysis.statistics.comparisons import Comparison
from attnlab.analysis.statistics.noise import Relative, relative_variances
from attnlab.analysis.statistics.paired import Difference
from attnlab.analysis.sweeps import SweptSetting, TrainingLengths, swept_settings, training_lengths
from attnlab.analysis.table import Table, read_table
from attnlab.analysis.texts import Agreement, agreements, by_text
from attnlab.analysis.verdict import Verdict, verdict_of
from attnlab.config.problem import with_types
from attnlab.record import Cell, reading_once

__all__ = [
    "Agreement",
    "Analysis",
    "Comparison",
    "Control",
    "Front",
    "Judgement",
    "Pick",
    "RateCurve",
    "analyse",
    "analysis_of",
]


STANDINGS = ("better", "not distinguishable", "worse")


@dataclass(frozen=True, kw_only=True)
class Analysis(Verdict):
    """The verdict, and what follows from it and from the costs."""

    controls: tuple[Control, ...]
    diverged: Mapping[str, tuple[int, int]]  # variant: (runs diverged or failed, runs planned)
    rates: Mapping[str, RateCurve]  # by variant; empty if no learning rate was tuned
    parts: Mapping[str, AgainstBaseline]  # of the loss, minus the baseline; empty if unknown
    on_text: Mapping[str, Difference]  # minus the baseline, error of the text; empty if unknown
    lengths: Mapping[str, AtLengths]  # by variant; empty if no other length was measured
    training_lengths: TrainingLengths | None  # None unless two are in folders beside one another
    efficiency: Efficiency | None  # None without curves, or without a target
    swept: tuple[SweptSetting, ...]  # by setting; empty if the study is no sweep
    fronts: tuple[Front, ...]  # one per cost
    picks: tuple[Pick, ...]  # one per use case
    judgements: tuple[Judgement, ...]  # one per hypothesis of the study
    families: Families | None  # None if the study names none; the next two are then empty
    spreads: tuple[Spread, ...]  # one per number, over all variants
    sizes: tuple[SizeAndLoss, ...]  # one per variant but the baseline
    headline: tuple[str, str]  # the verdict in two sentences
    whole: Table  # of all texts, sizes and lengths; `table` holds those compared with the baseline
    text: str  # name of the baseline's text
    texts: Mapping[str, "Analysis"]  # of each other text, by its name; empty for a study of one
    cell: Cell | None  # of the baseline; None for a study of one size and length
    cells: Mapping[str, "Analysis"]  # of each other size and length of a ladder, by name
    scaling: Scaling | None  # of a ladder
    agreements: tuple[Agreement, ...]  # one per two texts, on the order of mechanisms

    @property
    def groups(self) -> tuple["Analysis", ...]:
        """The analyses of all variants of the study, this one first."""
        return (self, *self.texts.values(), *(of for it in self.cells.values() for of in it.groups))

    @property
    def several_texts(self) -> bool:
        """True if the study has comparisons on other texts, too."""
        return n_texts(self.table.study) > 1

    @property
    def scope(self) -> str:
        """The text, size and length in words, after a space; empty if the study has one of each."""
        text = f" on {self.text}" if self.several_texts else ""
        return f"{text} at {self.cell.size}, {self.cell.budget}" if self.cell else text

    def _repr_html_(self) -> str:
        """Return what a notebook shows in place of the object: headline, ranking and figure."""
        # reports are made from analyses, so that their package is named here and not imported
        return import_module("attnlab.reporting.terminal").for_notebook(self)


@with_types
@reading_once()
def analyse(study_dir: Path | str) -> Analysis:
    """Analyse a study folder as far as it has come. Raises ValueError if it holds no study."""
    return analysis_of(read_table(Path(study_dir)))


def analysis_of(table: Table) -> Analysis:
    """Analyse a table, of one study or of several folders; each text, size and length by itself."""
    tables = cells_of_table(table)
    several = len(tables) > 1
    relative = _relative_noise(table, tables)
    cells = {
        it: _of_cell(table, of, it if several else None, relative) for it, of in tables.items()
    }
    first, *others = cells
    found = cells[first]
    scaling = scaling_of(table, cells)
    lengths = training_lengths(found, found.parts)
    named = {f"{it.size}, {it.budget}": cells[it] for it in others}
    said = found.headline
    if scaling is not None:
        there = f"{found.scope.strip().capitalize()}, {continued(said[0])}"
        answer, standings = scaling_answer(scaling), f"{said[1]} {_scales(scaling)}".strip()
        answer = at_recipe(answer) if found.tuning.at_recipe else answer
        said = (answer, f"{there} {standings}") if answer else (there, standings)
    return replace(found, scaling=scaling, cells=named, training_lengths=lengths, headline=said)


def _relative_noise(whole: Table, cells: Mapping[Cell, Table]) -> Relative | None:
    """Return how the noise of a ladder's families differs over its places; else None."""
    if not whole.study.ladder:
        return None
    family = {name: rung.family for name, rung in whole.study.rungs.items()}
    each = [eligible(of).losses for table in cells.values() for of in by_text(table).values()]
    judged = [
        losses
        for losses in each
        if len(losses) > 1 and all(n in family and len(of) >= FEWEST for n, of in losses.items())
    ]
    return relative_variances(judged, family)


def _of_cell(whole: Table, table: Table, cell: Cell | None, relative: Relative | None) -> Analysis:
    """Analyse one size and training length of a study, or all of a study that has one of each."""
    verdicts = {text: verdict_of(of_text, relative) for text, of_text in by_text(table).items()}
    agreed = agreements(verdicts)
    found = {text: _analysis_of(whole, text, verdicts, agreed, cell) for text in verdicts}
    first, *others = found
    if not others:
        return found[first]
    said = {
        text: " ".join([of.headline[0], *filter(None, beside(of))]) for text, of in found.items()
    }
    said[first] = found[first].headline[0]
    return replace(
        found[first],
        texts={text: found[text] for text in others},
        agreements=agreed,
        headline=on_each_text(said, found[first].headline[1], agreed, read_by(table)),
    )


def _analysis_of(
    whole: Table,
    text: str,
    verdicts: Mapping[str, Verdict],
    agreed: tuple[Agreement, ...],
    cell: Cell | None,
) -> Analysis:
    """Analyse one text of a study, with its verdicts on all of them."""
    verdict = verdicts[text]
    table = verdict.table
    serving = Serving.read(table.path)
    costs = costs_of(table, serving)
    controls = controls_of(verdict)
    families, parts = families_of(verdict), against_baseline(verdict)
    judgements = judge_all(verdict, costs, tuple(verdicts.values()), agreed)
    return Analysis(
        **{field.name: getattr(verdict, field.name) for field in fields(Verdict)},
        controls=controls,
        diverged={v.name: (len(v.failures), len(v.runs)) for v in table.variants},
        rates=rate_curves(table),
        parts=parts,
        on_text=on_text(verdict),
        lengths=at_lengths(verdict.counted),
        training_lengths=None,
        efficiency=efficiency_of(verdict),
        swept=swept_settings(verdict),
        fronts=tuple(front_of(cost, verdict) for cost in costs),
        picks=picks_of(verdict, costs, serving),
        judgements=judgements,
        families=families,
        spreads=spreads_of(verdict) if families else (),
        sizes=sizes_of(verdict) if families else (),
        headline=headline(verdict, controls, judgements),
        whole=whole,
        text=text,
        texts={},
        cell=cell,
        cells={},
        scaling=None,
        agreements=(),
    )


def _scales(found: Scaling) -> str:
    """Return a sentence on the sizes and lengths of a ladder."""
    said, others = list[str](), [f for f in found.families if f != found.baseline]
    rungs = next(iter(found.cells.values())).table.study.rungs
    for family in others:
        counts = Counter[str]()
        for verdict in found.cells.values():
            name = next((n for n in verdict.to_baseline if rungs[n].family == family), None)
            if name is None or not verdict.judged:
                continue
            separable = verdict.to_baseline[name].separable
            better = "better" if verdict.to_baseline[name].mean < 0 else "worse"
            counts[better if separable else "not distinguishable"] += 1
        if counts:
            parts = [f"{what} in {counts[what]}" for what in STANDINGS if counts[what]]
            said.append(f"{family} {', '.join(parts)}")
    if not said:
        return ""
    return f"Against {found.baseline}, of {len(found.cells)} sizes and lengths: {'; '.join(said)}."


def scaling_answer(found: Scaling) -> str:
    """Return which families scale better, and which worse, than the baseline in training FLOPs.

    Empty without intervals of effective speedups.
    """
    gains = found.along["flops"].speedups if "flops" in found.along else {}
    shown, better, worse = list[str](), list[str](), list[str]()
    for family, gain in gains.items():
        if gain.ratio is not None and gain.interval is not None:
            low, high = gain.interval
            shown.append(f"{family} {gain.ratio:.2f}x {ends(gain.interval, 2)}")
            better += [family] if low > 1 else []
            worse += [family] if high < 1 else []
    if not shown:
        return ""
    lead = listed(better) or "No family is shown to"
    lead += f" {'scales' if len(better) == 1 else 'scale'} better than {found.baseline}"
    if worse:
        lead += f", and {listed(worse)} {'scales' if len(worse) == 1 else 'scale'} worse"
    return f"{lead}, by effective speedup in training FLOPs: {', '.join(shown)}."
