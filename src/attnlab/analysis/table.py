"""A study folder as one object: what ran, its numbers over seeds, what failed.

Numbers are means over the finished seeds of a variant, with their sample standard deviation. The
perplexity of a variant is exp of its mean loss (the geometric mean of its runs' perplexities), so
that loss and perplexity rank alike; its spread is the standard deviation of the runs' perplexities.
A folder may be read at any time: before the first run has ended, or while others are written.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from attnlab.analysis.curves import Curve, perplexity
from attnlab.analysis.sentences import in_words, listed
from attnlab.analysis.statistics.paired import Estimate
from attnlab.record import RunFolder, Status, StudyRecord, folder_name

# keys of summary.json; losses in nats a token, times in seconds
NUMBERS = (
    *("final_loss", "final_perplexity", "final_accuracy", "final_bits_per_byte", "best_loss"),
    *("test_loss", "test_perplexity", "test_accuracy", "test_bits_per_byte"),
    # on tokens that repeat an earlier bigram of their context, and on the rest (Zoology's split)
    *("final_recall_loss", "final_other_loss", "final_recall_fraction"),
    *("test_recall_loss", "test_other_loss", "test_recall_fraction"),
    *("steps", "tokens", "total_time", "train_time", "eval_time", "compile_time"),
    *("step_time", "tokens_per_second", "peak_memory_bytes", "flops_per_token", "state_bytes"),
)
PARTS = ("embedding", "attention", "feed_forward", "other", "total")  # of the parameters


@dataclass(frozen=True, kw_only=True)
class Run:
    """One seed of a variant, as its folder says."""

    seed: int
    status: Status
    reason: str | None  # why it diverged or failed
    summary: Mapping[str, Any]
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    metrics: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """All seeds of one variant."""

    name: str
    folder: Path
    runs: tuple[Run, ...]  # by seed, those still to run included
    numbers: Mapping[str, Estimate]  # by key of summary.json, where a finished run has one
    parameters: Mapping[str, int]  # by part of the model; empty before a run has finished

    @property
    def finished(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.status == "finished")

    @property
    def failures(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.status in ("diverged", "failed"))

    @property
    def mechanism(self) -> str:
        """The kinds of its layers, in words, once a run has ended; else empty."""
        for run in self.runs:
            kinds = run.summary.get("attention_type")
            if kinds:
                return kinds if isinstance(kinds, str) else in_words(kinds)
        return ""

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings of the first seed that has any; empty where none was started."""
        return next((run.config for run in self.runs if run.config), {})

    def by_seed(self, key: str) -> dict[int, float]:
        """`{seed: value}` of one number, over the finished seeds that have it."""
        found = {run.seed: run.summary.get(key) for run in self.finished}
        return {seed: value for seed, value in found.items() if value is not None}

    def by_position(self, split: str = "final") -> Curve:
        """Loss by position in the sequence, of the "final" validation or of the "test" split.

        A curve whose steps are the first position of each bin.
        """
        found = {run.seed: run.summary.get(f"{split}_loss_by_position") for run in self.finished}
        points = {
            seed: [
                {"step": first, "loss": loss}
                for first, loss in zip(bins["first"], bins["loss"], strict=True)
            ]
            for seed, bins in found.items()
            if bins
        }
        return Curve.of(points, "loss")

    def curve(self, key: str) -> Curve:
        """A key of metrics.jsonl over the finished seeds, or over all where none has finished."""
        runs = self.finished or self.runs
        return Curve.of({run.seed: run.metrics for run in runs}, key)

    def curve_minus(self, other: "Variant", key: str) -> Curve:
        """This curve minus another variant's, seed by seed."""
        return self.curve(key).minus(other.curve(key))


@dataclass(frozen=True, kw_only=True)
class Table:
    """A study, as far as it has come; or runs of several folders, side by side."""

    path: Path
    study: StudyRecord
    variants: tuple[Variant, ...]  # in the study's order
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    # ^ of runs side by side: the folders that were given, each with its variants
    unfair: tuple[str, ...] = ()  # what is not alike among them, although losses depend on it

    @property
    def ranked(self) -> tuple[Variant, ...]:
        """Variants with at least one finished seed, the lowest validation loss first."""
        ranked = [variant for variant in self.variants if "final_loss" in variant.numbers]
        return tuple(sorted(ranked, key=lambda variant: variant.numbers["final_loss"].mean))

    @property
    def unranked(self) -> tuple[Variant, ...]:
        return tuple(v for v in self.variants if "final_loss" not in v.numbers)

    @property
    def failures(self) -> tuple[tuple[Variant, Run], ...]:
        """Every diverged or failed run."""
        return tuple((variant, run) for variant in self.variants for run in variant.failures)

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(run for variant in self.variants for run in variant.runs)

    @property
    def remaining(self) -> int:
        """How many planned runs have not ended."""
        return sum(run.status in ("absent", "partial") for run in self.runs)

    @property
    def devices(self) -> dict[str, tuple[str, ...]]:
        """What finished runs ran on, each with its variants."""
        found: dict[str, dict[str, None]] = {}
        for variant in self.variants:
            for run in variant.finished:
                if run.summary.get("device"):
                    found.setdefault(run.summary["device"], {})[variant.name] = None
        return {device: tuple(names) for device, names in found.items()}

    def where(self, names: Iterable[str]) -> str:
        """Variants for people: a folder stands for its variants where all that it started are in.

        Of those in a study the names.
        """
        started, left, whole = {v.name for v in self.variants if v.config}, list(names), list[str]()
        for folder, held in self.sources.items():
            here = started.intersection(held)
            if here and here.issubset(left):
                whole.append(folder)
                left = [name for name in left if name not in held]
        return listed([*whole, *left])

    @property
    def most_seeds(self) -> int:
        """The largest number of finished seeds of any variant."""
        return max((len(variant.finished) for variant in self.variants), default=0)


def read_table(study_dir: Path) -> Table:
    """Read every run of a study folder. Raises ValueError where there is no study."""
    study = StudyRecord.read(study_dir)
    variants = tuple(
        variant_of(
            name, study_dir / folder_name(name), tuple(read_run(folder) for folder in folders)
        )
        for name, folders in study.runs(study_dir).items()
    )
    return Table(path=study_dir, study=study, variants=variants)


def read_run(folder: RunFolder) -> Run:
    """One run, whatever became of it."""
    summary = folder.summary() or {}
    return Run(
        seed=folder.seed,
        status=summary.get("status") or folder.status(),
        reason=summary.get("reason"),
        summary=summary,
        config=folder.config() or {},
        environment=folder.environment() or {},
        metrics=tuple(folder.metrics()),
    )


def variant_of(name: str, folder: Path, runs: tuple[Run, ...]) -> Variant:
    """A variant with its numbers over seeds."""
    variant = Variant(name=name, folder=folder, runs=runs, numbers={}, parameters={})
    numbers: dict[str, Estimate] = {}
    for key in NUMBERS:
        estimate = Estimate.of(list(variant.by_seed(key).values()))
        if estimate is not None:
            numbers[key] = estimate
    for split in ("final", "test"):
        if f"{split}_loss" in numbers and f"{split}_perplexity" in numbers:
            mean = perplexity(numbers[f"{split}_loss"].mean)
            key = f"{split}_perplexity"
            numbers[key] = replace(numbers[key], mean=mean)
    parameters = next((run.summary.get("parameters") or {} for run in variant.finished), {})
    return replace(variant, numbers=numbers, parameters=parameters)
