"""`attnlab bench`: measure time, memory and decode state of mechanisms."""

from typing import Annotated

import typer

from attnlab.cli.app import (
    DeviceOption,
    FlaPathOption,
    JsonOption,
    app,
    command_line,
    decimal,
    folder,
    reports_user_errors,
    size_option,
)
from attnlab.cli.console import ActivityStatus, console, errors, verbatim, write


@app.command("bench")
@reports_user_errors
def bench_(  # noqa: PLR0913  one parameter per option
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="WHAT",
            help="Studies (name or path), all, kinds (mla), classes (file.py:Class), layers "
            "(fla:Layer) or folders of checkpoints (Llama, Qwen), each perhaps with settings of "
            "its own (mla:kv_lora_rank=128); then settings of all: train.seq_len=512 ...",
            show_default=False,
        ),
    ],
    only: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Measure only these variants, separated by commas."),
    ] = None,
    contexts: Annotated[
        str | None,
        typer.Option(
            metavar="TOKENS",
            help="Measure at these context lengths: 1k,4k,16k,64k.",
            show_default="from the sequence length to 64k",
        ),
    ] = None,
    batches: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Measure at these batch sizes.")
    ] = "1,8",
    measure: Annotated[
        str, typer.Option("--what", metavar="NAMES", help="Measure only these workloads.")
    ] = "train,prefill,decode",
    d_model: Annotated[int | None, size_option("width", "768")] = None,
    n_layers: Annotated[int | None, size_option("number of layers", "12")] = None,
    n_heads: Annotated[int | None, size_option("number of heads", "12")] = None,
    vocab_size: Annotated[int | None, size_option("vocabulary", "50257")] = None,
    seconds: Annotated[
        float,
        typer.Option(
            help="Time each point for about this long.",
            parser=decimal(low=0.001),
            metavar="SECONDS",
        ),
    ] = 1.0,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Write bench.json to this folder.", show_default="results/STUDY"
        ),
    ] = None,
    device: DeviceOption = "auto",
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the models.")] = False,
    fla_path: FlaPathOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure training steps, prefill and decoding: time, memory, decode state, FLOPs.

    Times are medians ± half the interquartile range. Each point is written to bench.json as soon as
    it is measured; the same command continues with the missing points.
    """
    import attnlab
    from attnlab.benchmarking.bench import Measured
    from attnlab.benchmarking.results import BenchTable, line
    from attnlab.record import to_json
    from attnlab.study import Activity, Notice
    from attnlab.study.targets import split_assignments

    names, assignments = split_assignments(what)
    with ActivityStatus(errors if as_json else console) as shown:

        def watch(event: Activity | Measured | Notice) -> None:
            match event:
                case Activity(description):
                    shown.start(description)
                case Measured(point={"status": "no_step"}):
                    pass  # said once, below the tables
                case Measured(point=point):
                    shown.note(line(point))
                case Notice(text):
                    shown.note(text)

        result = attnlab.bench(
            *names,
            overrides=assignments,
            only=only,
            contexts=contexts,
            batches=batches,
            measure=measure,
            d_model=d_model,
            n_layers=n_layers,
            n_heads=n_heads,
            vocab_size=vocab_size,
            seconds=seconds,
            out=folder(out),
            device=device,
            compiled=compiled,
            fla_path=fla_path,
            watch=watch,
            command=command_line(),
        )
    if as_json:
        write(to_json(result.contents).decode())
    else:
        console.print_table(BenchTable(result.contents))
        verbatim(f"\nFiles in {result.folder}: {', '.join(result.files)}")
    raise typer.Exit(1 if result.failures else 0)
