"""The types of recorded files, for readers: what a field is if it is there.

Fields that are not listed may have any value, since the measurements of a run are open-ended.
The files of a study beside its runs, bench.json and harness.json, are read here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Required, TypedDict

from attnlab.record.atomic_files import DamagedError, advising
from attnlab.record.json_text import Json
from attnlab.record.verified_folder import read_object

BENCH, HARNESS = "bench.json", "harness.json"
Number = float | None


class ModelForm(TypedDict, total=False):
    """Types of "model" in config.json."""

    n_layers: int
    mechanisms: list[Any] | dict[str, Any] | None


class TrainForm(TypedDict, total=False):
    """Types of "train" in config.json."""

    steps: int
    batch_size: int
    seq_len: int
    learning_rate: float
    keep: str


class ConfigForm(TypedDict, total=False):
    """Types of config.json."""

    identity: Required[str]
    variant: str
    seed: int
    data: dict[str, Any]
    model: ModelForm
    train: TrainForm
    eval: dict[str, Any]


class EnvironmentForm(TypedDict, total=False):
    """Types of environment.json."""

    device: dict[str, Any] | str
    data: dict[str, Any]
    packages: dict[str, Any]
    kernels: list[str]
    precision: str
    earlier: list[dict[str, Any]]


class MeasurementForm(TypedDict, total=False):
    """Types of a line of metrics.jsonl."""

    step: Required[int]
    train_loss: Number
    eval_loss: Number
    eval_accuracy: Number
    eval_perplexity: Number
    eval_bits_per_byte: Number
    gradient_norm: Number
    learning_rate: Number
    train_seconds: Number
    alarm: str
    cleared: str


class PositionsForm(TypedDict):
    """Types of a loss by position in the sequence."""

    first: list[Number]
    loss: list[Number]


class GroupForm(TypedDict):
    """Types of a group of answers of a task."""

    accuracy: Number
    loss: Number
    answers: int


class GradientErrorForm(TypedDict):
    """Types of the largest error of a gradient in bfloat16, as a fraction of its norm."""

    parameter: str
    error: Number
    allowed: Number


class SummaryForm(TypedDict, total=False):
    """Types of summary.json."""

    status: Required[Literal["finished", "diverged", "failed"]]
    reason: str | None
    sha256: dict[str, str]
    seed: int
    alarms: list[str]
    gradient_error: GradientErrorForm | None
    kernels: list[str]
    attention_type: list[str] | str
    device: str
    parameters: dict[str, Number]
    best_loss: Number
    final_loss: Number
    final_perplexity: Number
    final_accuracy: Number
    final_bits_per_byte: Number
    final_recall_loss: Number
    final_other_loss: Number
    final_recall_fraction: Number
    final_loss_by_position: PositionsForm
    final_by_group: Mapping[str, GroupForm]
    final_by_length: Mapping[int, dict[str, Any]]
    test_loss: Number
    test_perplexity: Number
    test_accuracy: Number
    test_bits_per_byte: Number
    test_recall_loss: Number
    test_other_loss: Number
    test_recall_fraction: Number
    test_loss_by_position: PositionsForm
    test_by_group: Mapping[str, GroupForm]
    steps: int
    tokens: int
    total_time: Number
    train_time: Number
    eval_time: Number
    compile_time: Number
    step_time: Number
    tokens_per_second: Number
    peak_memory_bytes: Number
    training_flops: Number
    flops_per_token: Number
    state_bytes: Number


class RecordForm(TypedDict, total=False):
    """Types of the first line of runs.jsonl.gz, which holds study.json."""

    format: Required[int]
    study: dict[str, Any]
    raw: dict[str, str]


class RunForm(TypedDict, total=False):
    """Types of a run's line in runs.jsonl.gz."""

    variant: Required[str]
    seed: Required[int]
    ended: Required[bool]
    recipe: str | None
    tuning_rate: Number
    config: dict[str, Any]
    environment: dict[str, Any]
    metrics: list[dict[str, Any]]
    summary: dict[str, Any]
    tokenizer: str
    raw: dict[str, str]


class ChoiceForm(TypedDict, total=False):
    """Types of a tuning choice's line in runs.jsonl.gz."""

    variant: Required[str]
    tuning_choice: dict[str, Any] | None
    raw: dict[str, str]


class TokenizerForm(TypedDict):
    """Types of a tokenizer's line in runs.jsonl.gz."""

    tokenizer: str
    text: str


class PointForm(TypedDict, total=False):
    """Types of a measured point in bench.json."""

    variant: Required[str]
    what: Required[str]
    context: Required[int]
    batch: Required[int]
    status: Required[Literal["ok", "out_of_memory", "too_long", "no_step", "failed"]]
    reason: str | None
    seconds: Number
    spread_seconds: Number
    tokens_per_second: Number
    peak_memory_bytes: Number
    state_bytes: Number
    times_bound: Number


class BenchForm(TypedDict, total=False):
    """Types of bench.json."""

    device: dict[str, Any]
    packages: dict[str, Any]
    compiled: bool
    environment: dict[str, Any]
    ceilings: dict[str, Any]
    variants: dict[str, dict[str, Any]]
    points: Required[list[PointForm]]


class HarnessMetricForm(TypedDict):
    """Types of a metric in harness.json."""

    value: Number
    standard_error: Number


class HarnessTaskForm(TypedDict, total=False):
    """Types of the results of a run on a task in harness.json."""

    metrics: Required[dict[str, HarnessMetricForm]]
    identity: Required[str | None]
    shots: int | None
    limit: Number
    version: Any
    step: int
    weights: str
    window: int
    harness: str


class HarnessForm(TypedDict):
    """Types of harness.json: by run, such as mha/seed-0, then by task."""

    runs: dict[str, dict[str, HarnessTaskForm]]


class JudgementForm(TypedDict):
    """A hypothesis of study.json that the user's own code judged."""

    hypothesis: dict[str, Any]
    statement: str
    ruling: Literal["supported", "refuted", "undecided", "not judged"]
    found: list[str]
    source: str
    wording: str
    measure: str
    published: Mapping[str, float]
    basis: str  # SHA-256 of the numbers that it judged, and of other studies that it read


def bench_points(study_dir: Path) -> list[Json]:
    """Return every point of a study's bench.json that was measured; empty without the file.

    Raises DamagedError if the file is not as it was written.
    """
    path = study_dir / BENCH
    with advising("restore it, or delete it to measure again"):
        points = (read_object(path, BenchForm) or {"points": []})["points"]
        measured = [point for point in points if point["status"] == "ok"]
        if any(not point.get("seconds") for point in measured):
            raise DamagedError(f"{path} is damaged (a measured point has no time)")
    return measured


def harness_results(study_dir: Path) -> dict[str, dict[str, HarnessTaskForm]]:
    """Return harness.json by run and task; empty without it. Raises DamagedError."""
    with advising("restore it, or delete it to evaluate again"):
        found = read_object(study_dir / HARNESS, HarnessForm)
    return found["runs"] if found else {}
