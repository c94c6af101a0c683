"""The analysis of a study as one object, from which every page, table and figure is made.

`analyse` reads the run folders of a study. Nothing here imports torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from attnlab.analysis.controls import Control, controls_of
from attnlab.analysis.costs import Serving, costs_of
from attnlab.analysis.efficiency import Efficiency, efficiency_of
from attnlab.analysis.families import (
    Families,
    SizeAndLoss,
    Spread,
    families_of,
    sizes_of,
    spreads_of,
)
from attnlab.analysis.headline import headline, on_each_text
from attnlab.analysis.hypotheses import Judgement, judge_all
from attnlab.analysis.lengths import AtLengths, at_lengths
from attnlab.analysis.parts import AgainstBaseline, against_baseline, on_text
from attnlab.analysis.picks import Front, Pick, front_of, picks_of
from attnlab.analysis.rates import RateCurve, rate_curves
from attnlab.analysis.scaling import Scaling, cells_of_table, scaling_of
from attnlab.analysis.statistics.comparisons import Comparison
from attnlab.analysis.statistics.paired import Difference
from attnlab.analysis.sweeps import SweptSetting, swept_settings
from attnlab.analysis.table import Table, read_table
from attnlab.analysis.texts import Agreement, agreements, by_text
from attnlab.analysis.training_lengths import TrainingLengths, training_lengths
from attnlab.analysis.verdict import Verdict, verdict_of

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
    scaling: Scaling | None  # of a ladder
    agreements: tuple[Agreement, ...]  # one per two texts, on the order of mechanisms

    @property
    def one_of_texts(self) -> bool:
        """True if the study has comparisons on other texts, too."""
        return self.table is not self.whole


def analyse(study_dir: Path | str) -> Analysis:
    """Analyse a study folder as far as it has come. Raises ValueError if it holds no study."""
    return analysis_of(read_table(Path(study_dir)))


def analysis_of(table: Table) -> Analysis:
    """Analyse a table, of one study or of several folders; each text of a study by itself."""
    tables = by_text(next(iter(cells_of_table(table).values())))
    verdicts = {text: verdict_of(of_text) for text, of_text in tables.items()}
    agreed = agreements(verdicts)
    found = {text: _analysis_of(table, text, verdicts, agreed) for text in verdicts}
    first, *others = found
    found[first] = replace(found[first], scaling=scaling_of(table))
    if not others:
        return found[first]
    said = {text: of.headline[0] for text, of in found.items()}
    return replace(
        found[first],
        texts={text: found[text] for text in others},
        agreements=agreed,
        headline=on_each_text(said, found[first].headline[1], agreed),
    )


def _analysis_of(
    whole: Table, text: str, verdicts: Mapping[str, Verdict], agreed: tuple[Agreement, ...]
) -> Analysis:
    """Analyse one text of a study, with its verdicts on all of them."""
    verdict = verdicts[text]
    table = verdict.table
    serving = Serving.read(table.path)
    costs = costs_of(table, serving)
    controls = controls_of(verdict)
    families, parts = families_of(verdict), against_baseline(verdict)
    return Analysis(
        **{field.name: getattr(verdict, field.name) for field in fields(Verdict)},
        controls=controls,
        diverged={v.name: (len(v.failures), len(v.runs)) for v in table.variants},
        rates=rate_curves(table),
        parts=parts,
        on_text=on_text(verdict),
        lengths=at_lengths(table),
        training_lengths=training_lengths(verdict, parts),
        efficiency=efficiency_of(verdict),
        swept=swept_settings(verdict),
        fronts=tuple(front_of(cost, verdict) for cost in costs),
        picks=picks_of(verdict, costs, serving),
        judgements=judge_all(verdict, costs, tuple(verdicts.values()), agreed),
        families=families,
        spreads=spreads_of(verdict) if families else (),
        sizes=sizes_of(verdict) if families else (),
        headline=headline(verdict, controls),
        whole=whole,
        text=text,
        texts={},
        scaling=None,
        agreements=(),
    )
