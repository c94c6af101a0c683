"""attnlab's model as a checkpoint of Llama or Qwen in the form of Hugging Face, and back.

A model is one of theirs if every layer has the same grouped-query attention with rotary positions
and a SwiGLU layer: Llama's without `qk_norm`, Qwen3's with it. The other way, checkpoints of Llama,
Mistral, Qwen2 and Qwen3 are read: config.json and safetensors, of one file or of several. A setting
that attnlab has no equal of is an error that names it.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from attnlab.config import ConfigError, Problem
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.model.feedforward import SwiGLU
from attnlab.model.language_model import LanguageModel, ModelConfig
from attnlab.modules.rope_scaling import Dynamic, RopeScaling
from attnlab.record.atomic_files import open_regular
from attnlab.record.json_text import read_foreign_object

Json = dict[str, Any]

READABLE = ("llama", "mistral", "qwen2", "qwen3")
NORM_EPS = 1e-6  # of attnlab's norms
_NAMES = (  # parts of parameters' names: attnlab's, theirs
    ("embed.", "model.embed_tokens."),
    ("blocks.", "model.layers."),
    (".mix_norm.", ".input_layernorm."),
    (".mix.", ".self_attn."),
    (".feedforward_norm.", ".post_attention_layernorm."),
    (".feedforward.", ".mlp."),
)
_PLAIN: dict[str, tuple[object, ...]] = {  # settings of theirs that attnlab has in one form only
    "hidden_act": ("silu", "swish"),
    "tie_word_embeddings": (True, False),
    "mlp_bias": (False,),
    "use_sliding_window": (False,),
    "partial_rotary_factor": (1, None),
    "quantization_config": (None,),
    "num_experts": (None,),
}
_DEFAULTS: Json = {"tie_word_embeddings": False, "rms_norm_eps": NORM_EPS, "rope_theta": 10_000.0}


class Checkpoint(NamedTuple):
    """The settings of a checkpoint."""

    model: ModelConfig
    vocab_size: int
    norm_eps: float


def difference_from_llama(model: ModelConfig) -> str | None:
    """Return what the model has that Llama and Qwen3 do not, or None if it is one of them."""
    layers = model.per_layer()
    if any(layer != layers[0] for layer in layers):
        return "its layers have different mechanisms"
    if type(layers[0]) is not GroupedQuery:
        return f"its mechanism is {layers[0].kind()}"
    if type(model.feedforward) is not SwiGLU:
        return f"its feed-forward layer is {model.feedforward.kind()}, not swiglu"
    heads = layers[0]
    width = heads.head_widths(model.d_model)[0]
    plain = GroupedQuery(
        n_heads=heads.n_heads,
        n_kv_heads=heads.n_kv_heads,
        head_dim=heads.head_dim,
        v_head_dim=heads.v_head_dim if heads.v_head_dim == width else None,
        rope_theta=heads.rope_theta,
        rope_head_dim=heads.rope_head_dim if heads.rope_head_dim == width else None,
        rope_scaling=heads.rope_scaling,
        qk_norm=heads.qk_norm,
        bias=heads.bias,
        kernel=heads.kernel,
    ).to_dict()
    for name, value in heads.to_dict().items():
        if value != plain[name]:
            return f"{name} is {value}"
    if isinstance(heads.rope_scaling, Dynamic) or heads.query_factor(model.d_model) != 1:
        return "rope_scaling has no equal in decoding"
    return None


def llama_config(model: ModelConfig, vocab_size: int, context: int) -> Json:
    """Return the content of config.json of a model without `difference_from_llama`.

    `context` is the number of tokens of a training sequence.
    """
    heads, fed = model.per_layer()[0], model.feedforward
    assert isinstance(heads, GroupedQuery)
    assert isinstance(fed, SwiGLU)
    rope: Json = {"rope_type": "default"}
    if heads.rope_scaling is not None:
        given = {k: v for k, v in heads.rope_scaling.to_dict().items() if v is not None}
        rope = {"rope_type": given.pop("kind"), **given}
    name = "qwen3" if heads.qk_norm else "llama"
    return {
        "architectures": [f"{name.capitalize()}ForCausalLM"],
        "model_type": name,
        "vocab_size": vocab_size,
        "hidden_size": model.d_model,
        "intermediate_size": fed.d_ff,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": heads.n_heads,
        "num_key_value_heads": heads.n_kv_heads,
        "head_dim": heads.head_widths(model.d_model)[0],
        "hidden_act": "silu",
        "max_position_embeddings": context,
        "rms_norm_eps": NORM_EPS,
        "rope_parameters": {**rope, "rope_theta": heads.rope_theta},
        "attention_bias": heads.bias,
        "mlp_bias": False,
        "tie_word_embeddings": not model.untied_embeddings,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "dtype": "float32",
    }


def llama_name(name: str) -> str:
    """Return the name of a parameter in their checkpoints.

    >>> llama_name("blocks.3.mix.q_proj.weight"), llama_name("head.weight")
    ('model.layers.3.self_attn.q_proj.weight', 'lm_head.weight')
    """
    if name.startswith("head."):
        return f"lm_{name}"
    for ours, theirs in _NAMES:
        name = name.replace(ours, theirs)
    return name if name.startswith("model.") else f"model.{name}"


def find_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the settings in the config.json of a folder, if it is in the form of Hugging Face.

    Raises:
        ValueError: the model is none of those that are read, or it has a setting that attnlab
            lacks.
    """
    path = folder / "config.json"
    try:
        given = read_foreign_object(path)
    except ValueError:
        return None
    if "model_type" not in given:
        return None
    kind = given.get("model_type")
    if kind not in READABLE:
        ours = "; attnlab export without --to hf writes what attnlab reads" * (kind == "attnlab")
        raise ValueError(f"{path}: model_type is {kind}, and {', '.join(READABLE)} are read{ours}")
    stated: Json = {name: value for name, value in given.items() if value is not None}
    given = {**_DEFAULTS, **stated}
    lacking = [
        f"{name}={json.dumps(given[name])}"
        for name, known in _PLAIN.items()
        if name in given and given[name] not in known
    ]
    others = {str(one) for one in given.get("layer_types") or ()} - {"full_attention"}
    lacking += [f"layer_types={name}" for name in sorted(others)]
    if kind == "mistral" and "sliding_window" in given:
        lacking.append(f"sliding_window={given['sliding_window']}")
    if lacking:
        raise ValueError(f"{path}: attnlab's model has no equal of {', '.join(lacking)}")
    try:
        return _settings(given, str(kind))
    except KeyError as error:
        raise ValueError(f"{path} lacks {error.args[0]}") from None
    except ConfigError as error:
        problems = "; ".join(map(str, error.problems))
        raise ValueError(f"{path}: attnlab's model has no such settings: {problems}") from None
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"{path} is no config of {kind}: {error}") from None


def read_weights(folder: Path, model: LanguageModel) -> dict[str, Tensor]:
    """Return the parameters of a checkpoint in the dtype of its files, by the model's names.

    Raises ValueError if a file is missing or damaged, or a parameter is missing or unknown.
    """
    found = dict[str, Tensor]()
    for path in _weight_files(folder):
        try:
            open_regular(path).close()  # which load_file would wait for, were it a pipe
            found |= load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is missing or damaged: {error}") from None
    if not model.config.untied_embeddings:
        found.pop("lm_head.weight", None)  # the embedding again
    weights = dict[str, Tensor]()
    for name, parameter in model.state_dict().items():
        theirs = llama_name(name)
        if theirs in found:
            weights[name] = found.pop(theirs)
        elif theirs.endswith("o_proj.bias"):  # Qwen2 has none
            weights[name] = torch.zeros(parameter.shape)
        else:
            raise ValueError(f"{folder} has no weight {theirs}")
    unknown = [name for name in found if not name.endswith("rotary_emb.inv_freq")]
    if unknown:
        raise ValueError(f"{folder}: attnlab's model has no equal of the weight {min(unknown)}")
    return weights


def _settings(given: Mapping[str, Any], kind: str) -> Checkpoint:
    heads = int(given["num_attention_heads"])
    width = 128 if kind == "qwen3" else int(given["hidden_size"]) // heads
    theta, scaling = _rope(given)
    attention = GroupedQuery(
        n_heads=heads,
        n_kv_heads=given.get("num_key_value_heads", heads),
        head_dim=given.get("head_dim", width),
        rope_theta=theta,
        rope_scaling=scaling,
        qk_norm=kind == "qwen3",
        bias=kind == "qwen2" or bool(given.get("attention_bias", False)),
    )
    model = ModelConfig(
        mechanisms=(attention,),
        n_layers=given["num_hidden_layers"],
        d_model=given["hidden_size"],
        feedforward=SwiGLU(d_ff=given["intermediate_size"]),
        untied_embeddings=not given["tie_word_embeddings"],
    )
    return Checkpoint(model, int(given["vocab_size"]), float(given["rms_norm_eps"]))


def _rope(given: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Return theta and scaling, of either of the two forms that config.json has had."""
    stated: Json = {**given.get("rope_scaling", {}), **given.get("rope_parameters", {})}
    stated = {name: value for name, value in stated.items() if value is not None}
    theta = float(stated.pop("rope_theta", given["rope_theta"]))
    kind = stated.pop("type", "default")
    kind = stated.pop("rope_type", kind)
    if stated.pop("partial_rotary_factor", 1) != 1:
        raise ConfigError([Problem("partial_rotary_factor", "rotates a part of a head")])
    if kind == "default":
        return theta, None
    if kind not in RopeScaling.kinds:
        known = ", ".join(["default", *RopeScaling.kinds])
        raise ConfigError([Problem("rope_type", f"{kind} is none of {known}")])
    if "original_max_position_embeddings" in RopeScaling.of_kind(kind).__dataclass_fields__:
        stated.setdefault("original_max_position_embeddings", given["max_position_embeddings"])
    else:
        stated.pop("original_max_position_embeddings", None)
    scaling = RopeScaling.from_dict({"kind": kind, **stated})
    if scaling.softmax_factor != 1:
        raise ConfigError([Problem("mscale_all_dim", "scales the softmax, which Llama's do not")])
    return theta, scaling


def _weight_files(folder: Path) -> Iterator[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        yield folder / "model.safetensors"
        return
    placed = read_foreign_object(index).get("weight_map")
    if not isinstance(placed, dict):
        raise ValueError(f"{index} has no weight_map: it is cut or was edited")
    for name in sorted({str(name) for name in cast("Json", placed).values()}):
        if Path(name).name != name:
            raise ValueError(f"{index} names {name}, which is no file of its folder")
        yield folder / name
