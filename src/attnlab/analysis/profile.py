"""The profile of mechanisms on tasks: the accuracy of their answers, in total and in parts.

Of a study's own tasks:

    mean ± t(0.975, n - 1) sd / sqrt(n)     over n seeds, cut to [0, 1]

Accuracy is the fraction of right answers on held-out sequences, of the length of training or
another. Seeds that agree, as where all answers are right, show no error, though the answers are a
sample: the interval is never narrower than Wilson's score interval (1927) of the mean over the
answers of one seed. Those of further seeds are to the same questions, and do not count as more.
Intervals are of one mechanism each, and hold one at a time: to compare mechanisms, use the
intervals of the verdict. All finished seeds count. Where some of them learn the task and others do
not, an interval of the mean says little: one wider than `WIDE` is shown as the seeds themselves.

Of tasks of lm-evaluation-harness, from harness.json (`harness_of`):

    mean ± sd / sqrt(n)                     the standard error over n seeds

For one run, and where it is larger, the standard error is the harness's own: that of the sample of
questions, which all seeds answer.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnlab.analysis.lengths import KEY, read_at
from attnlab.analysis.sentences import MOST_NAMED
from attnlab.analysis.statistics.paired import Estimate, score_interval, t_quantile
from attnlab.analysis.table import Run, Table, Variant
from attnlab.analysis.texts import named
from attnlab.record import DamagedError, HarnessTaskForm, harness_results

WIDE = 0.5  # width of an interval in place of which the accuracy of each seed is shown
GROUPS = "by_group"  # of a summary: the accuracy of groups of answers, by name


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """A mean over seeds with its interval; no interval for one seed."""

    mean: float
    low: float | None
    high: float | None
    by_seed: tuple[float, ...]

    @classmethod
    def of(
        cls, values: Sequence[float], answers: int | None = None, among: int = 1
    ) -> "Accuracy | None":
        """Return the accuracy over seeds, with one of `among` intervals that hold at once.

        Args:
            values: the fraction of right answers of each seed.
            answers: the answers of one seed; None if it is not known.
            among: intervals that hold at once.

        >>> Accuracy.of([1.0, 1.0, 0.97]).high
        1.0
        >>> print(Accuracy.of([1.0, 1.0, 1.0], answers=400))
        1.000 [0.990, 1.000]
        """
        if (found := mean_interval(values, among)) is None:
            return None
        mean, low, high = found
        if low is not None and high is not None:
            least, most = (mean, mean) if answers is None else score_interval(mean, answers, among)
            low, high = max(0.0, min(low, least)), min(1.0, max(high, most))
        return cls(mean=mean, low=low, high=high, by_seed=tuple(values))

    @property
    def wide(self) -> bool:
        """True if the interval says little, so that the seeds are shown in its place."""
        return self.low is not None and self.high is not None and self.high - self.low > WIDE

    def __str__(self) -> str:
        """Return the mean with its interval; with its seeds where the interval says little.

        >>> print(Accuracy.of([0.98, 0.97, 0.99]))
        0.980 [0.955, 1.000]
        >>> print(Accuracy.of([0.95, 0.03, 0.96]))
        0.647 (seeds: 0.95, 0.03, 0.96)
        """
        if self.low is None or self.high is None:
            return f"{self.mean:.3f}"
        if not self.wide:
            return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"
        if len(self.by_seed) > MOST_NAMED:
            return f"{self.mean:.3f} (seeds: {min(self.by_seed):.2f} to {max(self.by_seed):.2f})"
        return f"{self.mean:.3f} (seeds: {', '.join(f'{each:.2f}' for each in self.by_seed)})"


def mean_interval(
    values: Sequence[float], among: int = 1
) -> tuple[float, float | None, float | None] | None:
    """Return the mean over seeds and one of `among` t intervals that hold at once; None of none."""
    if (estimate := Estimate.of(values)) is None:
        return None
    if estimate.spread is None:
        return estimate.mean, None, None
    half = t_quantile(estimate.n - 1, among) * estimate.spread / math.sqrt(estimate.n)
    return estimate.mean, estimate.mean - half, estimate.mean + half


@dataclass(frozen=True, kw_only=True)
class OnTask:
    """One mechanism on one task."""

    task: str
    mechanism: str
    variant: str
    length: int  # tokens of a sequence in training
    accuracy: Accuracy  # on the split of the verdict, at the length of training
    parts: Mapping[tuple[int, str], Accuracy]  # on validation, by length and group of answers
    lengths: Mapping[int, Accuracy]  # on validation, by length, ascending
    chance: float | None  # of guessing
    state_bytes: float | None  # of a sequence at the end of its training length
    lost: str  # the seeds without an accuracy, "1 of 3 seeds diverged"; empty if there are none


def profile_of(tables: Mapping[str, Table], split: str) -> tuple[OnTask, ...]:
    """Return what each mechanism does on each task, by tasks; empty for a study of texts.

    Args:
        tables: of each task or text, by name.
        split: of the accuracy in total, "test" or "final" (validation).
    """
    names = named(tables)
    found = list[OnTask]()
    for of in names:
        mechanism = {variant: name for name, variant in of.variants.items()}
        for variant in tables[of.text].variants:
            name = mechanism.get(variant.name, variant.name) if len(names) > 1 else variant.name
            found.extend(_on_task(of.text, name, variant, split))
    return tuple(found)


def read_by(table: Table) -> str:
    """Return what the variants read: "task" if all finished runs gave answers, else "text"."""
    summaries = [run.summary for variant in table.variants for run in variant.finished]
    return "task" if summaries and all(f"final_{GROUPS}" in of for of in summaries) else "text"


def accuracy_at(
    variant: Variant, split: str, length: int | None = None, among: int = 1
) -> Accuracy | None:
    """Return the accuracy over finished runs: of a split, or of validation at a length.

    Its interval is one of `among` that hold at once. None if no run has an accuracy.
    """
    if length is None or length == variant.config["train"]["seq_len"]:
        found = [
            (run.summary.get(f"{split}_accuracy"), run.summary.get(f"{split}_{GROUPS}"))
            for run in variant.finished
        ]
    else:
        found = [
            (read_at(run, length, "accuracy"), read_at(run, length, GROUPS))
            for run in variant.finished
        ]
    known = [(value, groups) for value, groups in found if value is not None]
    return Accuracy.of([value for value, _ in known], _answers([of for _, of in known]), among)


def _answers(groups: Sequence[Mapping[str, Any] | None]) -> int | None:
    """Return the fewest answers of a run, from its groups; None if a run does not tell them."""
    counts = [sum(of.get("answers", 0) for of in (each or {}).values()) for each in groups]
    return min(counts, default=0) or None


def _on_task(task: str, mechanism: str, variant: Variant, split: str) -> Iterator[OnTask]:
    runs = [run for run in variant.finished if f"final_{GROUPS}" in run.summary]
    length = variant.config.get("train", {}).get("seq_len", 0)
    accuracy = accuracy_at(variant, split)
    if not runs or accuracy is None:
        return
    by_length = [dict(_by_length(run, length)) for run in runs]
    lengths = sorted({at for of in by_length for at in of})
    parts = dict[tuple[int, str], Accuracy]()
    totals = dict[int, Accuracy]()
    for at in lengths:
        there = [of[at] for of in by_length if at in of]
        answers = _answers([of[GROUPS] for of in there])
        if (total := Accuracy.of([of["accuracy"] for of in there], answers)) is not None:
            totals[at] = total
        for group in dict.fromkeys(group for of in there for group in of[GROUPS]):
            of_group = [of[GROUPS][group] for of in there if group in of[GROUPS]]
            answers = _answers([{group: of} for of in of_group])
            if (part := Accuracy.of([of["accuracy"] for of in of_group], answers)) is not None:
                parts[at, group] = part
    state = variant.numbers.get("state_bytes")
    chance = next((run.environment.get("data", {}).get("chance") for run in runs), None)
    yield OnTask(
        task=task,
        mechanism=mechanism,
        variant=variant.name,
        length=length,
        accuracy=accuracy,
        parts=parts,
        lengths=totals,
        chance=chance,
        state_bytes=state and state.mean,
        lost=", ".join(
            f"{count} of {len(variant.runs)} seeds {status}"
            for status, count in Counter(run.status for run in variant.failures).items()
        ),
    )


def _by_length(run: Run, trained: int) -> Iterator[tuple[int, Mapping[str, Any]]]:
    summary = run.summary
    yield trained, {"accuracy": summary["final_accuracy"], GROUPS: summary[f"final_{GROUPS}"]}
    for length, of in summary.get(KEY, {}).items():
        if int(length) != trained and GROUPS in of:
            yield int(length), of


@dataclass(frozen=True, kw_only=True)
class OnHarness:
    """A variant on a metric of a task of lm-evaluation-harness, measured in one way."""

    variant: str
    task: str
    measured: str  # shots, questions, version of the task and weights, in words
    metric: str
    mean: float | None  # None if the harness gave a number that is not finite
    standard_error: float | None
    error_over: str  # "seeds" or "questions": of the larger error
    runs: int


def harness_of(table: Table) -> tuple[tuple[OnHarness, ...], tuple[str, ...]]:
    """Return the recorded results of the harness, and the runs that were trained anew since.

    The results are in order of task, way of measurement, metric and variant. Those of a run that
    was trained anew are left out. A damaged harness.json counts as none: `Table.damage` names it.
    """
    found, outdated = dict[tuple[str, ...], list[tuple[float | None, float | None]]](), list[str]()
    for variant in table.variants:
        results = _intact_results(variant.folder.parent)
        for run in variant.runs:
            of_run = results.get(f"{variant.folder.name}/seed-{run.seed}", {})
            identity = run.config.get("identity")
            current = {task: of for task, of in of_run.items() if of["identity"] == identity}
            if len(current) < len(of_run):
                outdated.append(f"{variant.name}, seed {run.seed}")
            for task, of_task in current.items():
                for metric, of in of_task["metrics"].items():
                    key = (task, _measured(of_task), metric, variant.name)
                    found.setdefault(key, []).append((of["value"], of["standard_error"]))
    places = {variant.name: place for place, variant in enumerate(table.variants)}
    keys = sorted(found, key=lambda key: (*key[:3], places[key[3]]))
    return tuple(_on_harness(key, found[key]) for key in keys), tuple(outdated)


def _intact_results(study_dir: Path) -> dict[str, dict[str, HarnessTaskForm]]:
    try:
        return harness_results(study_dir)
    except DamagedError:
        return {}


def _measured(of: HarnessTaskForm) -> str:
    """Return how a task was measured, in words: only runs that agree in it are averaged."""
    shots, limit, version = of.get("shots"), of.get("limit"), of.get("version")
    best = of.get("weights") == "best"
    parts = (
        None if shots is None else f"{shots}-shot",
        None if limit is None else f"first {limit} questions",
        None if version is None else f"version {version}",
        "best weights" if best else f"step {of['step']:,}" if "step" in of else None,
    )
    return ", ".join(part for part in parts if part)


def _on_harness(
    key: tuple[str, ...], runs: Sequence[tuple[float | None, float | None]]
) -> OnHarness:
    task, measured, metric, variant = key
    values = [value for value, _ in runs if value is not None]
    estimate = Estimate.of(values) if len(values) == len(runs) else None
    error = None if estimate is None else runs[0][1]
    over = "questions"
    if estimate is not None and estimate.spread is not None:
        own = max((of for _, of in runs if of is not None), default=0.0)
        error = max(estimate.spread / math.sqrt(estimate.n), own)
        over = "questions" if error == own > 0 else "seeds"
    return OnHarness(
        variant=variant,
        task=task,
        measured=measured,
        metric=metric,
        mean=estimate and estimate.mean,
        standard_error=error,
        error_over=over,
        runs=len(runs),
    )
