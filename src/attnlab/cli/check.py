"""`attnlab check`: check mechanisms for every property of the contract."""

import sys
from typing import Annotated

import typer
from rich.markup import escape

from attnlab.checks.table import ResultsTable, results_as_json
from attnlab.checks.targets import Checked, targets
from attnlab.cli.app import FlaPathOption, JsonOption, app, console, errors, status, told
from attnlab.kernels.flash_linear_attention import use_fla
from attnlab.record import to_json
from attnlab.study.targets import split_assignments


@app.command()
@told
def check(
    what: Annotated[
        list[str],
        typer.Argument(
            help="all, a kind, file.py:Class, a study or its path; then settings: window=64 ...",
            show_default=False,
        ),
    ],
    fla_path: FlaPathOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check mechanisms for every property of the contract: causality, decoding, cost, ...

    A kind is checked at small sizes, the variants of a study at their own.
    """
    use_fla(fla_path)
    asked = targets(*split_assignments(what))
    checked, talk = list[Checked](), errors if as_json else console
    for target in asked:
        with status(f"checking {escape(target.name)}", talk):
            checked.append(target.check())
    if as_json:
        sys.stdout.write(to_json(results_as_json(checked)).decode())
    else:
        console.print(ResultsTable(checked), highlight=False)
    raise typer.Exit(0 if all(one.holds for one in checked) else 1)
