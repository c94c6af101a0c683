"""`attnlab eval`: a trained run on tasks of lm-evaluation-harness."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table as Grid

from attnlab.cli.app import (
    BestOption,
    DeviceOption,
    RunArgument,
    TrustOption,
    app,
    reports_user_errors,
    stored,
    whole,
)
from attnlab.cli.console import console, verbatim
from attnlab.config import names_in


@app.command("eval")
@reports_user_errors
def eval_(  # noqa: PLR0913  one parameter per option
    run: RunArgument,
    tasks: Annotated[
        str, typer.Option(metavar="TASK,...", help="Evaluate on these tasks of the harness.")
    ],
    include: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A folder with task files of your own.")
    ] = None,
    shots: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Show this many examples before each question.",
            parser=whole(),
            show_default="as the task says",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", help="Ask only the first N questions per task.", parser=whole(1)),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(metavar="N", help="Score this many windows at once.", parser=whole(1))
    ] = 16,
    best: BestOption = False,
    trust: TrustOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Evaluate a run on tasks of lm-evaluation-harness; results go to its study's harness.json.

    It needs pip install 'attnlab[eval]'.
    """
    from attnlab.inference.lm_harness import evaluate_tasks, results_file

    folder = stored(run)
    found = evaluate_tasks(
        folder,
        names_in(tasks),
        include=include,
        shots=shots,
        limit=limit,
        batch_size=batch_size,
        which="best" if best else "last",
        device=device,
        trust=trust,
    )
    grid = Grid(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("task", "metric"):
        grid.add_column(title, no_wrap=True)
    for title in ("value", "standard error"):
        grid.add_column(title, justify="right")
    for task, of_task in found.items():
        for name, of in of_task["metrics"].items():
            error = of["standard_error"]
            grid.add_row(task, name, f"{of['value']:.4f}", "" if error is None else f"{error:.4f}")
    console.print_table(grid)
    if (path := results_file(folder)) is not None:
        verbatim(f"Results: {path}")
