"""Export of a run's model: a folder that stands alone, for attnlab or for the transformers library.

    <exported>/{model.safetensors, config.json, tokenizer.json, sources/..., state.json}

An exported folder has the weights, settings and tokenizer of a run, and the source of the user's
own classes in it. It needs no other file. Nothing is exported that cannot be loaded.

For transformers, a model that is one of Llama or Qwen3 becomes their checkpoint. Any other comes
with `modeling_attnlab.py`, whose mechanisms are those of the installed attnlab.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from safetensors.torch import save_file
from torch import Tensor

from attnlab.config.problem import with_types
from attnlab.data.places import DataError
from attnlab.inference.recorded import DESCRIBED, SOURCES, carried_in, read_recorded
from attnlab.inference.saved_model import Trained, Which, load_run, weights_of
from attnlab.model.llama_checkpoint import difference_from_llama, llama_config, llama_name
from attnlab.record.atomic_files import replace_folder, require_results_folder
from attnlab.record.verified_folder import write_verified
from attnlab.training.checkpoint import tensor_file
from attnlab.version import __version__

Form = Literal["attnlab", "hf"]
CODE = "modeling_attnlab.py"
Json = dict[str, Any]


class Exported(NamedTuple):
    """An exported folder."""

    folder: Path
    step: int  # number of training steps of the weights
    note: str | None  # the damaged checkpoint, and the one exported instead; None: none is damaged
    form: str = "a model of attnlab"  # what can load it


@with_types
def export(
    run: Path | str,
    out: Path | str | None = None,
    *,
    to: Form = "attnlab",
    which: Which = "last",
    trust: bool = False,
) -> Exported:
    """Write weights, settings, tokenizer and own code of a run into a new folder.

    Args:
        run: the run's folder.
        out: a new folder; by default one in the current folder, named after the run.
        to: "attnlab", for `load_run`; or "hf", for AutoModelForCausalLM and AutoTokenizer of
            transformers: a checkpoint of Llama or Qwen3 if the model is one, else a model that
            computes with the installed attnlab and is loaded with trust_remote_code=True.
        which: the weights of the last step, or those of the lowest validation loss.
        trust: as for `load_run`.

    Raises:
        ValueError: as `load_run` does, or the new folder is not empty, or the tokenizer has no
            equal in the form of Hugging Face.
    """
    if to not in ("attnlab", "hf"):
        raise ValueError(f"to: no form {to!r} of an export; known: attnlab, hf")
    run = Path(run)
    ending = "-hf" if to == "hf" else ""
    folder = Path("-".join(run.absolute().parts[-3:]) + ending) if out is None else Path(out)
    require_results_folder(folder)
    trained = load_run(run, which=which, trust=trust)  # what cannot be loaded is not exported
    if folder.is_symlink() or (folder.exists() and not _is_empty(folder)):
        raise ValueError(f"{folder} already exists and is not replaced: give a new folder")
    if to == "hf":
        return _for_transformers(run, trained, folder)
    recorded = read_recorded(run, trust=trust)
    files: dict[str, bytes | Callable[[Path], object]] = {
        **{name: (run / name).read_bytes() for name in DESCRIBED},
        **{f"{SOURCES}/{name}": source for name, source in carried_in(run).items()},
        "model.safetensors": tensor_file(weights_of(run, recorded, which).model),
    }
    state = {
        "step": trained.step,
        "identity": recorded.identity,
        "which": which,
        "data": recorded.fingerprint,
        "own_code": recorded.own_code,
    }
    write_verified(folder, files, state)
    return Exported(folder, trained.step, trained.note)


def _for_transformers(run: Path, trained: Trained, folder: Path) -> Exported:
    config, codec = trained.config, trained.codec
    try:
        tokenizer = codec.to_hugging_face()
    except DataError as error:
        raise DataError(f"the tokenizer of {run}: {error}") from None
    context, weights = config.train.seq_len, trained.model.state_dict()
    files: dict[str, bytes] = {}
    why = difference_from_llama(config.model)
    if why is None:
        settings = llama_config(config.model, codec.vocab_size, context)
        weights = {llama_name(name): tensor for name, tensor in weights.items()}
        form = f"a {settings['model_type']} checkpoint, without code of its own"
    else:
        sources = {name: source.decode() for name, source in carried_in(run).items()}
        settings = _own_config(trained, sources, context)
        weights = {f"model.{name}": tensor for name, tensor in weights.items()}
        files[CODE] = (Path(__file__).parent / CODE).read_bytes()
        form = f"a model of the installed attnlab (trust_remote_code=True), since {why}"
    from_run = {"attnlab_version": __version__, "steps": trained.step}
    files["config.json"] = _text({**settings, **from_run})
    files["generation_config.json"] = _text({"use_cache": True})
    files["tokenizer.json"] = tokenizer.encode()
    files["tokenizer_config.json"] = _text(
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": context,
            "padding_side": "left",
        }
    )
    replace_folder(folder, lambda path: _write(path, files, weights))
    return Exported(folder, trained.step, trained.note, form)


def _own_config(trained: Trained, sources: dict[str, str], context: int) -> Json:
    model = trained.config.model
    module = CODE.removesuffix(".py")
    return {
        "architectures": ["AttnlabForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{module}.AttnlabConfig",
            "AutoModelForCausalLM": f"{module}.AttnlabForCausalLM",
        },
        "model_type": "attnlab",
        "model": model.to_dict(),
        "sources": sources,
        "vocab_size": trained.codec.vocab_size,
        "hidden_size": model.d_model,
        "num_hidden_layers": model.n_layers,
        "max_position_embeddings": context,
        "tie_word_embeddings": False,  # a model with tied ones has them once
        "dtype": "float32",
    }


def _write(folder: Path, files: Mapping[str, bytes], weights: Mapping[str, Tensor]) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    on_host = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(on_host, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)


def _text(value: Json) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())
