"""`attnlab generate`: text from a trained run."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from attnlab.cli.app import (
    BestOption,
    DeviceOption,
    FlaPathOption,
    app,
    console,
    errors,
    told,
    verbatim,
)
from attnlab.device.selection import choose_device
from attnlab.inference.generate import Sampling, generate
from attnlab.inference.saved_model import Trained, load_run
from attnlab.kernels.flash_linear_attention import use_fla


@app.command("generate")
@told
def generate_(  # noqa: PLR0913  one parameter an option
    run: Annotated[
        Path,
        typer.Argument(help="A run's folder, results/STUDY/VARIANT/seed-0, or an exported one."),
    ],
    prompt: Annotated[str, typer.Option(help="The text to go on from.")],
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to make.", min=1)] = 200,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Of the k most likely tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Of the fewest that reach p.")] = None,
    seed: Annotated[int, typer.Option(help="Decides every draw.")] = 0,
    samples: Annotated[int, typer.Option(help="How many texts.", min=1)] = 1,
    best: BestOption = False,
    device: DeviceOption = "auto",
    fla_path: FlaPathOption = None,
) -> None:
    """Go on from a prompt with a run's last weights. One text is shown as it is made."""
    use_fla(fla_path)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    trained = load_run(run, choose_device(device), which="best" if best else "last")
    if trained.note is not None:
        verbatim(trained.note, errors, style="yellow")
    ids = trained.codec.encode([prompt])
    if not len(ids):
        raise ValueError("--prompt is empty: give some text to go on from")
    where = next(trained.model.parameters()).device
    prompt_BT = torch.from_numpy(ids.astype("int64")).to(where).expand(samples, -1)
    columns = list[list[int]]()
    shown = ""
    for tokens_B in generate(
        trained.model,
        prompt_BT,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        autocast=trained.autocast,
    ):
        columns.append(tokens_B.tolist())
        if samples == 1:
            shown = _show_more(trained, [*ids.tolist(), *(c[0] for c in columns)], shown)
    if samples == 1:
        console.print()
        return
    for i in range(samples):
        text = trained.codec.decode([*ids.tolist(), *(column[i] for column in columns)])
        console.rule(f"sample {i + 1}")
        verbatim(text)


def _show_more(trained: Trained, ids: list[int], shown: str) -> str:
    """Print what is new. Bytes that are not yet a whole character wait for the rest."""
    text = trained.codec.decode(ids).rstrip("\N{REPLACEMENT CHARACTER}")
    verbatim(text[len(shown) :], end="")
    return text if len(text) > len(shown) else shown
