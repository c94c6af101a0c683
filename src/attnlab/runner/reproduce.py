"""`attnlab.reproduce`: a shipped study against published results, and whether it is in their bands.

A reproduction is a study. Those of its hypotheses that cite a source are the published claims, each
with a band or an order; the study's report judges them, and here they are put together:

    inside       every claim is supported
    outside      at least one is refuted
    undecided    neither: intervals overlap an end of a band, or runs are missing
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from attnlab.analysis.analysis import Analysis
from attnlab.analysis.hypotheses import Judgement
from attnlab.config import suggestion
from attnlab.config.problem import with_types
from attnlab.runner.events import Watch
from attnlab.runner.run import run
from attnlab.study import ignore
from attnlab.study.targets import load_study

REPRODUCTIONS = {
    "mqar": "Zoology's figure 2: attention recalls, one layer of it does not (Arora et al. 2023)",
    "mad": "MAD's tasks: recall, copying, memorization (Poli et al. 2024)",
    "state_tracking": "what tracks parity, S3, A5 and S5 (Merrill et al. 2024, Grazzi et al. 2024)",
    "nanogpt": "nanoGPT's Shakespeare by characters: validation loss 1.4697 (Karpathy 2022)",
}
Outcome = Literal["inside", "outside", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """The published claims of a study, as its runs judge them."""

    analysis: Analysis

    @property
    def name(self) -> str:
        """The name of the study."""
        return self.analysis.table.study.name

    @property
    def claims(self) -> tuple[Judgement, ...]:
        """The judgements of the hypotheses that cite a source."""
        return tuple(claim for claim in self.analysis.judgements if claim.source)

    @property
    def outcome(self) -> Outcome:
        """Inside the bands, outside of one, or undecided."""
        rulings = {claim.ruling for claim in self.claims}
        if "refuted" in rulings:
            return "outside"
        return "inside" if rulings == {"supported"} else "undecided"


@with_types
def reproduce(  # noqa: PLR0913  one parameter per option
    name: Path | str,
    *,
    seeds: int | None = None,
    out: Path | str | None = None,
    data: Path | str | None = None,
    device: str = "auto",
    workers: int | None = None,
    watch: Watch = ignore,
    command: str | None = None,
) -> Reproduction:
    """Run what remains of a reproduction, and tell whether it is inside its published bands.

        reproduction = attnlab.reproduce("mqar")
        print(reproduction.outcome, *reproduction.claims, sep="\\n")

    Args:
        name: mqar, mad, state_tracking or nanogpt; or the path of a study of your own, whose
            hypotheses with a `source` are its claims.
        seeds: seeds per variant, by default the study's; an interval needs two.
        out: the folder of results, results/NAME by default.
        data: the folder of your data, ATTNLAB_DATA by default.
        device: auto, cpu, cuda or cuda:1.
        workers: runs at the same time, by default one per GPU or CPU core.
        watch: called with every event, as by `attnlab.run`.
        command: the command that the study's record names.

    Raises:
        ValueError: there is no such reproduction, or no hypothesis of the study cites a source;
            and all that `attnlab.run` raises.
    """
    if not str(name).endswith(".py") and name not in REPRODUCTIONS:
        raise ValueError(f"no reproduction {str(name)!r}{suggestion(str(name), REPRODUCTIONS)}")
    study = load_study(str(name))
    if not any(hypothesis.source for hypothesis in study.hypotheses):
        raise ValueError(f"{name}: no hypothesis cites a source; give one, such as LossInRange")
    analysis = run(
        study,
        seeds=seeds,
        out=out,
        data=data,
        device=device,
        workers=workers,
        watch=watch,
        command=command,
    )
    return Reproduction(analysis=analysis)
