"""The table of a study: its runs by variant, their numbers over seeds, and failures.

Numbers are means over the finished seeds of a variant, with their sample standard deviation. The
perplexity of a variant is exp of its mean loss (the geometric mean of its runs' perplexities), so
that loss and perplexity have the same order; its spread is the standard deviation of the runs'
perplexities. A folder can be read at any time: before the first run has ended, or while others are
written.
"""

import math
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from attnlab.analysis.curves import Curve, perplexity
from attnlab.analysis.fairness import by_design, unlike
from attnlab.analysis.sentences import in_words, several
from attnlab.analysis.statistics.paired import Estimate
from attnlab.record import (
    DamagedError,
    RunFolder,
    Status,
    StudyRecord,
    bench_points,
    folder_name,
    harness_results,
    read_tuning_choice,
    tuning_runs,
)

# keys of summary.json; losses in nats/token, times in seconds
NUMBERS = (
    *("final_loss", "final_perplexity", "final_accuracy", "final_bits_per_byte", "best_loss"),
    *("test_loss", "test_perplexity", "test_accuracy", "test_bits_per_byte"),
    # on tokens that repeat an earlier bigram of their context, and on the rest (Zoology's split)
    *("final_recall_loss", "final_other_loss", "final_recall_fraction"),
    *("test_recall_loss", "test_other_loss", "test_recall_fraction"),
    *("steps", "tokens", "total_time", "train_time", "eval_time", "compile_time"),
    *("step_time", "tokens_per_second", "peak_memory_bytes", "flops_per_token", "state_bytes"),
)
PARTS = ("embedding", "head", "attention", "feed_forward", "other", "total")  # of the parameters


@dataclass(frozen=True, kw_only=True)
class Run:
    """One seed of a variant, read from its folder."""

    seed: int
    status: Status
    reason: str | None  # of divergence or failure; the damage of a file
    summary: Mapping[str, Any]
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    metrics: tuple[Mapping[str, Any], ...]

    @property
    def processes(self) -> str:
        """The number of its processes, one per GPU; every one if it went on with another number."""
        parts = [*(self.environment.get("earlier") or ()), self.environment]
        return ", then ".join(dict.fromkeys(str(part.get("processes", 1)) for part in parts))


@dataclass(frozen=True, kw_only=True)
class Variant:
    """All seeds of one variant."""

    name: str
    folder: Path
    runs: tuple[Run, ...]  # by seed, with those still to run
    numbers: Mapping[str, Estimate]  # by key of summary.json, if a finished run has it
    parameters: Mapping[str, int]  # by part of the model; empty before a run has finished

    @property
    def finished(self) -> tuple[Run, ...]:
        """The runs that finished."""
        return tuple(run for run in self.runs if run.status == "finished")

    @property
    def failures(self) -> tuple[Run, ...]:
        """The runs that diverged, failed or are damaged on disk."""
        return tuple(run for run in self.runs if run.status in ("diverged", "failed", "damaged"))

    @property
    def mechanism(self) -> str:
        """The mechanisms of the layers in words; empty before a run has ended."""
        for run in self.runs:
            kinds = run.summary.get("attention_type")
            if kinds:
                return kinds if isinstance(kinds, str) else in_words(kinds)
        return ""

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings of the first seed that has any; empty before a run was started."""
        return next((run.config for run in self.runs if run.config), {})

    def by_seed(self, key: str) -> dict[int, float]:
        """Return `{seed: value}` of one number, over the finished seeds that have it."""
        found = {run.seed: run.summary.get(key) for run in self.finished}
        return {seed: value for seed, value in found.items() if value is not None}

    def by_position(self, split: str = "final") -> Curve:
        """Return the loss by position in the sequence, on the "final" validation or "test" split.

        The steps of the curve are the first positions of the bins.
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

    def by_block(self, split: str = "final") -> tuple[tuple[int, ...], tuple[float, ...]] | None:
        """Return tokens and mean loss over seeds by block of the text; None if not recorded."""
        found = [run.summary.get(f"{split}_loss_by_block") or {} for run in self.finished]
        tokens = {tuple(of.get("tokens", ())) for of in found}
        if len(tokens) != 1 or tokens == {()}:
            return None
        losses = zip(*(of["loss"] for of in found), strict=True)
        return tokens.pop(), tuple(math.fsum(at) / len(found) for at in losses)

    def curve(self, key: str) -> Curve:
        """Return a key of metrics.jsonl over the finished seeds, or over all if none finished."""
        runs = self.finished or self.runs
        return Curve.of({run.seed: run.metrics for run in runs}, key)

    def curve_minus(self, other: "Variant", key: str) -> Curve:
        """Return the curve of this variant minus that of another, seed by seed."""
        return self.curve(key).minus(other.curve(key))


@dataclass(frozen=True, kw_only=True)
class Table:
    """The runs of a study, as far as it has come; or the runs of several folders."""

    path: Path
    study: StudyRecord
    variants: tuple[Variant, ...]  # in the study's order
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    # ^ for several folders: each folder given, with its variants
    other_damage: tuple[str, ...] = ()  # one line per damaged file of no run of the verdict

    @cached_property
    def unfair(self) -> tuple[str, ...]:
        """One line per condition that differs between runs and on which losses depend."""
        return unlike(self)

    @cached_property
    def by_design(self) -> tuple[str, ...]:
        """One line per condition in which variants differ by design and on which losses depend."""
        return by_design(self)

    @property
    def ranked(self) -> tuple[Variant, ...]:
        """The variants with a finished seed, the lowest validation loss first."""
        ranked = [variant for variant in self.variants if "final_loss" in variant.numbers]
        return tuple(sorted(ranked, key=lambda variant: variant.numbers["final_loss"].mean))

    @property
    def unranked(self) -> tuple[Variant, ...]:
        """The variants without a finished seed."""
        return tuple(v for v in self.variants if "final_loss" not in v.numbers)

    @property
    def failures(self) -> tuple[tuple[Variant, Run], ...]:
        """The runs that diverged, failed or are damaged, each with its variant."""
        return tuple((variant, run) for variant in self.variants for run in variant.failures)

    @property
    def damage(self) -> tuple[str, ...]:
        """One line per file of the study that is not as it was written."""
        verdict = (run.reason or "" for run in self.runs if run.status == "damaged")
        return tuple(dict.fromkeys([*verdict, *self.other_damage]))

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs, by variant."""
        return tuple(run for variant in self.variants for run in variant.runs)

    @property
    def remaining(self) -> int:
        """The number of planned runs that have not ended."""
        return sum(run.status in ("absent", "partial") for run in self.runs)

    @property
    def devices(self) -> dict[str, tuple[str, ...]]:
        """The devices of finished runs, each with its variants; with the number of several."""
        found: dict[str, dict[str, None]] = {}
        for variant in self.variants:
            for run in variant.finished:
                if device := run.summary.get("device"):
                    name = device if run.processes == "1" else f"{run.processes} x {device}"
                    found.setdefault(name, {})[variant.name] = None
        return {device: tuple(names) for device, names in found.items()}

    def where(self, names: Iterable[str]) -> str:
        """Return variants in words: a folder if all of its variants are named, else names."""
        started, left, whole = {v.name for v in self.variants if v.config}, list(names), list[str]()
        for folder, held in self.sources.items():
            here = started.intersection(held)
            if here and here.issubset(left):
                whole.append(folder)
                left = [name for name in left if name not in held]
        return several([*whole, *left])

    @property
    def most_seeds(self) -> int:
        """The largest number of finished seeds of a variant."""
        return max((len(variant.finished) for variant in self.variants), default=0)


def read_table(study_dir: Path) -> Table:
    """Read every run of a study folder. Raises ValueError if it holds no study."""
    study = StudyRecord.read(study_dir)
    variants = tuple(
        variant_of(
            name,
            study_dir / folder_name(name),
            tuple(
                read_run(folder, study.variants) for folder in _challenged(study_dir, name, folders)
            ),
        )
        for name, folders in study.runs(study_dir).items()
    )
    damage = tuple(_other_damage(study_dir, [variant.name for variant in variants]))
    return Table(path=study_dir, study=study, variants=variants, other_damage=damage)


def _challenged(study_dir: Path, variant: str, folders: Iterable[RunFolder]) -> Iterator[RunFolder]:
    """Yield each seed's run: of a variant that was challenged, at the rate chosen for that seed."""
    choice = read_tuning_choice(study_dir, variant)
    by_seed = (choice.get("challenge") or {}).get("recipe_by_seed", {})
    for folder in folders:
        recipe = by_seed.get(str(folder.seed), choice.get("recipe"))
        if recipe == choice.get("recipe"):
            yield folder
        else:
            yield RunFolder(study_dir, variant, folder.seed, recipe=recipe)


def _other_damage(study_dir: Path, variants: Iterable[str]) -> Iterator[str]:
    for variant in variants:
        for run in tuning_runs(study_dir, variant):
            if (damage := run.damage()) is not None:
                yield damage
    for read in (bench_points, harness_results):
        try:
            read(study_dir)
        except DamagedError as error:
            yield str(error)


def read_run(folder: RunFolder, variants: Container[str] = ()) -> Run:
    """Read one run, in any state; of one that is damaged, only the damage.

    A run of another one of the study's `variants` is damage: folders were exchanged.
    """
    try:
        recorded, damage = folder.recorded(), None
        variant = ((recorded and recorded.config) or {}).get("variant", folder.variant)
        if variant != folder.variant and variant in variants:
            raise DamagedError(f"{folder.path} holds a run of {variant}; exchange them back")
    except DamagedError as error:
        recorded, damage = None, str(error)
    summary = (recorded and recorded.summary) or {}
    return Run(
        seed=folder.seed,
        status="damaged" if damage else recorded.status if recorded else folder.status(),
        reason=damage or summary.get("reason"),
        summary=summary,
        config=(recorded and recorded.config) or {},
        environment=(recorded and recorded.environment) or {},
        metrics=tuple(recorded.metrics if recorded else ()),
    )


def variant_of(name: str, folder: Path, runs: tuple[Run, ...]) -> Variant:
    """Build a variant with its numbers over seeds."""
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
