"""`attnlab.bench`: measure mechanisms into bench.json and figures."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from attnlab.benchmarking.point import Conditions, Point, numbers, points, workloads
from attnlab.benchmarking.results import FILE, ResultsFile, device_sentence
from attnlab.benchmarking.session import Measurer, measure_all, measurer
from attnlab.benchmarking.targets import Setup, Sizes, given_sizes, only_named, setups_of
from attnlab.benchmarking.time_breakdown import without_breakdown
from attnlab.config import texts_in
from attnlab.config.problem import with_types
from attnlab.data import Places
from attnlab.device.machine import describe, one_worker
from attnlab.kernels.compiled import keep_compiled
from attnlab.kernels.flash_linear_attention import use_fla
from attnlab.record import Json, replace_file, require_results_folder
from attnlab.study import Activity, Notice, ignore
from attnlab.study.study import Study
from attnlab.study.targets import Nameable, named


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The result of one point, as it is in bench.json."""

    point: Json


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The results of a bench and the files that it wrote."""

    folder: Path
    contents: Json  # of bench.json, see `attnlab.benchmarking.results`
    files: tuple[str, ...]  # names in the folder: bench.json, and a figure per batch size

    @property
    def points(self) -> list[Json]:
        """One result per variant, workload, context and batch size."""
        return self.contents["points"]

    @property
    def failures(self) -> list[Json]:
        """The points that raised an exception other than out of memory."""
        return [point for point in self.points if point["status"] == "failed"]


Watch = Callable[[Activity | Measured | Notice], None]


@with_types
def bench(  # noqa: PLR0913  one parameter per option
    *what: Nameable,
    overrides: Iterable[str] | str = (),
    only: Iterable[str] | str | None = None,
    contexts: Iterable[int] | str | None = None,
    batches: Iterable[int] | str = (1, 8),
    measure: Iterable[str] | str = ("train", "prefill", "decode"),
    d_model: int | None = None,
    n_layers: int | None = None,
    n_heads: int | None = None,
    vocab_size: int | None = None,
    seconds: float = 1.0,
    out: Path | str | None = None,
    device: str = "auto",
    compiled: bool = False,
    fla_path: Path | str | None = None,
    watch: Watch = ignore,
    command: str = "attnlab.bench",
) -> Bench:
    """Measure training steps, prefill and decoding: time, memory, decode state and FLOPs.

    Times are medians of repeated calls. Each point is written to bench.json as soon as it is
    measured; the same call continues with the missing points. A point that runs out of memory or
    raises an exception is a result, not an exception.

    Args:
        what: as for `attnlab.check`: a study, `"all"`, kinds, classes, layers. The variants of a
            study have the study's sizes; a mechanism is put into every layer of a model with the
            sizes below.
        overrides: dotted settings of all of them: `train.precision=float32`, `window=64`.
        only: names of variants, as a list or separated by commas; the others are not measured.
        contexts: tokens per sequence; by default from the sequence length to 64K in factors of 4.
        batches: sequences per batch.
        measure: any of train, prefill and decode.
        d_model: model width, for mechanisms; 768 by default.
        n_layers: layers, for mechanisms; 12 by default.
        n_heads: attention heads, for mechanisms; 12 by default.
        vocab_size: vocabulary, for mechanisms; 50,257 by default.
        seconds: approximate duration of the timed calls of a point.
        out: folder of bench.json; by default results/STUDY, or results/bench for mechanisms.
        device: auto, cpu, cuda or cuda:1.
        compiled: compile the models.
        fla_path: a local clone of flash-linear-attention, ATTNLAB_FLA_PATH by default.
        watch: called with an `Activity`, `Measured` or `Notice` as it happens.
        command: recorded in bench.json as the command that wrote it.

    Raises:
        ConfigError: settings are impossible.
        ValueError: a name, number or device is wrong, or the folder has measurements under other
            conditions.
    """
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds: must be positive and finite, got {seconds}")
    use_fla(fla_path)
    if compiled:
        keep_compiled(Places.from_environment().cache / "compiled")
    given = {"d_model": d_model, "n_layers": n_layers, "n_heads": n_heads, "vocab_size": vocab_size}
    changes = texts_in(overrides, "overrides")
    targets = named(what, changes)
    sizes = given_sizes(Sizes(), given, targets, changes)
    study = targets[0] if len(targets) == 1 and isinstance(targets[0], Study) else None
    name = study.name if study and study.name else "bench"
    folder = Path("results") / name if out is None else Path(out)
    require_results_folder(folder)
    setups = only_named(setups_of(targets, sizes), only)
    asked = points(
        [(name, setup.train.seq_len) for name, setup in setups.items()],
        workloads(measure),
        None if contexts is None else numbers(contexts, "contexts"),
        numbers(batches, "batches"),
    )
    with one_worker(device) as where, measurer(where, setups.values()) as by:
        file = ResultsFile.open(
            folder,
            environment=describe(where),
            compiled=compiled,
            setups=setups,
        )
        watch(Activity("measuring the peak rates of the device"))
        under = Conditions(
            device=where,
            ceilings=by.ceilings(seconds / 4),
            compiled=compiled,
            seconds=seconds,
        )
        file.update(ceilings=under.ceilings._asdict(), command=command)
        watch(Activity("measuring"))
        try:
            prints = set[str]()
            for result in measure_all(asked, setups, under, file, by):
                watch(Measured(point=result))
                if by.printed and (variant := result["variant"]) not in prints:
                    prints.add(variant)
                    for line in by.printed:
                        watch(Notice(f"{variant} {line}"))
                    watch(Notice(f"{variant}: its times include what it prints; remove that"))
            _add_breakdowns(file, setups, under, by, watch)
        finally:  # an interrupted bench has figures of the points that were measured
            figures = _write_figures(file)
        return Bench(folder=file.folder, contents=file.contents, files=(FILE, *figures))


def _add_breakdowns(
    file: ResultsFile, setups: dict[str, Setup], under: Conditions, by: Measurer, watch: Watch
) -> None:
    """Add the time by cause to the decoded tokens that are farthest from their bounds."""
    if under.device.type != "cuda":
        return
    for point in without_breakdown(file.points):
        if point["variant"] in setups:
            try:
                file.put(by.breakdown(point, setups[point["variant"]], under))
            except RuntimeError as error:
                watch(Notice(f"no time breakdown of {Point.of(point)}: {error}"))


def _write_figures(file: ResultsFile) -> list[str]:
    """Write one figure per batch size; return their names."""
    from attnlab.reporting.figures.bench import bench_png  # matplotlib takes a second to import

    written = list[str]()
    for batch in sorted({point["batch"] for point in file.points}):
        written.append(f"bench-batch-{batch}.png")
        picture = bench_png(file.contents, batch, device_sentence(file.contents))
        replace_file(file.folder / written[-1], picture)
    return written
