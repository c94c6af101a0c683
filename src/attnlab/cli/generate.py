"""`attnlab generate` and `export`: text from a trained run, and its model in a folder."""

from pathlib import Path
from typing import Annotated, Any

import typer

from attnlab.cli.app import (
    BestOption,
    DeviceOption,
    FlaPathOption,
    RunArgument,
    TrustOption,
    app,
    decimal,
    reports_user_errors,
    stored,
    whole,
)
from attnlab.cli.console import console, errors, verbatim


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
    trained = attnlab.load_run(stored(run), device, which="best" if best else "last", trust=trust)
    if trained.note is not None:
        verbatim(trained.note, errors, style="yellow")
    texts = attnlab.generate(
        trained,
        prompt,
        samples=samples,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        watch=(lambda piece: verbatim(piece, end="")) if samples == 1 else None,
    )
    if samples == 1:
        console.print()
        return
    for number, text in enumerate(texts, 1):
        console.rule(f"sample {number}")
        verbatim(text)


@app.command()
@reports_user_errors
def export(
    run: RunArgument,
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DIR]",
            help="A new folder.",
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
    exported = attnlab.export(stored(run), folder, to=form, which=which, trust=trust)
    if exported.note is not None:
        verbatim(exported.note, errors, style="yellow")
    files = ", ".join(sorted(path.name for path in exported.folder.iterdir()))
    verbatim(f"{exported.folder}: {files}, of step {exported.step}")
    if to == "hf":
        verbatim(f"It is {exported.form}.")
