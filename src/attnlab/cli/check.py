"""`attnlab check` and `attnlab doctor`: check mechanisms, and examine this machine."""

import json
from typing import Annotated

import typer
from rich.table import Table as Grid
from rich.text import Text

from attnlab.cli.app import FlaPathOption, JsonOption, app, reports_user_errors
from attnlab.cli.console import ActivityStatus, console, errors, write


@app.command()
@reports_user_errors
def check(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="WHAT",
            help="all, kinds (mla), classes (file.py:Class), layers (fla:Layer), studies (name "
            "or path) or folders of checkpoints (Llama, Qwen), each perhaps with settings of its "
            "own (mla:kv_lora_rank=8); then settings of all: window=64 ...",
            show_default=False,
        ),
    ],
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Try fewer shapes and modes, as before a study trains."),
    ] = False,
    fla_path: FlaPathOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check mechanisms for every property of the contract: causality, decoding, cost, ...

    A kind is checked at small sizes, the variants of a study at their own.
    """
    import attnlab
    from attnlab.checks.table import ResultsTable, results_as_json
    from attnlab.record import to_json
    from attnlab.study.targets import split_assignments

    attnlab.use_fla(fla_path)
    names, assignments = split_assignments(what)
    with ActivityStatus(errors if as_json else console) as shown:
        checked = attnlab.check(
            *names,
            overrides=assignments,
            quick=quick,
            watch=lambda target: shown.start(f"checking {target.name}"),
        )
    if as_json:
        write(to_json(results_as_json(checked)).decode())
    else:
        console.print_table(ResultsTable(checked))
    raise typer.Exit(0 if all(one.holds for one in checked) else 1)


@app.command("doctor")
@reports_user_errors
def doctor_(fla_path: FlaPathOption = None, as_json: JsonOption = False) -> None:
    """Examine devices, packages, kernels, data and disk.

    The exit code is 1 if the study quickstart cannot run.
    """
    import attnlab
    from attnlab.runner.doctor import DEFAULT_STUDY, can_run

    findings = attnlab.doctor(fla_path=fla_path)
    works = can_run(findings)
    if as_json:
        rows = [finding._asdict() for finding in findings]
        write(json.dumps(rows, indent=2) + "\n")
        raise typer.Exit(0 if works else 1)
    grid = Grid(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title, widest in (("", None), ("part", 24), ("found, and what to do", None)):
        grid.add_column(title, overflow="fold", max_width=widest if console.is_terminal else None)
    for finding in findings:
        mark = Text("ok", "green") if finding.ok else Text("no", "yellow")
        if finding.required and not finding.ok:
            mark = Text("no", "bold red")
        remedy = (f"\n{finding.remedy}", "yellow") if finding.remedy else ""
        grid.add_row(mark, finding.part, Text.assemble(finding.found, remedy))
    console.print_table(grid)
    console.print(f"{DEFAULT_STUDY} {'can' if works else 'cannot'} run here")
    raise typer.Exit(0 if works else 1)
