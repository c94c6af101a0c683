"""What the search for a variant's learning rate has found, as the study's folder says."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from attnlab.record import TUNING_SEED, folder_name, tuning_runs, write_json


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """How the search for a variant's learning rate ended."""

    variant: str
    rate: float | None  # None: there is none to train at
    interior: bool  # a lower and a higher rate were tried, and were no better
    losses: Mapping[float, float | None]  # by rate, ascending; None where it diverged
    failure: str | None = None  # why a rate could not be tried

    @property
    def hopeless(self) -> str | None:
        """Why the variant cannot be trained, where it cannot."""
        if self.failure is not None:
            return f"no learning rate was found for it: {self.failure}"
        if self.rate is None:
            tried = ", ".join(f"{rate:g}" for rate in self.losses)
            return f"it diverged at every learning rate that was tried: {tried}"
        return None

    def write(self, study_dir: Path) -> None:
        """`tuning/choice.json` of the variant."""
        losses = {f"{rate:g}": loss for rate, loss in self.losses.items()}
        choice = {
            "learning_rate": self.rate,
            "interior": self.interior,
            "losses": losses,
            "seed": TUNING_SEED,
            "failure": self.hopeless,
        }
        folder = study_dir / folder_name(self.variant) / "tuning"
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "choice.json", choice)


def tried(study_dir: Path, variant: str) -> dict[float, float | None]:
    """Validation loss by learning rate, of the runs that have ended; None where one diverged."""
    summaries = {
        rate: folder.summary() or {} for rate, folder in tuning_runs(study_dir, variant).items()
    }
    return {
        rate: summary.get("final_loss") if summary["status"] == "finished" else None
        for rate, summary in summaries.items()
        if summary.get("status") in ("finished", "diverged")
    }
