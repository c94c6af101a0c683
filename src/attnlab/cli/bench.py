"""`attnlab bench`: what mechanisms cost to train and to serve, against context and batch."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from attnlab.benchmarking.conditions import Conditions
from attnlab.benchmarking.point import Point, numbers, points, workloads
from attnlab.benchmarking.results_file import ResultsFile
from attnlab.benchmarking.session import measure_all
from attnlab.benchmarking.table import BenchTable, line
from attnlab.benchmarking.targets import Setup, Sizes
from attnlab.benchmarking.targets import only as only_of
from attnlab.benchmarking.targets import setups as setups_of
from attnlab.benchmarking.time_breakdown import with_breakdown, without_breakdown
from attnlab.cli.app import (
    DeviceOption,
    FlaPathOption,
    JsonOption,
    app,
    console,
    errors,
    status,
    told,
    verbatim,
)
from attnlab.device.environment import describe
from attnlab.device.peak_rates import measure_ceilings
from attnlab.device.selection import choose_device
from attnlab.kernels.flash_linear_attention import use_fla
from attnlab.record import replace_file, to_json
from attnlab.study.study import Study
from attnlab.study.targets import named, split_assignments


def _size(default: int) -> Any:
    """An option for one of the sizes of the model that a kind is put into."""
    return typer.Option(help="Of a kind's model.", show_default=str(default), min=1)


@app.command("bench")
@told
def bench_(  # noqa: PLR0913  one parameter an option
    what: Annotated[
        list[str],
        typer.Argument(
            help="A study or its path, all, a kind, file.py:Class, each perhaps with its own "
            "settings (mla:kv_lora_rank=128); then settings of all: train.seq_len=512 ...",
            show_default=False,
        ),
    ],
    only: Annotated[str | None, typer.Option(help="Variants, separated by commas.")] = None,
    contexts: Annotated[
        str | None, typer.Option(help="Tokens: 1k,4k,16k,64k.", show_default="from seq_len to 64K")
    ] = None,
    batches: Annotated[str, typer.Option(help="Sequences at a time.")] = "1,8",
    measure: Annotated[
        str, typer.Option("--what", help="What is measured.")
    ] = "train,prefill,decode",
    d_model: Annotated[int | None, _size(Sizes.d_model)] = None,
    n_layers: Annotated[int | None, _size(Sizes.n_layers)] = None,
    n_heads: Annotated[int | None, _size(Sizes.n_heads)] = None,
    vocab_size: Annotated[int | None, _size(Sizes.vocab_size)] = None,
    seconds: Annotated[float, typer.Option(help="Of timed calls a point, about.", min=0.001)] = 1.0,
    out: Annotated[
        Path | None, typer.Option(help="Folder of bench.json.", show_default="results/STUDY")
    ] = None,
    device: DeviceOption = "auto",
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the models.")] = False,
    fla_path: FlaPathOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a training step, prefill and decoding: time, memory, decode state, FLOPs.

    Times are medians ± half of the interquartile range. Each point is kept in bench.json as soon as
    it is measured; the same command goes on with the missing ones.
    """
    use_fla(fla_path)
    words, changes = split_assignments(what)
    asked_for = named(words, changes)
    study = asked_for[0] if len(asked_for) == 1 and isinstance(asked_for[0], Study) else None
    sizes = {
        name: value
        for name, value in (
            ("d_model", d_model),
            ("n_layers", n_layers),
            ("n_heads", n_heads),
            ("vocab_size", vocab_size),
        )
        if value is not None
    }
    if study is not None and sizes:
        raise ValueError(f"a study has its own sizes; {', '.join(sizes)} is for kinds")
    setups = only_of(setups_of(asked_for, Sizes(**sizes)), only)
    asked = list(
        points(
            [(name, setup.train.seq_len) for name, setup in setups.items()],
            workloads(measure),
            numbers(contexts, "contexts") if contexts else None,
            numbers(batches, "batches"),
        )
    )
    where, talk = choose_device(device), errors if as_json else console
    file = ResultsFile.open(
        out or Path("results") / (study.name if study else "bench"),
        environment=describe(where),
        compiled=compiled,
        setups=setups,
    )
    with status("measuring what the device can do", talk):
        under = Conditions(
            device=where,
            ceilings=measure_ceilings(where, seconds / 4),
            compiled=compiled,
            seconds=seconds,
        )
    command = shlex.join(["attnlab", *sys.argv[1:]])
    file.update(ceilings=under.ceilings._asdict(), command=command)
    try:
        with status("measuring", talk):
            for result in measure_all(asked, setups, under, file):
                verbatim(line(result), talk)
            _account(file, setups, under, talk)
    finally:  # an interrupted bench has pictures of what it did
        pictures = _draw(file)
    if as_json:
        sys.stdout.write(to_json(file.contents).decode())
    else:
        console.print(BenchTable(file.contents), highlight=False)
        console.print(f"\n{', '.join(pictures)} in {file.folder}", highlight=False)
    failed = any(point["status"] == "failed" for point in file.points)
    raise typer.Exit(1 if failed else 0)


def _account(
    file: ResultsFile, setups: Mapping[str, Setup], under: Conditions, talk: Console
) -> None:
    """Say where the time goes of decoded tokens that are far from their bounds."""
    if under.device.type == "cuda":
        for point in without_breakdown(file.points):
            if point["variant"] in setups:
                try:
                    file.put(with_breakdown(point, setups[point["variant"]], under))
                except RuntimeError as error:
                    talk.print(f"no time breakdown of {Point.of(point)}: {error}", markup=False)


def _draw(file: ResultsFile) -> list[str]:
    """The pictures, one a batch size; their names."""
    from attnlab.benchmarking.figure import bench_png  # matplotlib takes a second to import

    written = ["bench.json"]
    for batch in sorted({point["batch"] for point in file.points}):
        written.append(f"bench-batch-{batch}.png")
        replace_file(file.folder / written[-1], bench_png(file.contents, batch))
    return written
