"""`attnlab reproduce`: a published result, run again, is inside or outside of its band."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table as Grid

from attnlab.cli.app import (
    DeviceOption,
    JsonOption,
    SeedsOption,
    WorkersOption,
    app,
    command_line,
    folder,
    reports_user_errors,
)
from attnlab.cli.console import console, errors, prose, verbatim, write
from attnlab.cli.report import showing_unwritten

if TYPE_CHECKING:
    from attnlab.analysis.analysis import Analysis
    from attnlab.runner.reproduce import Reproduction

EXIT_CODES = {"inside": 0, "outside": 1, "undecided": 3}


@app.command("reproduce")
@reports_user_errors
def reproduce_(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="A reproduction, or the Python file of a study whose hypotheses cite sources.",
            show_default="list them",
        ),
    ] = None,
    seeds: SeedsOption = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Write the results to this folder.", show_default="results/NAME"
        ),
    ] = None,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a published result again; without NAME, list those that can be.

    Runs that exist are kept. The exit code is 0 inside of every published band, 1 outside of one,
    2 for an error, and 3 if intervals do not decide it or runs are missing. `attnlab run NAME
    --plan` estimates the time.
    """
    import attnlab
    from attnlab.runner.reproduce import REPRODUCTIONS, Reproduction

    if name is None:
        if as_json:
            write(json.dumps(REPRODUCTIONS, indent=2) + "\n")
        else:
            grid = Grid.grid(padding=(0, 2, 0, 0))
            grid.add_column(no_wrap=True)
            for each, text in REPRODUCTIONS.items():
                grid.add_row(each, text)
            console.print_table(grid)
        return
    from attnlab.cli.progress import watched  # which imports torch

    def show(analysis: "Analysis") -> None:
        _show(Reproduction(analysis=analysis), as_json)

    with showing_unwritten(show), watched(errors if as_json else console) as watch:
        found = attnlab.reproduce(
            name,
            seeds=seeds,
            out=folder(out),
            device=device,
            workers=workers,
            watch=watch,
            command=command_line(),
        )
    _show(found, as_json)
    if not as_json:
        verbatim(f"Report: {found.analysis.table.path / 'report.html'}", console)
    raise typer.Exit(EXIT_CODES[found.outcome])


def _show(found: "Reproduction", as_json: bool) -> None:
    if as_json:
        write(json.dumps(_as_json(found), indent=2) + "\n")
        return
    for claim in found.claims:
        words = [f"{claim.ruling}: {claim.statement}", *claim.found, f"Source: {claim.source}"]
        prose("\n    ".join(words))
    prose(f"\n{found.name}: {_verdict(found)}")


def _verdict(found: "Reproduction") -> str:
    supported = sum(claim.ruling == "supported" for claim in found.claims)
    where = {"inside": "inside the published bands", "outside": "outside a published band"}
    return (
        f"{where.get(found.outcome, 'undecided')}; "
        f"{supported} of {len(found.claims)} published claims are supported"
    )


def _as_json(found: "Reproduction") -> dict[str, Any]:
    keys = ("statement", "ruling", "found", "source")
    claims = [{key: getattr(claim, key) for key in keys} for claim in found.claims]
    return {"name": found.name, "outcome": found.outcome, "claims": claims}
