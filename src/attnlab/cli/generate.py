"""`attnlab generate`, `export` and `eval`: the text, the files and the tasks of a trained run."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table as Grid

from attnlab.cli.app import (
    BestOption,
    DeviceOption,
    FlaPathOption,
    RunArgument,
    TrustOption,
    app,
    decimal,
    folder,
    reports_user_errors,
    stored,
    whole,
)
from attnlab.cli.console import console, errors, passage, verbatim
from attnlab.config import names_in
from attnlab.device.child_process import Printed


@app.command("generate")
@reports_user_errors
def generate_(  # noqa: PLR0913  one parameter per option
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="Continue this text.")],
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN]",
            help="A run's folder, an exported one, or a checkpoint of Llama or Qwen.",
            show_default="the newest run with weights below results/",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int,
        typer.Option(help="Generate this many tokens.", parser=whole(1, 1_000_000), metavar="N"),
    ] = 200,
    temperature: Annotated[
        float,
        typer.Option(
            help="Sample at this temperature; 0 takes the most likely token.",
            parser=decimal(),
            metavar="NUMBER",
        ),
    ] = 0.8,
    top_k: Annotated[
        int | None,
        typer.Option(metavar="K", help="Sample from the K most likely tokens.", parser=whole()),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            metavar="P", help="Sample from the fewest tokens with probability P.", parser=decimal()
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Seed the random draws.", parser=whole(), metavar="N")
    ] = 0,
    samples: Annotated[
        int, typer.Option(help="Generate this many texts.", parser=whole(1, 1_000), metavar="N")
    ] = 1,
    best: BestOption = False,
    trust: TrustOption = False,
    device: DeviceOption = "auto",
    fla_path: FlaPathOption = None,
) -> None:
    """Generate text from a trained run, from a folder that attnlab export wrote, or from a folder
    with a checkpoint of Llama, Mistral, Qwen2 or Qwen3 in the form of Hugging Face.

    One text is printed while it is generated.
    """
    import attnlab
    from attnlab.inference.saved_model import newest_run

    attnlab.use_fla(fla_path)
    sampling = attnlab.Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    if run is None:
        run = newest_run(Path("results"))
        verbatim(f"run: {run}", errors)
    with _prints_as_notes():
        trained = attnlab.load_run(
            stored(run), device, which="best" if best else "last", trust=trust
        )
        if trained.note is not None:
            verbatim(trained.note, errors, style="yellow")
        texts = attnlab.generate(
            trained,
            prompt,
            samples=samples,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            watch=(lambda piece: passage(piece, end="")) if samples == 1 else None,
        )
        if samples == 1:
            console.print()
    if samples == 1:
        return
    for number, text in enumerate(texts, 1):
        console.rule(f"sample {number}")
        passage(text)


@contextmanager
def _prints_as_notes() -> Generator[None]:
    """Print what the user's own code prints inside as notes, afterwards, beside the text."""
    printed = Printed()
    try:
        with printed.kept():
            yield
    finally:
        for line in printed.take():
            verbatim(line, errors, style="yellow")


@app.command()
@reports_user_errors
def export(
    run: RunArgument,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Write to this new folder.",
            show_default="in the current folder, named after the run",
        ),
    ] = None,
    to: Annotated[
        str,
        typer.Option(
            metavar="FORM",
            help="Write it for attnlab, or for the transformers library (hf).",
        ),
    ] = "attnlab",
    best: BestOption = False,
    trust: TrustOption = False,
) -> None:
    """Write a run's weights (safetensors), settings, tokenizer and own code into a new folder.

    attnlab.load_run(DIR) loads the model, attnlab generate DIR generates text with it. With
    --to hf, AutoModelForCausalLM and AutoTokenizer do: a model that is one of Llama or Qwen3 is
    written as their checkpoint, any other with code that uses the installed attnlab.
    """
    import attnlab

    which = "best" if best else "last"
    form: Any = to  # export refuses others
    exported = attnlab.export(stored(run), folder(out), to=form, which=which, trust=trust)
    if exported.note is not None:
        verbatim(exported.note, errors, style="yellow")
    files = ", ".join(sorted(path.name for path in exported.folder.iterdir()))
    verbatim(f"{exported.folder}: {files}, of step {exported.step}")
    if to == "hf":
        verbatim(f"It is {exported.form}.")


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

    run = stored(run)
    found = evaluate_tasks(
        run,
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
    if (path := results_file(run)) is not None:
        verbatim(f"Results: {path}")
