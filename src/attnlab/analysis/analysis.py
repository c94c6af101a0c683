"""A study as one object: what every page, table and figure is made from.

`analyse` reads the run folders of a study; nothing here imports torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from attnlab.analysis.controls import Control, controls_of
from attnlab.analysis.costs import Efficiency, Serving, costs_of, efficiencies_of
from attnlab.analysis.families import Families, Spread, families_of, spreads_of
from attnlab.analysis.headline import headline
from attnlab.analysis.hypotheses.answers import Answer, answers_of
from attnlab.analysis.hypotheses.judgements import Judgement, judgements_of
from attnlab.analysis.lengths import AtLengths, at_lengths
from attnlab.analysis.picks import Front, Pick, front_of, picks_of
from attnlab.analysis.rates import RateCurve, rate_curves
from attnlab.analysis.statistics.intervals import Comparison
from attnlab.analysis.table import Table, read_table
from attnlab.analysis.verdict import Verdict, verdict_of

__all__ = [
    "Analysis",
    "Answer",
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
    """The verdict, and what follows from it beside the costs."""

    controls: tuple[Control, ...]
    diverged: Mapping[str, tuple[int, int]]  # variant: (runs diverged or failed, runs planned)
    rates: Mapping[str, RateCurve]  # variant: its tuning; empty where nothing was tuned
    lengths: Mapping[str, AtLengths]  # variant: at other windows; empty where none was measured
    fronts: tuple[Front, ...]  # one a cost
    picks: tuple[Pick, ...]  # one a use case
    answers: tuple[Answer, ...]  # one a question of the study
    judgements: tuple[Judgement, ...]  # one a published claim of the study
    families: Families | None  # None where the study names none; so are the next two empty
    spreads: tuple[Spread, ...]  # all variants together, one a number
    efficiencies: tuple[Efficiency, ...]  # one a variant beside the baseline
    headline: tuple[str, str]  # the verdict in two sentences


def analyse(study_dir: Path) -> Analysis:
    """Read a study folder, at any time. Raises ValueError where there is no study."""
    return analysis_of(read_table(study_dir))


def analysis_of(table: Table) -> Analysis:
    """What follows from a table: of a study, or of several folders side by side."""
    verdict = verdict_of(table)
    serving = Serving.read(table.path)
    costs = costs_of(table, serving)
    controls = controls_of(verdict)
    fronts = tuple(front_of(cost, verdict) for cost in costs)
    picks = picks_of(verdict, costs, serving)
    families = families_of(verdict)
    return Analysis(
        **{field.name: getattr(verdict, field.name) for field in fields(Verdict)},
        controls=controls,
        diverged={v.name: (len(v.failures), len(v.runs)) for v in table.variants},
        rates=rate_curves(table),
        lengths=at_lengths(table),
        fronts=fronts,
        picks=picks,
        answers=answers_of(verdict, fronts, picks),
        judgements=judgements_of(verdict, costs),
        families=families,
        spreads=spreads_of(verdict) if families else (),
        efficiencies=efficiencies_of(verdict) if families else (),
        headline=headline(verdict, controls),
    )
